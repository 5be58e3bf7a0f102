"""The settings of models that read a sequence and write tokens; what trains them is in `config/images.py`.

The defaults are those of the base model of "Attention Is All You Need" (arXiv 1706.03762, Table 3).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from unimask.config.images import TrainingConfig
from unimask.config.values import settings_from_dict, settings_to_dict, with_changes
from unimask.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SequenceModelConfig:
    """The encoder-decoder Transformer (Sec. 3)."""

    channels: int = 512  # width of tokens
    heads: int = 8  # attention heads
    feedforward_channels: int = 2048  # hidden width of the feed-forward
    encoder_layers: int = 6
    decoder_layers: int = 6
    dropout: float = 0.1  # of what each sublayer adds, and of embedding + position (Sec. 5.4)
    attention_dropout: float = 0.0  # of attention weights; not in the paper
    hidden_dropout: float = 0.0  # inside of the feed-forward; not in the paper
    norm: Literal["post", "pre"] = "post"  # after the residual sum as in the paper, or before the sublayer
    activation: Literal["relu", "silu", "gelu"] = "relu"  # of the feed-forward
    source: Literal["tokens", "vectors"] = "tokens"  # what the encoder reads
    source_features: int = 0  # numbers in each vector of the source; only where it reads vectors
    position_layout: Literal["interleaved", "halves"] = (
        "interleaved"  # sines and cosines in turn; or as Marian
    )
    output_bias: bool = False  # of the output logits; Marian has one


@dataclass(frozen=True, kw_only=True)
class TokenLossConfig:
    """The loss on tokens (Sec. 5.4)."""

    label_smoothing: float = 0.1  # share of each label that is spread evenly over the vocabulary


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How text reaches the model."""

    source_language: str = "en"  # ends of file names: train.en
    target_language: str = "de"
    lowercase: bool = False  # the model knows small letters only
    split_words: bool = True  # marks become words of their own first (`data/text/words.py`)
    vocabulary: int = 37_000  # byte-pair tokens, of both languages together (Sec. 5.1)
    longest: int = 256  # tokens; longer pairs are not trained on, longer lines are translated in pieces


@dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """How tokens are chosen, one at a time (Sec. 6.1)."""

    method: Literal["greedy", "beam", "sample"] = "beam"
    beams: int = 4  # beam: hypotheses kept per sequence
    length_penalty: float = 0.6  # beam: a hypothesis' log-probability is divided by its length to this power
    limit_factor: float = 1.0  # a result has at most so many tokens per place of its source ...
    limit_extra: int = 50  # ... and so many more
    temperature: float = 1.0  # sample: logits are divided by it
    top: int = 0  # sample: only from so many of the likeliest tokens; 0: from all


@dataclass(frozen=True, kw_only=True)
class TranslationExperiment:
    """Everything that names a run on sequences: a preset is a function that gives one."""

    model: SequenceModelConfig = field(default_factory=SequenceModelConfig)
    losses: TokenLossConfig = field(default_factory=TokenLossConfig)
    data: TextConfig = field(default_factory=TextConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


_RANGES: Mapping[str, tuple[float, float]] = {
    "model.channels": (2, 65_536),
    "model.heads": (1, 4096),
    "model.feedforward_channels": (1, 1_000_000),
    "model.encoder_layers": (1, 1000),
    "model.decoder_layers": (1, 1000),
    "model.dropout": (0, 0.999),
    "model.attention_dropout": (0, 0.999),
    "model.hidden_dropout": (0, 0.999),
    "model.source_features": (0, 65_536),
    "losses.label_smoothing": (0, 0.999),
    "data.vocabulary": (8, 1_000_000),
    "data.longest": (2, 100_000),
    "decoding.beams": (1, 1000),
    "decoding.length_penalty": (0, 100),
    "decoding.limit_factor": (0, 1000),
    "decoding.limit_extra": (1, 100_000),
    "decoding.temperature": (0.001, 1000),
    "decoding.top": (0, 10_000_000),
}


def translation_to_dict(experiment: TranslationExperiment) -> dict[str, object]:
    """The experiment as plain values, ready for JSON; `translation_from_dict` is its inverse."""
    return settings_to_dict(experiment)


def translation_from_dict(values: dict[str, object]) -> TranslationExperiment:
    """The experiment that plain values describe; missing keys take their defaults.

    Raises:
        ConfigError: a key is unknown (all of them are named), or a value has the wrong type or is impossible.
    """
    experiment = settings_from_dict(TranslationExperiment, values)
    for path, (lowest, highest) in _RANGES.items():
        room, name = path.split(".")
        value = getattr(getattr(experiment, room), name)
        if not lowest <= value <= highest:
            raise ConfigError(path, f"must be from {lowest} to {highest}; got {value!r}")
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


def override_translation(
    experiment: TranslationExperiment, changes: dict[str, object]
) -> TranslationExperiment:
    """The experiment with some settings changed, each named by its dotted path (`training.steps`).

    Raises:
        ConfigError: no setting has this path, or the value has the wrong type or is impossible.
    """
    return translation_from_dict(with_changes(translation_to_dict(experiment), changes))
