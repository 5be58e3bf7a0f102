"""Train models that read a sequence and write tokens."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from unimask.checkpoints.images import resolve_weights
from unimask.checkpoints.text import (
    VOCABULARY_NAME,
    SequenceModelFile,
    load_sequence_model,
    save_sequence_model,
)
from unimask.config.text import TranslationExperiment, translation_to_dict
from unimask.config.training import TrainingConfig, warnings_of_settings
from unimask.data.text.loader import training_batches
from unimask.data.text.vocabulary import SPECIAL
from unimask.errors import ConfigError
from unimask.files import write_text
from unimask.inference.translator import greedy, write_all
from unimask.losses.criterion import Average
from unimask.losses.tokens import TokenCriterion
from unimask.metrics.bleu import LineMetrics
from unimask.models.build_text import build_sequence_model
from unimask.models.seq2seq import Seq2Seq
from unimask.results.gallery import spread
from unimask.structures import SequenceBatch
from unimask.training.job import Drawing
from unimask.training.run_folder import RunFolder
from unimask.training.step import to_device, to_report
from unimask.training.text_data import SequenceData

MOST_LINES = 12  # of an evaluation that are shown


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
        """Return the settings of the loop."""
        return self.experiment.training

    @property
    def source(self) -> str:
        """Return data and number of pairs."""
        return f"{self.data.name} ({len(self.data.training)} pairs)"

    def describe(self) -> dict[str, object]:
        """Return what identifies the run, ready for JSON."""
        return {
            "task": "sequences",
            "data": self.data.name,
            "images": len(self.data.training),  # pairs: the name is that of the file's format
            "categories": [],
            "experiment": translation_to_dict(self.experiment),
        }

    def begin(self, folder: RunFolder, say: Callable[[str], None]) -> None:
        """Write the vocabulary, which cannot be learned again (see `learn_vocabulary`)."""
        for sentence in warnings_of_settings(self.training):
            say(f"warning: {sentence}")
        if not folder.vocabulary.exists():
            write_text(folder.vocabulary, self.data.vocabulary.to_json())

    def build(self) -> nn.Module:
        """Build the model with random weights."""
        return build_sequence_model(self.experiment.model, len(self.data.vocabulary))

    def initialise(self, model: nn.Module, say: Callable[[str], object]) -> str:
        """Keep the random weights, or take those of another model with the same vocabulary; return which."""
        if self.initial is None:
            return "random"
        other, about = load_sequence_model(resolve_weights(self.initial))
        same = about.experiment.model == self.experiment.model
        if not same or about.vocabulary.to_json() != self.data.vocabulary.to_json():
            raise ConfigError(
                "initial",
                f"{self.initial} has another model or vocabulary than this training; take its settings, and "
                f"copy its {VOCABULARY_NAME} into the output folder, with --resume",
            )
        model.load_state_dict(other.state_dict())
        return f"the model {Path(self.initial).name}"

    def stream(
        self, *, start_step: int, rank: int, world: int, pin_memory: bool
    ) -> Generator[SequenceBatch, None, None]:
        """Return endless batches of about equal length; they are too small to gain from pinned memory."""
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
        """Return the number of target tokens."""
        return self.targets(batches)

    def targets(self, batches: Sequence[SequenceBatch]) -> int:
        """Return the number of target tokens."""
        return sum(int(batch.target_valid.sum()) for batch in batches)

    def criterion(
        self, device: torch.device, average: Average
    ) -> Callable[[SequenceBatch, int, int], "LossOfSequences"]:
        """Return the function that computes the cross-entropy of the next token."""
        criterion = TokenCriterion(self.experiment.losses.label_smoothing, average)

        def measure(batch: SequenceBatch, step: int, seed: int) -> LossOfSequences:
            return LossOfSequences(to_device(batch, device), criterion)

        return measure

    def evaluate(
        self, model: nn.Module, progress: Callable[[int, int], None], *, rank: int, world: int
    ) -> LineMetrics:
        """Return BLEU over this process's share of the val pairs, with greedy decoding."""
        share = range(rank, len(self.data.validation), world)
        sources = [self.data.validation[index] for index in share]
        written = write_all(cast(Seq2Seq, model), sources, SPECIAL, greedy(self.experiment.decoding))
        metrics = LineMetrics()
        for index, one in zip(share, written, strict=True):
            metrics.update(self.data.vocabulary.words(one.tokens), self.data.truth[index])
        progress(len(sources), len(sources))
        return metrics

    def draw(self, share: LineMetrics, step: int) -> Drawing:
        """Return some lines and their references."""
        lines = [
            {"reference": share.truth[index], "translation": share.results[index]}
            for index in spread(len(share.truth), MOST_LINES)
        ]
        return Drawing(images={}, tables={"translations": {"lines": lines}})

    def headline(self, values: Mapping[str, float | None]) -> str:
        """Return BLEU and the share of lines that equal the reference."""
        return f"BLEU {values['BLEU']:.2f} (greedy)  exact {values['exact']:.4f}"

    def save(self, folder: Path, model: nn.Module, provenance: str) -> None:
        """Write a model folder."""
        about = SequenceModelFile(
            experiment=self.experiment,
            vocabulary=self.data.vocabulary,
            casing=self.data.casing,
            special=SPECIAL,
            licence=self.licence,
            provenance=provenance,
        )
        save_sequence_model(folder, cast(Seq2Seq, model), about)


class LossOfSequences:
    """Call the model on a batch and measure the loss of its tokens, without padding."""

    def __init__(self, batch: SequenceBatch, criterion: TokenCriterion) -> None:
        self.batch = batch
        self.criterion = criterion

    def __call__(self, model: nn.Module) -> dict[str, Tensor]:
        """Return `total`, and each term."""
        sequence_model, batch = cast(Seq2Seq, model), self.batch
        states = sequence_model(batch.source, batch.source_valid, shifted(batch.target))
        valid = batch.target_valid
        embedding = sequence_model.embedding
        losses = self.criterion(states[valid], embedding.weight, embedding.bias, batch.target[valid])
        return to_report(losses)

    def problem(self) -> str:
        """Return the names of the pairs whose loss is not finite."""
        names = self.batch.names
        return f"the loss of {', '.join(names[:5])}{' and others' if len(names) > 5 else ''}"


def shifted(target: Tensor) -> Tensor:
    """Return the decoder's input for a target: the begin token, then the target without its last place."""
    return torch.cat((torch.full_like(target[:, :1], SPECIAL.begin), target[:, :-1]), dim=1)
