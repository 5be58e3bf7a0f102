"""Measuring on a CUDA device: steps in turn, ratios, CUDA graphs, peaks of memory."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from unimask.structures import Size

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Step = Callable[[], object]
Times = Mapping[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Where and how much; `real` is False in a rehearsal."""

    device: torch.device
    real: bool
    rounds: int
    pictures: tuple[Size, ...]
    batches: tuple[int, ...]
    crop: Size
    segments: tuple[int, ...]


class Failures(list[str]):
    """Checks that failed."""

    def check(self, good: bool, what: str) -> str:
        if not good:
            self.append(what)
        return "equal" if good else "DIFFERENT"


def milliseconds(step: Step, plan: Plan) -> float:
    if not plan.real:
        start = time.perf_counter()
        step()
        return 1000 * (time.perf_counter() - start)
    start_event, stop_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start_event.record()
    step()
    stop_event.record()
    stop_event.synchronize()
    return start_event.elapsed_time(stop_event)


def in_turn(steps: Mapping[str, Step], plan: Plan, before: Step = lambda: None) -> Times:
    """Milliseconds of each step in each round, after warming up; `before` runs before each, not timed."""
    for step in steps.values():
        for _ in range(3 if plan.real else 1):
            step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(plan.rounds):
        for name, step in steps.items():
            before()
            times[name].append(milliseconds(step, plan))
    return times


def ratio(times: Times, slow: str, fast: str) -> float:
    """How many times as fast: the median over rounds."""
    return statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True))


def as_graph(step: Callable[[], object], plan: Plan) -> tuple[Step, object]:
    """The step as a CUDA graph, and what it fills when replayed: without the time the host needs."""
    if not plan.real:
        return step, step()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    return graph.replay, result


def peak_megabytes(step: Step, plan: Plan) -> float:
    """Memory above what is held before."""
    if not plan.real:
        step()
        return float("nan")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - held) / 2**20


def copy_bandwidth(plan: Plan) -> float:
    """Gigabytes a second of a large copy, read and written: what the device's memory gives in practice."""
    source = torch.empty(2**28 if plan.real else 2**16, dtype=torch.float32, device=plan.device)
    target = torch.empty_like(source)
    times = in_turn({"copy": lambda: target.copy_(source)}, plan)["copy"]
    return 2 * source.nbytes / statistics.median(times) / 1e6
