"""What this library wants to reach beside transformers, and whether a run reached it."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unimask.benchmark.tables import Table, shown

Details = Mapping[str, Any]
"""The details of all suites of a run, by suite, as its JSON has them."""

THEIRS, OURS, REDUCED = "transformers", "unimask", "unimask bf16-mixed"
SMALL, LARGE = "640 x 640", "800 x 1088"
STEP = "512 x 512, batch 2, {} segments"
EOMT = ("EoMT-S", "EoMT-B")
EOMT_STEP = f"{SMALL}, batch 1, 10 segments"
CROWDED = "1024 x 1024, batch 1, 100 segments"


@dataclass(frozen=True, kw_only=True)
class Target:
    what: str
    least: float
    aim: float
    measured: Callable[[Details], float]  # KeyError, IndexError or TypeError where a run does not tell
    smaller: bool = False  # is better

    def reached(self, value: float, limit: float) -> bool:
        return value <= limit if self.smaller else value >= limit


def _faster(mine: list[float], theirs: list[float]) -> float:
    return statistics.median(other / own for own, other in zip(mine, theirs, strict=True))


def _forward(kind: str, size: str, side: str, suite: str = "inference") -> Callable[[Details], float]:
    def measured(details: Details) -> float:
        sides = details[suite][f"Inference, {kind}, {size}"]
        return _faster(sides[side]["seconds"]["forward"], sides[THEIRS]["seconds"]["forward"])

    return measured


def _inference_memory(kind: str, size: str, suite: str = "inference") -> Callable[[Details], float]:
    def measured(details: Details) -> float:
        sides = details[suite][f"Inference, {kind}, {size}"]
        return float(sides[OURS]["peak_bytes_above"] / sides[THEIRS]["peak_bytes_above"])

    return measured


def _case(suite: str, case: str, others: str) -> Callable[[Details], float]:
    def measured(details: Details) -> float:
        sides = details[suite][case]
        return _faster(sides[OURS]["seconds"], sides[others]["seconds"])

    return measured


def _memory(suite: str, case: str, others: str) -> Callable[[Details], float]:
    def measured(details: Details) -> float:
        sides = details[suite][case]
        return float(sides[OURS]["peak_bytes_above"] / sides[others]["peak_bytes_above"])

    return measured


def _growth(details: Details) -> float:
    peaks = list(details["training"]["scaling_peak_bytes_above"].values())
    return float(peaks[-1] / peaks[0] - 1)


def _reduced_iou(details: Details) -> float:
    return float(details["reduced"]["mean_iou"])


ORIGINAL = "original's algorithm"
MASKS = ("R50", "Swin-T")


def _forwards(kinds: Mapping[str, tuple[float, float]], suite: str = "inference") -> Iterator[Target]:
    """Yield the targets of forward passes in float32, given least and aim of each kind of model."""
    for kind, (least, aim) in kinds.items():
        what = f"{kind} {SMALL} forward, float32"
        yield Target(what=what, least=least, aim=aim, measured=_forward(kind, SMALL, OURS, suite))


def _reduced(kinds: Sequence[str], least: float, aim: float, suite: str = "inference") -> Iterator[Target]:
    """Yield the targets of forward passes in bfloat16."""
    for kind in kinds:
        what = f"{kind} {SMALL} forward, bf16 beside their float32"
        yield Target(what=what, least=least, aim=aim, measured=_forward(kind, SMALL, REDUCED, suite))


def _peaks(
    kinds: Sequence[str], sizes: Sequence[str], least: float, suite: str = "inference"
) -> Iterator[Target]:
    """Yield the targets of the memory of inference."""
    for kind in kinds:
        for size in sizes:
            what = f"{kind} {size} inference, peak memory above the weights"
            measured = _inference_memory(kind, size, suite)
            yield Target(what=what, least=least, aim=0.4, measured=measured, smaller=True)


def _speed(what: str, suite: str, case: str, least: float, aim: float, others: str = THEIRS) -> Target:
    return Target(what=what, least=least, aim=aim, measured=_case(suite, case, others))


def _lean(what: str, suite: str, case: str, least: float, aim: float, others: str = THEIRS) -> Target:
    return Target(what=what, least=least, aim=aim, measured=_memory(suite, case, others), smaller=True)


TARGETS = (
    *_forwards({"R50": (2.4, 3.0), "Swin-T": (1.9, 2.5)}),
    *_reduced(MASKS, 4.0, 5.0),
    Target(
        what="bf16 beside float32, trained model: mean IoU of masks",
        least=0.99,
        aim=0.99,
        measured=_reduced_iou,
    ),
    *_peaks(MASKS, (SMALL, LARGE), 0.55),
    *(
        _speed(f"{task} post-processing, 1080 x 1920", "postprocessing", task, least, 10.0, ORIGINAL)
        for task, least in (("panoptic", 5.0), ("instance", 4.0))
    ),
    *(
        _lean(f"{task} post-processing, peak memory", "postprocessing", task, 0.1, 0.1, ORIGINAL)
        for task in ("panoptic", "instance")
    ),
    *(_speed(f"training step, {step}", "training", step, 1.5, 2.0) for step in map(STEP.format, (10, 30))),
    _lean(f"training peak memory, {CROWDED}", "training", CROWDED, 1 / 3, 1 / 5),
    Target(
        what="training peak memory: growth from 10 to 300 segments",
        least=0.1,
        aim=0.02,
        measured=_growth,
        smaller=True,
    ),
    *_forwards(dict.fromkeys(EOMT, (1.2, 1.6)), "eomt"),
    *_reduced(EOMT, 2.0, 2.0, "eomt"),
    *_peaks(EOMT, (SMALL,), 0.6, "eomt"),
    _speed(f"{EOMT[0]} training step, {EOMT_STEP}", "eomt", EOMT_STEP, 1.2, 1.6),
    _lean(f"{EOMT[0]} training peak memory, {EOMT_STEP}", "eomt", EOMT_STEP, 0.6, 0.6),
)


def target_table(details: Details) -> Table:
    """Return each target with what a run measured; a dash where it did not."""
    rows = []
    for target in TARGETS:
        try:
            value = target.measured(details)
        except (KeyError, IndexError, TypeError, ZeroDivisionError):
            value = math.nan
        if math.isnan(value):
            met = "not measured"
        elif target.reached(value, target.aim):
            met = "aim reached"
        else:
            met = "yes" if target.reached(value, target.least) else "**no**"
        least, aim = (
            f"{shown(limit)}{'' if target.smaller else ' or more'}" for limit in (target.least, target.aim)
        )
        if target.smaller:
            least, aim = f"at most {least}", f"at most {aim}"
        rows.append((target.what, value, least, aim, met))
    return Table(
        title="Targets",
        about="Times as fast as the other side in the same run, or our memory as a share of its.",
        columns=("what", "measured", "target", "aim", "met"),
        rows=tuple(rows),
    )
