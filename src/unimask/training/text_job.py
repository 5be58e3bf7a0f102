"""Training of models that read a sequence and write tokens."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

import unimask
from unimask.checkpoints.text import (
    VOCABULARY_NAME,
    SequenceModelFile,
    load_sequence_model,
    save_sequence_model,
)
from unimask.config.images import TrainingConfig
from unimask.config.text import TranslationExperiment, translation_to_dict
from unimask.data.text.glyphs import FEATURES, glyph_data, with_vocabulary
from unimask.data.text.loader import SequencePair, encode_pairs, training_batches
from unimask.data.text.pairs import Pairs, read_pairs
from unimask.data.text.vocabulary import SPECIAL, Vocabulary, learn_vocabulary
from unimask.data.text.words import split_words
from unimask.errors import ConfigError
from unimask.files import write_text
from unimask.inference.translator import greedy, write_all
from unimask.losses.criterion import Average
from unimask.losses.tokens import TokenCriterion
from unimask.machine import command_line
from unimask.metrics.bleu import LineMetrics
from unimask.models.build import build_sequence_model
from unimask.models.seq2seq import Seq2Seq
from unimask.processes import first_says
from unimask.structures import Losses, SequenceBatch
from unimask.training.job import Job
from unimask.training.loop import Machines, run_job
from unimask.training.progress import Reporter
from unimask.training.result import TrainingResult

GLYPHS = "glyphs"
GLYPH_COUNTS = (4000, 200)
"""Lines to learn from, and to measure on, that are made where the data is the word glyphs."""


@runtime_checkable
class SequenceData(Protocol):
    """What a model learns from and is measured on, as sequences."""

    @property
    def name(self) -> str:
        """Where it comes from, for the provenance of the weights."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens that are written."""

    @property
    def training(self) -> Sequence[SequencePair]:
        """The pairs to learn from."""

    @property
    def validation(self) -> Sequence[Tensor]:
        """The sources to measure on."""

    @property
    def truth(self) -> Sequence[str]:
        """What they should become, as words with blanks between them."""


@dataclass(frozen=True, kw_only=True)
class TranslationData:
    """Lines and their translations, as tokens."""

    name: str
    vocabulary: Vocabulary
    training: Sequence[SequencePair]
    validation: Sequence[Tensor]
    truth: Sequence[str]


def open_sequences(data: str | Path, experiment: TranslationExperiment, known: Path | None) -> SequenceData:
    """The pairs of a folder (`open_translation`), or generated ones where `data` is the word glyphs.

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
    """The train and val pairs of a folder, with a vocabulary of its train pairs, or the `known` one.

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
        training=encode_pairs(pairs, vocabulary, config),
        validation=[torch.tensor([*source[: config.longest - 1], SPECIAL.end]) for source in sources],
        truth=validation.words,
    )


def _learn(pairs: Pairs, experiment: TranslationExperiment) -> Vocabulary:
    """One vocabulary for both languages; all processes have that of the first one."""
    config = experiment.data
    lines = [(line, config.source_language) for line in pairs.sources]
    lines += [(line, config.target_language) for line in pairs.targets]
    words = (split_words(*line) if config.split_words else line[0] for line in lines)
    learned = learn_vocabulary(words, config.vocabulary, lowercase=config.lowercase, split=config.split_words)
    return Vocabulary(first_says(learned.to_json()), lowercase=config.lowercase, split=config.split_words)


def train_translation(
    experiment: TranslationExperiment,
    data: str | Path,
    output: str | Path,
    *,
    resume: bool = False,
    initial: str | Path | None = None,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    reporter: Reporter | None = None,
    licence: str = "not stated",
) -> TrainingResult:
    """Trains a translator on the pairs of a folder, or a reader of glyphs; all else is as in `loop.train`.

    `training.batch_size` counts tokens here: a pass holds so many, of source or target, whichever are more.
    While it trains, BLEU is measured with greedy decoding, which is faster than a beam and a little lower.

    Raises:
        DataError, ConfigError, WeightsError, TrainingError: see `loop.train`.
    """
    known = Path(output) / VOCABULARY_NAME if resume else None

    def open_job() -> Job[Any]:
        opened = open_sequences(data, experiment, known)
        job = SequenceJob(experiment=experiment, data=opened, initial=initial, licence=licence)
        return cast(Job[Any], job)

    machines = Machines(device=device, devices=devices, nodes=nodes)
    return run_job(open_job, experiment.training, machines, output, resume=resume, reporter=reporter)


@dataclass(frozen=True, kw_only=True)
class SequenceJob:
    """A `Job` on sequences."""

    experiment: TranslationExperiment
    data: SequenceData
    initial: str | Path | None
    licence: str
    unit: str = field(default="tokens", init=False)  # of targets
    primary_metric: str = field(default="BLEU", init=False)

    @property
    def training(self) -> TrainingConfig:
        """The settings of the loop."""
        return self.experiment.training

    @property
    def source(self) -> str:
        """Data and number of pairs."""
        return f"{self.data.name} ({len(self.data.training)} pairs)"

    def describe(self) -> dict[str, object]:
        """What names the run, ready for JSON."""
        return {
            "unimask": unimask.__version__,
            "command": command_line(),
            "task": "sequences",
            "data": self.data.name,
            "pictures": len(self.data.training),  # pairs: the name is that of the file's format
            "categories": [],
            "experiment": translation_to_dict(self.experiment),
        }

    def keep(self, folder: Path) -> None:
        """The vocabulary, which cannot be learned again (`data/text/vocabulary.py:learn_vocabulary`)."""
        if not (folder / VOCABULARY_NAME).exists():
            write_text(folder / VOCABULARY_NAME, self.data.vocabulary.to_json())

    def build(self) -> nn.Module:
        """The model with random weights."""
        return build_sequence_model(self.experiment.model, len(self.data.vocabulary))

    def initialise(self, model: nn.Module) -> str:
        """Random weights stay; those of another model need its vocabulary."""
        if self.initial is None:
            return "random"
        other, about = load_sequence_model(Path(self.initial))
        same = about.experiment.model == self.experiment.model
        if not same or about.vocabulary.to_json() != self.data.vocabulary.to_json():
            raise ConfigError(
                "initial",
                f"{self.initial} has another model or vocabulary than this training; take its settings, and "
                f"copy its {VOCABULARY_NAME} into the output folder, with --resume",
            )
        model.load_state_dict(other.state_dict())
        return f"the model {Path(self.initial).name}"

    def stream(self, *, start_step: int, rank: int, world: int, pin_memory: bool) -> Iterator[SequenceBatch]:
        """Batches of about equal length. (They are small: pinned memory would gain nothing.)"""
        config = self.training
        return training_batches(
            self.data.training,
            budget=config.batch_size // (world * config.accumulate),
            seed=config.seed,
            start_step=start_step,
            rank=rank,
            world=world,
        )

    def items(self, batches: Sequence[SequenceBatch]) -> int:
        """Tokens of targets."""
        return self.targets(batches)

    def targets(self, batches: Sequence[SequenceBatch]) -> int:
        """Tokens of targets."""
        return sum(int(batch.target_valid.sum()) for batch in batches)

    def criterion(
        self, device: torch.device, average: Average
    ) -> Callable[[SequenceBatch, int, int], "LossOfSequences"]:
        """Cross-entropy of the next token."""
        criterion = TokenCriterion(self.experiment.losses.label_smoothing, average)

        def measure(batch: SequenceBatch, step: int, seed: int) -> LossOfSequences:
            return LossOfSequences(_to_device(batch, device), criterion)

        return measure

    def evaluate(
        self, model: nn.Module, progress: Callable[[int, int], None], *, rank: int, world: int
    ) -> LineMetrics:
        """BLEU over this process's share of the val pairs, with greedy decoding."""
        was_training = model.training
        model.eval()
        try:
            share = range(rank, len(self.data.validation), world)
            sources = [self.data.validation[index] for index in share]
            decoding = greedy(self.experiment.decoding)
            written = write_all(cast(Seq2Seq, model), sources, SPECIAL, decoding)
            metrics = LineMetrics()
            for index, one in zip(share, written, strict=True):
                metrics.update(self.data.vocabulary.words(one.tokens), self.data.truth[index])
            progress(len(sources), len(sources))
            return metrics
        finally:
            model.train(was_training)

    def headline(self, values: Mapping[str, float]) -> str:
        """BLEU, and how many lines are the truth to the letter."""
        return f"BLEU {values['BLEU']:.2f} (greedy)  exact {values['exact']:.4f}"

    def save(self, folder: Path, model: nn.Module, provenance: str) -> None:
        """Writes a model folder."""
        about = SequenceModelFile(
            experiment=self.experiment,
            vocabulary=self.data.vocabulary,
            special=SPECIAL,
            licence=self.licence,
            provenance=provenance,
        )
        save_sequence_model(folder, cast(Seq2Seq, model), about)


class LossOfSequences:
    """Calls the model on a batch and measures the loss of the tokens that are there."""

    def __init__(self, batch: SequenceBatch, criterion: TokenCriterion) -> None:
        self.batch = batch
        self.criterion = criterion
        self.seen: Losses | None = None

    def __call__(self, model: nn.Module) -> dict[str, Tensor]:
        """`total`, and each term."""
        sequence_model, batch = cast(Seq2Seq, model), self.batch
        states = sequence_model(batch.source, batch.source_valid, shifted(batch.target))
        valid = batch.target_valid
        embedding = sequence_model.embedding
        losses = self.criterion(states[valid], embedding.weight, embedding.bias, batch.target[valid])
        self.seen = losses
        return {"total": losses.total, **{name: values[-1].detach() for name, values in losses.terms.items()}}

    def problem(self) -> str:
        """The loss of which pairs."""
        names = self.batch.names
        return f"the loss of {', '.join(names[:5])}{' and others' if len(names) > 5 else ''}"


def shifted(target: Tensor) -> Tensor:
    """What the decoder reads to write the target: the begin token, then all of it but its last place."""
    return torch.cat((torch.full_like(target[:, :1], SPECIAL.begin), target[:, :-1]), dim=1)


def _to_device(batch: SequenceBatch, device: torch.device) -> SequenceBatch:
    if device.type == "cpu":
        return batch
    tensors = {
        name: getattr(batch, name).to(device, non_blocking=True)
        for name in ("source", "source_valid", "target", "target_valid")
    }
    return dataclasses.replace(batch, **tensors)
