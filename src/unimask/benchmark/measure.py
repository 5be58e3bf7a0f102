"""One model on this machine: time of each stage, peak memory, and how far other sides are from it."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from unimask.benchmark.memory import (
    NOT_DONE,
    Peak,
    in_fresh_process,
    measure_peak,
    peak_in_fresh_process,
)
from unimask.benchmark.sides import (
    FULL,
    STAGES,
    LogitAgreement,
    Pipeline,
    Side,
    UnimaskSide,
    agreement,
)
from unimask.benchmark.tables import Cell, Table, share
from unimask.benchmark.timing import TOTAL, Clock, Rounds, Stopwatch, interleave
from unimask.benchmark.transformers_side import exported, side_like
from unimask.checkpoints.images import load_model_file
from unimask.config.tasks import Task
from unimask.conversion.hub import find_model
from unimask.data.formats.shapes import shapes_dataset
from unimask.errors import ConfigError
from unimask.machine import describe_machine, find_device
from unimask.structures import Size

MEGABYTE = 2**20
_WARM_UP_SIZE = (64, 96)  # loads code and makes threads, but no large memory
_PREDICTIONS = 2  # whose peak is measured: the second could hold more than the first


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """On what all sides run."""

    size: Size  # of the image that the model sees
    device: str  # cpu, cuda, ...
    threads: int  # on the CPU
    rounds: int
    warm_up: int = 1
    processes: int = 0  # fresh ones, each with so many rounds; 0: this one
    clock: Clock = "wall"


@dataclass(frozen=True, kw_only=True)
class ModelMeasurement:
    """What was measured of several sides on the same image."""

    sides: tuple[str, ...]  # the first is the one that the others are compared with
    rounds: Rounds
    agreements: Mapping[str, LogitAgreement]  # of each other side with the first
    peaks: Mapping[str, Peak]
    segments: Mapping[str, int]  # how many each found


def example_picture(size: Size) -> UInt8[Tensor, "3 height width"]:
    """Return a generated image, always the same one of a size."""
    return shapes_dataset(size=size, count=1, seed=0)[0].image


@dataclass(frozen=True, kw_only=True)
class _Timed:
    """What one process measured."""

    rounds: Rounds
    agreements: Mapping[str, LogitAgreement]
    segments: Mapping[str, int]


def measure(sides: Sequence[Side], conditions: Conditions) -> ModelMeasurement:
    """Compare logits first, then take times in turn, then each side's peak in a new process.

    How fast a side is depends also on what the allocator of its process does, as long as it lives: several
    processes tell more than many rounds of one.

    Raises:
        WeightsError, ConfigError: a side cannot be loaded.
    """
    timed = [in_fresh_process(_take_times, sides, conditions) for _ in range(conditions.processes)]
    timed = timed or [_take_times(sides, conditions)]
    return ModelMeasurement(
        sides=tuple(side.name for side in sides),
        rounds=Rounds.joined([one.rounds for one in timed]),
        agreements=timed[0].agreements,
        peaks={side.name: peak_in_fresh_process(peak_of_side, side, conditions) for side in sides},
        segments=timed[0].segments,
    )


def _take_times(sides: Sequence[Side], conditions: Conditions) -> _Timed:
    torch.set_num_threads(conditions.threads)
    device = find_device(conditions.device)
    image = example_picture(conditions.size)
    pipelines = {side.name: side.load(conditions.device) for side in sides}
    agreements = _compare(pipelines, image)
    segments: dict[str, int] = {}

    def run_of(name: str, watch: Stopwatch) -> None:
        segments[name] = pipelines[name].run(image, watch)

    runs = {name: (lambda watch, name=name: run_of(name, watch)) for name in pipelines}
    rounds = interleave(
        runs, device, rounds=conditions.rounds, warm_up=conditions.warm_up, clock=conditions.clock
    )
    return _Timed(rounds=rounds, agreements=agreements, segments=segments)


def _compare(
    pipelines: Mapping[str, Pipeline], image: UInt8[Tensor, "3 height width"]
) -> dict[str, LogitAgreement]:
    first, *others = pipelines
    scaled = (image.float()[None] - 127.5) / 64
    expected = pipelines[first].logits(scaled)
    return {name: agreement(pipelines[name].logits(scaled), expected) for name in others}


def peak_of_side(side: Side, conditions: Conditions) -> Peak:
    """Return the peak of predictions in this process, above what it holds once the model is loaded.

    Every weight is read before, since files may be mapped into memory page by page.
    """
    torch.set_num_threads(conditions.threads)
    device = find_device(conditions.device)
    pipeline = side.load(conditions.device)
    for tensor in (*pipeline.model.parameters(), *pipeline.model.buffers()):
        if not tensor.is_mkldnn:  # those were read when they were put into another order
            tensor.sum()
    pipeline.run(example_picture(_WARM_UP_SIZE), Stopwatch(device))
    image = example_picture(conditions.size)

    def predict() -> None:
        for _ in range(_PREDICTIONS):
            pipeline.run(image, Stopwatch(device))

    return measure_peak(predict, device)


COLUMNS = (
    "side",
    *(f"{stage} ms" for stage in (*STAGES, TOTAL)),
    "peak MB",
    "forward ratio",
    "total ratio",
    "memory ratio",
    "class logits",
    "mask logits",
    "mask IoU",
)
_ABOUT_COMPARED = (
    "Ratios are with the first side: the median over the rounds of its time by this one's, and this one's "
    "memory as a share of its. Logits: the largest difference from the first side's on the same pixels; IoU: "
    "of the masks of queries that found something."
)


def rows_of(measured: ModelMeasurement) -> tuple[tuple[Cell, ...], ...]:
    """Return a row for each side, with the cells of `COLUMNS`."""
    first, rounds = measured.sides[0], measured.rounds
    rows: list[tuple[Cell, ...]] = []
    for name in measured.sides:
        times = [
            " / ".join(f"{1000 * rounds.percentile(name, stage, percent):.0f}" for percent in (50, 95))
            for stage in (*STAGES, TOTAL)
        ]
        peak = measured.peaks.get(name, NOT_DONE).above
        compared: tuple[Cell, ...] = ("", "", "", "", "", "")
        if name != first:
            close = measured.agreements[name]
            compared = (
                f"{rounds.ratio(name, first, 'forward'):.2f}",
                f"{rounds.ratio(name, first, TOTAL):.2f}",
                share(peak, measured.peaks[first].above),
                f"{close.class_difference:.1e}",
                f"{close.mask_difference:.1e}",
                f"{close.mask_iou:.4f}",
            )
        rows.append((name, *times, round(peak / MEGABYTE, 1), *compared))
    return tuple(rows)


def about(measured: ModelMeasurement) -> str:
    """Return what the cells say."""
    count = len(measured.rounds.seconds[measured.sides[0]][TOTAL])
    text = f"Milliseconds are p50 / p95 over {count} rounds. Peak: memory above the loaded model."
    return text if len(measured.sides) == 1 else f"{text} {_ABOUT_COMPARED}"


def to_table(title: str, measured: ModelMeasurement) -> Table:
    """Return the table of one measurement."""
    return Table(title=title, about=about(measured), columns=COLUMNS, rows=rows_of(measured))


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A model on this machine."""

    weights: str
    conditions: Conditions
    task: Task
    machine: Mapping[str, object]
    measured: ModelMeasurement


def bench(
    weights: str | Path,
    *,
    size: Size,
    task: Task | None = None,
    device: str = "auto",
    precision: str = FULL,
    threads: int = 0,
    rounds: int = 10,
    compare: str = "",
) -> Bench:
    """Measure how fast and lean a model is on an image of `size`, which it sees in one piece and unresized.

    `task` is the one that the model was trained for unless another is named.
    With a reduced precision the full one is measured too. `compare="transformers"` measures the same weights
    in Hugging Face transformers beside it. `threads` 0 leaves PyTorch its own choice.

    Raises:
        WeightsError: there is no such model, or transformers has none like it.
        ConfigError: the size does not fit the model's canvas, something else is impossible, or transformers
            is not installed.
    """
    folder = find_model(weights)
    model_file = load_model_file(folder)
    task = task or model_file.task
    _check(size, model_file.experiment.data.divisor, threads, rounds, compare)
    chosen = find_device(device)
    conditions = Conditions(
        size=size, device=str(chosen), threads=threads or torch.get_num_threads(), rounds=rounds
    )
    precisions = dict.fromkeys((FULL, precision))
    sides: list[Side] = [UnimaskSide(folder=folder, task=task, precision=one) for one in precisions]
    with exported(folder) if compare else nullcontext(folder) as theirs:
        if compare:
            sides.insert(0, side_like(model_file, theirs, task))
        measured = measure(sides, conditions)
    return Bench(
        weights=str(weights),
        conditions=conditions,
        task=task,
        machine=describe_machine(chosen),
        measured=measured,
    )


def _check(size: Size, divisor: int, threads: int, rounds: int, compare: str) -> None:
    if min(size) < 1 or any(side % divisor for side in size):
        raise ConfigError(
            "size", f"{size[0]}x{size[1]}: both sides must be multiples of {divisor} (data.divisor), above 0"
        )
    if threads < 0:
        raise ConfigError("threads", f"must be at least 1, or 0 for PyTorch's own choice; got {threads}")
    if rounds < 1:
        raise ConfigError("rounds", f"must be at least 1; got {rounds}")
    if compare not in ("", "transformers"):
        raise ConfigError("compare", f"{compare!r} is not known; there is: transformers")


def to_plain(found: Bench) -> dict[str, object]:
    """Return all that was measured as plain values, ready for JSON: every round, in seconds and bytes."""
    measured = found.measured
    return {
        "weights": found.weights,
        "task": found.task,
        "size": list(found.conditions.size),
        "device": found.conditions.device,
        "threads": found.conditions.threads,
        **found.machine,
        "sides": {name: plain_side(measured, name) for name in measured.sides},
    }


def plain_side(measured: ModelMeasurement, name: str) -> dict[str, object]:
    """Return what was measured of one side, as plain values."""
    peak = measured.peaks.get(name, NOT_DONE)
    close = measured.agreements.get(name)
    return {
        "seconds": {stage: list(times) for stage, times in measured.rounds.seconds[name].items()},
        "peak_bytes_above": None if peak is NOT_DONE or peak.above != peak.above else peak.above,
        "segments": measured.segments[name],
        "difference": None
        if close is None
        else {
            "class_logits": close.class_difference,
            "mask_logits": close.mask_difference,
            "mask_iou": close.mask_iou,
        },
    }
