"""What every suite is told, and what it gives back."""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from unimask.benchmark.measure import MEGABYTE
from unimask.benchmark.memory import NOT_DONE, Peak, peak_in_fresh_process
from unimask.benchmark.tables import Cell, Table, share
from unimask.benchmark.timing import TOTAL, Clock, Rounds

CLASSES = 133  # of the models, as in COCO


@dataclass(frozen=True, kw_only=True)
class Settings:
    device: str
    threads: int
    precision: str  # of training steps; inference runs in float32 and in bf16
    clock: Clock = "wall"  # `processor` where other programs run: it counts this process alone
    quick: bool  # small sizes and few rounds: a test of the harness, whose numbers mean nothing

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    def autocast(self) -> torch.autocast:
        """Mixed precision, the same for all sides."""
        enabled = self.precision != "32-true"
        return torch.autocast(self.torch_device.type, torch.bfloat16, enabled=enabled)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    tables: tuple[Table, ...]
    details: Mapping[str, object]  # plain values: every round in seconds, peaks in bytes


@dataclass(frozen=True, kw_only=True)
class Case:
    """Sides that were timed in turn on the same work; the first is compared with."""

    name: str
    rounds: Rounds
    peaks: Mapping[str, Peak]
    remarks: Mapping[str, str]  # what each side computed, so that one sees it is the same


def progress(text: str) -> None:
    """A line that says what is done now."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def reason(error: Exception) -> str:
    """What a table says of something that failed; the same is said at once."""
    lines = str(error).strip().splitlines() or [""]
    text = f"failed: {type(error).__name__}: {lines[0]}"[:160]
    progress(text)
    return text


def peak_or_none(function: Callable[..., Peak], *arguments: object) -> Peak:
    """The peak in a new process; `NOT_DONE` where that fails, for any reason."""
    try:
        return peak_in_fresh_process(function, *arguments)
    except Exception as error:  # one side that fails must not end the others
        reason(error)
        return NOT_DONE


CASE_COLUMNS = ("case", "side", "ms", "peak MB", "time ratio", "memory ratio")
CASE_ABOUT = (
    "Milliseconds are p50 / p95. Ratios are with the first row of the case: the median over the rounds of "
    "its time by this one's, and this one's memory as a share of its. {}"
)


def case_table(title: str, about: str, remark: str, cases: Sequence[Case]) -> Table:
    """A row for each side of each case."""
    rows: list[tuple[Cell, ...]] = []
    for case in cases:
        first = next(iter(case.rounds.seconds), "")
        for side in case.rounds.seconds:
            low, high = (1000 * case.rounds.percentile(side, TOTAL, percent) for percent in (50, 95))
            peak, first_peak = (case.peaks.get(name, NOT_DONE).above for name in (side, first))
            compared = ("", "")
            if side != first:
                ratio = case.rounds.ratio(side, first, TOTAL)
                compared = (f"{ratio:.2f}", share(peak, first_peak))
            time = f"{low:.1f} / {high:.1f}"
            rows.append(
                (case.name, side, time, round(peak / MEGABYTE, 1), *compared, case.remarks.get(side, ""))
            )
        failed = [side for side in case.remarks if side not in case.rounds.seconds]
        rows += [(case.name, side, "-", math.nan, "", "", case.remarks[side]) for side in failed]
    return Table(
        title=title, about=CASE_ABOUT.format(about), columns=(*CASE_COLUMNS, remark), rows=tuple(rows)
    )


def case_details(cases: Sequence[Case]) -> dict[str, object]:
    """Every round and every peak of the cases, as plain values."""
    return {
        case.name: {
            side: {
                "seconds": list(stages[TOTAL]),
                "peak_bytes_above": _number(case.peaks.get(side, NOT_DONE).above),
                "peak_bytes": _number(case.peaks.get(side, NOT_DONE).highest),
                "remark": case.remarks.get(side, ""),
            }
            for side, stages in case.rounds.seconds.items()
        }
        for case in cases
    }


def _number(value: float) -> float | None:
    return None if value != value else value
