"""Settings of models that take a sequence and write tokens; those of training are in `config/training.py`.

The defaults are those of the base model of "Attention Is All You Need" (arXiv 1706.03762, Table 3).
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from unimask.config.training import TrainingConfig
from unimask.config.values import Below1, Factor, Width, settings_from_dict, settings_to_dict
from unimask.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SequenceModelConfig:
    """The encoder-decoder Transformer (Sec. 3)."""

    channels: Annotated[int, Field(ge=2, le=65_536)] = 512  # width of tokens
    heads: Annotated[int, Field(ge=1, le=4096)] = 8  # attention heads
    feedforward_channels: Width = 2048  # hidden width of the feed-forward
    encoder_layers: Annotated[int, Field(ge=1, le=1000)] = 6
    decoder_layers: Annotated[int, Field(ge=1, le=1000)] = 6
    dropout: Below1 = 0.1  # of what each sublayer adds, and of embedding + position (Sec. 5.4)
    attention_dropout: Below1 = 0.0  # of attention weights; not in the paper
    hidden_dropout: Below1 = 0.0  # inside of the feed-forward; not in the paper
    norm: Literal["post", "pre"] = "post"  # after the residual sum as in the paper, or before the sublayer
    activation: Literal["relu", "silu", "gelu"] = "relu"  # of the feed-forward
    source: Literal["tokens", "vectors"] = "tokens"  # what the encoder takes
    # numbers in each vector of the source; only where the source is vectors
    source_features: Annotated[int, Field(ge=0, le=65_536)] = 0
    # sines and cosines in turn; or as Marian
    position_layout: Literal["interleaved", "halves"] = "interleaved"
    output_bias: bool = False  # of the output logits; Marian has one


@dataclass(frozen=True, kw_only=True)
class TokenLossConfig:
    """The loss on tokens (Sec. 5.4)."""

    label_smoothing: Below1 = 0.1  # share of each label that is spread evenly over the vocabulary


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How text reaches the model."""

    source_language: str = "en"  # ends of file names: train.en
    target_language: str = "de"
    lowercase: bool = False  # the model knows small letters only
    split_words: bool = True  # marks become words of their own first (`data/text/words.py`)
    # byte-pair tokens, of both languages together (Sec. 5.1)
    vocabulary: Annotated[int, Field(ge=8, le=1_000_000)] = 37_000
    # tokens; longer pairs are not trained on, longer lines are translated in pieces
    longest: Annotated[int, Field(ge=2, le=100_000)] = 256


@dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """How tokens are chosen, one at a time (Sec. 6.1)."""

    method: Literal["greedy", "beam", "sample"] = "beam"
    beams: Annotated[int, Field(ge=1, le=1000)] = 4  # beam: hypotheses kept per sequence
    # beam: a hypothesis' log-probability is divided by its length to this power
    length_penalty: Annotated[float, Field(ge=0, le=100)] = 0.6
    # a result has at most so many tokens per token of its source, and `limit_extra` more
    limit_factor: Annotated[float, Field(ge=0, le=1000)] = 1.0
    limit_extra: Annotated[int, Field(ge=1, le=100_000)] = 50
    temperature: Factor = 1.0  # sample: logits are divided by it
    # sample: only from so many of the likeliest tokens; 0: from all
    top: Annotated[int, Field(ge=0, le=10_000_000)] = 0


@dataclass(frozen=True, kw_only=True)
class TranslationExperiment:
    """Everything that names a run on sequences: a preset is a function that gives one."""

    model: SequenceModelConfig = field(default_factory=SequenceModelConfig)
    losses: TokenLossConfig = field(default_factory=TokenLossConfig)
    data: TextConfig = field(default_factory=TextConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


def translation_to_dict(experiment: TranslationExperiment) -> dict[str, object]:
    """Return the experiment as plain values, ready for JSON; `translation_from_dict` is its inverse."""
    return settings_to_dict(experiment)


def translation_from_dict(values: dict[str, object]) -> TranslationExperiment:
    """Return the experiment that plain values describe; missing keys take their defaults.

    Raises:
        ConfigError: a key is unknown (all of them are named), or a value has the wrong type or is impossible.
    """
    experiment = settings_from_dict(TranslationExperiment, values)
    model = experiment.model
    if model.channels % model.heads:
        raise ConfigError(
            "model.channels", f"{model.channels} channels cannot be divided by {model.heads} heads"
        )
    if model.channels % 2:
        raise ConfigError("model.channels", f"must be even, for the positions; got {model.channels}")
    if model.source == "vectors" and model.source_features < 1:
        raise ConfigError("model.source_features", "must be at least 1 where the source is vectors")
    return experiment
