"""The pairs of sequences of a training: source and target."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from unimask.config.text import TextConfig, TranslationExperiment
from unimask.data.text.casing import AS_WRITTEN, Casing, learn_casing
from unimask.data.text.glyphs import FEATURES, glyph_data, with_vocabulary
from unimask.data.text.loader import SequencePair, encode_pairs
from unimask.data.text.pairs import Pairs, read_pairs
from unimask.data.text.vocabulary import SPECIAL, Vocabulary, learn_vocabulary
from unimask.data.text.words import split_words
from unimask.errors import ConfigError
from unimask.processes import first_says

GLYPHS = "glyphs"
GLYPH_COUNTS = (4000, 200)
"""Training and validation lines that are generated for the data `glyphs`."""


@runtime_checkable
class SequenceData(Protocol):
    """Sequences for training and validation."""

    @property
    def name(self) -> str:
        """Return where the data come from, for the provenance of the weights."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Return the vocabulary of the targets."""

    @property
    def casing(self) -> Casing:
        """Return how the words of the targets are written, where the vocabulary has small letters only."""

    @property
    def training(self) -> Sequence[SequencePair]:
        """Return the pairs to train on."""

    @property
    def validation(self) -> Sequence[Tensor]:
        """Return the sources of the validation."""

    @property
    def truth(self) -> Sequence[str]:
        """Return the references of the validation, as words with blanks between them."""


@dataclass(frozen=True, kw_only=True)
class TranslationData:
    """Lines and their translations, as tokens."""

    name: str
    vocabulary: Vocabulary
    casing: Casing
    training: Sequence[SequencePair]
    validation: Sequence[Tensor]
    truth: Sequence[str]


def open_sequences(data: str | Path, experiment: TranslationExperiment, known: Path | None) -> SequenceData:
    """Open the pairs of a folder (`open_translation`), or generate them where `data` is the word glyphs.

    Raises:
        DataError: see `open_translation`.
        ConfigError: the model reads something else.
    """
    reads_vectors = experiment.model.source == "vectors"
    if str(data) != GLYPHS:
        if reads_vectors:
            raise ConfigError("model.source", f"is vectors; the only data of that kind here is {GLYPHS}")
        return open_translation(data, experiment, known)
    if not reads_vectors or experiment.model.source_features != FEATURES:
        raise ConfigError(
            "model.source", f"must be vectors, of model.source_features={FEATURES}, for {GLYPHS}"
        )
    made = glyph_data(*GLYPH_COUNTS, seed=experiment.training.seed)
    if known is None or not known.is_file():
        text = first_says(made.vocabulary.to_json())
    else:
        text = known.read_text(encoding="utf-8")
    return with_vocabulary(made, Vocabulary(text, lowercase=False, split=False))


def open_translation(
    folder: str | Path, experiment: TranslationExperiment, known: Path | None
) -> TranslationData:
    """Open the train and val pairs of a folder, with the `known` vocabulary or one of its train pairs.

    With `training.evaluate_every` = 0 the val pairs are not needed.

    Raises:
        DataError: a file is missing or broken, or holds nothing to learn from.
    """
    config = experiment.data
    languages = (config.source_language, config.target_language)
    pairs = read_pairs(folder, "train", *languages)
    if known is not None and known.is_file():
        vocabulary = Vocabulary(
            known.read_text(encoding="utf-8"), lowercase=config.lowercase, split=config.split_words
        )
    else:
        vocabulary = _learn(pairs, experiment)
    if experiment.training.evaluate_every > 0:
        validation = read_pairs(folder, "val", *languages)
    else:
        validation = Pairs(sources=(), targets=(), words=())
    sources = vocabulary.encode_all(validation.sources, config.source_language)
    return TranslationData(
        name=Path(folder).resolve().name,
        vocabulary=vocabulary,
        casing=_casing(pairs, config) if config.lowercase else AS_WRITTEN,
        training=encode_pairs(pairs, vocabulary, config),
        validation=[torch.tensor([*source[: config.longest - 1], SPECIAL.end]) for source in sources],
        truth=validation.words,
    )


def _learn(pairs: Pairs, experiment: TranslationExperiment) -> Vocabulary:
    """Learn one vocabulary for both languages; all processes get that of the first one."""
    config = experiment.data
    lines = [(line, config.source_language) for line in pairs.sources]
    lines += [(line, config.target_language) for line in pairs.targets]
    words = (split_words(*line) if config.split_words else line[0] for line in lines)
    learned = learn_vocabulary(words, config.vocabulary, lowercase=config.lowercase, split=config.split_words)
    return Vocabulary(first_says(learned.to_json()), lowercase=config.lowercase, split=config.split_words)


def _casing(pairs: Pairs, config: TextConfig) -> Casing:
    """Learn how the words that the model writes are cased in the targets."""
    lines = pairs.targets
    if config.split_words:
        lines = tuple(split_words(line, config.target_language) for line in lines)
    return learn_casing(lines)
