"""What this library wants to reach beside transformers, and whether a run reached it."""

import math
import statistics
from collections.abc import Callable, Mapping
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

TARGETS = (
    *(
        Target(what=f"{kind} {SMALL} forward, float32", least=a, aim=b, measured=_forward(kind, SMALL, OURS))
        for kind, a, b in (("R50", 2.4, 3.0), ("Swin-T", 1.9, 2.5))
    ),
    *(
        Target(
            what=f"{kind} {SMALL} forward, bf16 beside their float32",
            least=4.0,
            aim=5.0,
            measured=_forward(kind, SMALL, REDUCED),
        )
        for kind in ("R50", "Swin-T")
    ),
    Target(
        what="bf16 beside float32, trained model: mean IoU of masks",
        least=0.99,
        aim=0.99,
        measured=_reduced_iou,
    ),
    *(
        Target(
            what=f"{kind} {size} inference, peak memory above the weights",
            least=0.55,
            aim=0.4,
            measured=_inference_memory(kind, size),
            smaller=True,
        )
        for kind in ("R50", "Swin-T")
        for size in (SMALL, LARGE)
    ),
    *(
        Target(
            what=f"{task} post-processing, 1080 x 1920",
            least=least,
            aim=10.0,
            measured=_case("postprocessing", task, ORIGINAL),
        )
        for task, least in (("panoptic", 5.0), ("instance", 4.0))
    ),
    *(
        Target(
            what=f"{task} post-processing, peak memory",
            least=0.1,
            aim=0.1,
            measured=_memory("postprocessing", task, ORIGINAL),
            smaller=True,
        )
        for task in ("panoptic", "instance")
    ),
    *(
        Target(
            what=f"training step, {STEP.format(count)}",
            least=1.5,
            aim=2.0,
            measured=_case("training", STEP.format(count), THEIRS),
        )
        for count in (10, 30)
    ),
    Target(
        what=f"training peak memory, {CROWDED}",
        least=1 / 3,
        aim=1 / 5,
        measured=_memory("training", CROWDED, THEIRS),
        smaller=True,
    ),
    Target(
        what="training peak memory: growth from 10 to 300 segments",
        least=0.1,
        aim=0.02,
        measured=_growth,
        smaller=True,
    ),
    *(
        Target(
            what=f"{kind} {SMALL} forward, float32",
            least=1.2,
            aim=1.6,
            measured=_forward(kind, SMALL, OURS, "eomt"),
        )
        for kind in EOMT
    ),
    *(
        Target(
            what=f"{kind} {SMALL} forward, bf16 beside their float32",
            least=2.0,
            aim=2.0,
            measured=_forward(kind, SMALL, REDUCED, "eomt"),
        )
        for kind in EOMT
    ),
    *(
        Target(
            what=f"{kind} {SMALL} inference, peak memory above the weights",
            least=0.6,
            aim=0.4,
            measured=_inference_memory(kind, SMALL, "eomt"),
            smaller=True,
        )
        for kind in EOMT
    ),
    Target(
        what=f"{EOMT[0]} training step, {EOMT_STEP}",
        least=1.2,
        aim=1.6,
        measured=_case("eomt", EOMT_STEP, THEIRS),
    ),
    Target(
        what=f"{EOMT[0]} training peak memory, {EOMT_STEP}",
        least=0.6,
        aim=0.6,
        measured=_memory("eomt", EOMT_STEP, THEIRS),
        smaller=True,
    ),
)


def target_table(details: Details) -> Table:
    """Each target with what a run measured; a dash where it did not."""
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
