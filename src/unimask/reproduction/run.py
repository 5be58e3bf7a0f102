"""Reproduce a row of a model zoo: convert its weights, measure them, compare with what was published."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from unimask.config.images import Experiment
from unimask.config.overrides import override
from unimask.config.tasks import Task
from unimask.conversion.run import read_model
from unimask.data.open import open_dataset
from unimask.errors import WeightsError
from unimask.inference.evaluation import evaluate
from unimask.inference.segmenter import Segmenter
from unimask.machine import describe_machine, find_device
from unimask.presets import PRESETS
from unimask.reproduction.table import ZooRow

Progress = Callable[[Task, int, int], object]
"""Called with the task that is measured, the images done and their number."""


@dataclass(frozen=True, kw_only=True)
class ReproducedMeasure:
    """A published number beside the measured one, in percent."""

    task: Task
    name: str
    published: float
    found: float  # NaN where there was nothing to measure
    tolerance: float

    @property
    def reproduced(self) -> bool:
        """Return whether the two differ by no more than the tolerance."""
        return abs(self.found - self.published) <= self.tolerance  # NaN is never near


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What came out for a row."""

    row: ZooRow
    measures: tuple[ReproducedMeasure, ...]
    images: int
    seconds: float
    machine: dict[str, object]

    @property
    def reproduced(self) -> bool:
        """Return whether every number was."""
        return all(measure.reproduced for measure in self.measures)


def reproduce(
    row: ZooRow,
    data: str | Path,
    *,
    weights: str | Path = "",
    base: Path | None = None,
    split: str = "val",
    device: str = "auto",
    batch_size: int = 1,
    progress: Progress = lambda task, done, total: None,
) -> Reproduction:
    """Convert the weights of a row, evaluate them on `data` for each task with published numbers, compare.

    `weights` is the file of the row, as it was downloaded (its digest is checked), or another form of the
    same weights (a folder of transformers, or a converted one); "" fetches those that are on the Hugging Face
    hub. How images are seen and predictions postprocessed comes from the row's preset, as the original does.

    Raises:
        WeightsError: the weights are not there, are others than the row's, or cannot be converted.
        DataError: the data cannot be read for a task.
        ConfigError: the model does not have a task of the row.
    """
    start = time.perf_counter()
    source = Path(weights).expanduser() if weights else None
    if source is None and not row.on_the_hub:
        raise WeightsError(row.weights, f"must be downloaded first; then give it with --weights {row.file}")
    if source is not None and source.is_file():
        check_digest(source, row.digest)
    model, about = read_model(source or row.weights, row.licence, base)
    about = replace(about, experiment=_as_published(about.experiment, row))
    segmenter = Segmenter(model, about, find_device(device))
    measures: list[ReproducedMeasure] = []
    images = 0
    for task, numbers in row.published.items():
        background = about.experiment.data.background
        dataset = open_dataset(data, split, task, background)
        images = len(dataset)
        found = evaluate(segmenter, dataset, task, partial(progress, task), batch_size=batch_size)
        for name, number in numbers.items():
            value = found.values[name]
            measures.append(
                ReproducedMeasure(
                    task=task,
                    name=name,
                    published=number,
                    found=float("nan") if value is None else 100 * value,
                    tolerance=row.tolerance,
                )
            )
    return Reproduction(
        row=row,
        measures=tuple(measures),
        images=images,
        seconds=time.perf_counter() - start,
        machine=describe_machine(segmenter.device),
    )


def _as_published(converted: Experiment, row: ZooRow) -> Experiment:
    """Return the experiment with the row's way to see images and to postprocess predictions."""
    if row.preset:
        preset = PRESETS[row.preset]()
        converted = replace(converted, data=preset.data, postprocess=preset.postprocess)
    return override(converted, row.settings)


def check_digest(file: Path, digest: str) -> None:
    """Check that a file is the one whose digest begins as stated (`md5:94dc52`); "" is any file.

    Raises:
        WeightsError: it is another, or was not downloaded completely.
    """
    if not digest:
        return
    kind, _, start = digest.partition(":")
    with file.open("rb") as content:
        found = hashlib.file_digest(content, kind).hexdigest()
    if not found.startswith(start):
        raise WeightsError(
            file, f"is not the published file, or not all of it: its {kind} is {found}, not {start}..."
        )
