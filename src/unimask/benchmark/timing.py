"""Times of things that are run in turn: what disturbs the machine then disturbs all of them."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch

from unimask.machine import synchronize

TOTAL = "total"
Clock = Literal["wall", "processor"]
CLOCKS: Mapping[Clock, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
"""Seconds that pass, or those that the threads of this process compute, of which other programs take few."""


class Stopwatch:
    """Seconds of the stages of one run; a CUDA device is waited for at both ends of a stage."""

    def __init__(self, device: torch.device, clock: Clock = "wall") -> None:
        self._device = device
        self._now = CLOCKS[clock]
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Inside, time counts for the stage; a stage that comes again adds to its time."""
        synchronize(self._device)
        start = self._now()
        yield
        synchronize(self._device)
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - start


Run = Callable[[Stopwatch], object]
"""Does a piece of work once, in stages of the watch it is given."""


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Seconds of each stage of each side, round by round; the stage `total` is the sum of a side's others."""

    seconds: Mapping[str, Mapping[str, tuple[float, ...]]]

    @classmethod
    def joined(cls, parts: Sequence["Rounds"]) -> "Rounds":
        """Return all rounds of some that have the same sides and stages."""
        return cls(
            seconds={
                side: {
                    stage: tuple(chain.from_iterable(part.seconds[side][stage] for part in parts))
                    for stage in stages
                }
                for side, stages in parts[0].seconds.items()
            }
        )

    def percentile(self, side: str, stage: str, percent: int) -> float:
        """Return the time that so many percent of the rounds do not exceed, interpolated."""
        ordered = sorted(self.seconds[side][stage])
        place = (len(ordered) - 1) * percent / 100
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    def ratio(self, side: str, other: str, stage: str) -> float:
        """Return how many times as long `other` takes as `side`: the median over the rounds."""
        pairs = zip(self.seconds[side][stage], self.seconds[other][stage], strict=True)
        return statistics.median(theirs / mine for mine, theirs in pairs)


def interleave(
    sides: Mapping[str, Run], device: torch.device, *, rounds: int, warm_up: int = 1, clock: Clock = "wall"
) -> Rounds:
    """Run all sides in turn, A B A B, and keep the times of all rounds after `warm_up` more.

    Garbage is collected between the runs and not during them.

    Raises:
        ValueError: there is no round to measure.
    """
    if rounds < 1:
        raise ValueError(f"at least one round is needed, not {rounds}")
    times: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(warm_up + rounds):
        for name, run in sides.items():
            times[name].append(_timed(run, device, clock))
    return Rounds(seconds={name: _by_stage(found[warm_up:]) for name, found in times.items()})


def _timed(run: Run, device: torch.device, clock: Clock) -> dict[str, float]:
    watch = Stopwatch(device, clock)
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        run(watch)
    finally:
        if enabled:
            gc.enable()
    return {**watch.seconds, TOTAL: sum(watch.seconds.values())}


def _by_stage(runs: list[dict[str, float]]) -> dict[str, tuple[float, ...]]:
    return {stage: tuple(run[stage] for run in runs) for stage in runs[0]}
