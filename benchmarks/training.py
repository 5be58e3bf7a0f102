"""A training step: forward pass, matching and losses, backward pass, optimiser."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.settings import (
    CLASSES,
    Case,
    Outcome,
    Settings,
    case_details,
    case_table,
    peak_or_none,
    progress,
    reason,
)
from unimask.benchmark.measure import MEGABYTE, example_picture
from unimask.benchmark.memory import Peak, measure_peak
from unimask.benchmark.tables import Table
from unimask.benchmark.timing import Rounds, Stopwatch, interleave
from unimask.checkpoints.images import load_model
from unimask.config.training import LossConfig
from unimask.losses.build import build_criterion
from unimask.models.memory import spare_memory
from unimask.structures import Segments, Size
from unimask.training.step import uniform_source

SIDES = ("transformers", "unimask")
RATE = 1e-6  # so that many steps on the same pictures change little


@dataclass(frozen=True, kw_only=True)
class Work:
    size: Size
    batch: int
    segments: int  # in each picture
    rounds: int = 3  # on the CPU
    first: Size = (64, 64)  # of the step that makes gradients and the optimiser's state

    @property
    def name(self) -> str:
        return f"{self.size[0]} x {self.size[1]}, batch {self.batch}, {self.segments} segments"


CASES = (
    Work(size=(512, 512), batch=2, segments=10),
    Work(size=(512, 512), batch=2, segments=30),
    Work(size=(1024, 1024), batch=1, segments=100, rounds=2),
)
SCALING = tuple(Work(size=(512, 512), batch=1, segments=count) for count in (10, 100, 300))
QUICK_CASES = (Work(size=(96, 128), batch=2, segments=7),)
QUICK_SCALING = tuple(Work(size=(96, 128), batch=1, segments=count) for count in (3, 30))


def id_map(work: Work) -> Tensor:
    """(1, height, width) int16: a checkerboard of as many cells as segments, with gaps between them."""
    columns = -(-work.segments // max(1, int(work.segments**0.5)))
    rows = -(-work.segments // columns)
    height, width = work.size
    y, x = torch.arange(height)[:, None] * rows / height, torch.arange(width)[None] * columns / width
    numbers = y.floor() * columns + x.floor() + 1
    gap = (y.frac() > 0.9) | (x.frac() > 0.9) | (numbers > work.segments)
    return numbers.masked_fill(gap, 0).to(torch.int16)[None]


def pictures(work: Work, device: torch.device) -> Tensor:
    pixels = (example_picture(work.size).float() - 127.5) / 64
    return pixels.expand(work.batch, -1, -1, -1).contiguous().to(device)


Step = Callable[[], float]
"""One step; the loss comes out."""

Trainer = Callable[[Work], Step]
"""Makes the batch, in the form that its library wants, and gives the step on it."""


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], RATE)


def freeze_norms(model: nn.Module) -> None:
    """As ours are: statistics and weights stay."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)


def their_trainer(folder: Path, settings: Settings) -> Trainer:
    from transformers import AutoModelForUniversalSegmentation

    device = settings.torch_device
    model = AutoModelForUniversalSegmentation.from_pretrained(folder).train().to(device)
    freeze_norms(model)
    optimizer = _optimizer(model)

    def prepare(work: Work) -> Step:
        pixels = pictures(work, device)
        numbers = torch.arange(1, work.segments + 1)[:, None, None]
        masks = [(id_map(work) == numbers).float().to(device) for _ in range(work.batch)]
        labels = [(torch.arange(work.segments) % CLASSES).to(device) for _ in range(work.batch)]

        def step() -> float:
            optimizer.zero_grad(set_to_none=True)
            with settings.autocast():
                loss = model(pixel_values=pixels, mask_labels=masks, class_labels=labels).loss
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        return step

    return prepare


def our_trainer(folder: Path, settings: Settings) -> Trainer:
    device = settings.torch_device
    model, _ = load_model(folder, device)
    model = model.train().to(memory_format=torch.channels_last)
    if device.type == "cpu":
        spare_memory(model)
    optimizer = _optimizer(model)
    criterion = build_criterion(LossConfig(), CLASSES).to(device)
    uniform = uniform_source(0, device)

    def prepare(work: Work) -> Step:
        pixels = pictures(work, device).to(memory_format=torch.channels_last)
        target = Segments(
            layers=id_map(work).to(device),
            labels=(torch.arange(work.segments) % CLASSES).to(device),
            scores=torch.ones(work.segments, device=device),
            is_crowd=torch.zeros(work.segments, dtype=torch.bool, device=device),
        )

        def step() -> float:
            optimizer.zero_grad(set_to_none=True)
            with settings.autocast():
                loss = criterion(model(pixels), (target,) * work.batch, uniform).total
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        return step

    return prepare


TRAINERS: dict[str, Callable[[Path, Settings], Trainer]] = {
    SIDES[0]: their_trainer,
    SIDES[1]: our_trainer,
}


def peak_of(side: str, folder: Path, work: Work, settings: Settings) -> Peak:
    """The peak of a step with its batch, above weights, gradients and the optimiser's state."""
    torch.set_num_threads(settings.threads)
    trainer = TRAINERS[side](folder, settings)
    trainer(Work(size=work.first, batch=1, segments=3))()
    return measure_peak(lambda: trainer(work)(), settings.torch_device)


def run(settings: Settings) -> Outcome:
    from benchmarks.models import (
        random_model,
    )  # not in the processes that measure peaks: it takes transformers

    torch.set_num_threads(settings.threads)
    cases, scaling = (QUICK_CASES, QUICK_SCALING) if settings.quick else (CASES, SCALING)
    with random_model("R50", cases[0].size) as folders:
        where = dict(zip(SIDES, (folders.theirs, folders.ours), strict=True))
        found = steps_of(where, cases, settings)
        peaks = [peak_or_none(peak_of, SIDES[1], where[SIDES[1]], work, settings) for work in scaling]
    table = step_table("R50", found, settings)
    scaled = Table(
        title=f"Training step, R50, {settings.precision}: memory by segments",
        about="Ours alone; growth is compared with the first row.",
        columns=("case", "peak MB", "growth"),
        rows=tuple(
            (work.name, round(peak.above / MEGABYTE, 1), f"{peak.above / peaks[0].above - 1:+.1%}")
            for work, peak in zip(scaling, peaks, strict=True)
        ),
    )
    growth = {work.name: peak.above for work, peak in zip(scaling, peaks, strict=True)}
    return Outcome(
        tables=(table, scaled), details={**case_details(found), "scaling_peak_bytes_above": growth}
    )


def steps_of(where: dict[str, Path], cases: Sequence[Work], settings: Settings) -> list[Case]:
    """Times and peaks of the steps of both sides, whose folders are given."""
    timed = [_time(work, where, settings) for work in cases]
    progress("training, peaks of memory")
    return [
        Case(
            name=work.name,
            rounds=rounds,
            remarks=losses,
            peaks={s: peak_or_none(peak_of, s, where[s], work, settings) for s in SIDES},
        )
        for work, (rounds, losses) in zip(cases, timed, strict=True)
    ]


def step_table(kind: str, found: Sequence[Case], settings: Settings) -> Table:
    return case_table(
        f"Training step, {kind}, {settings.precision}",
        "Peak: of the step and its batch, above weights, gradients and optimiser state. Points of the losses "
        "are random on both sides, so losses agree roughly.",
        "loss of the first step",
        found,
    )


def _time(work: Work, where: dict[str, Path], settings: Settings) -> tuple[Rounds, dict[str, str]]:
    """The times of the sides, and the loss of each one's first step, which is not timed, or why it failed."""
    progress(f"training, {work.name}")
    device = settings.torch_device
    steps: dict[str, Step] = {}
    said: dict[str, str] = {}
    for side in SIDES:
        try:
            step = TRAINERS[side](where[side], settings)(work)
            said[side] = f"{step():.3f}"
            steps[side] = step
        except Exception as error:  # the other side is measured nevertheless
            said[side] = reason(error)

    def run_of(side: str, watch: Stopwatch) -> None:
        with watch.stage("step"):
            steps[side]()

    runs = {side: (lambda watch, side=side: run_of(side, watch)) for side in steps}
    rounds = 1 if settings.quick else work.rounds if settings.device == "cpu" else 20
    warm_up = 0 if settings.device == "cpu" else 2
    return interleave(runs, device, rounds=rounds, warm_up=warm_up, clock=settings.clock), said
