"""Work of a known size, importable by processes of their own."""

import os
import signal

import torch

from unimask.benchmark.memory import NOT_DONE, Peak, measure_peak

MEGABYTE = 2**20
CPU = torch.device("cpu")


def allocate(megabytes: int) -> None:
    torch.ones(megabytes * MEGABYTE // 4)


def peak_of(megabytes: int) -> Peak:
    return measure_peak(lambda: allocate(megabytes), CPU)


def is_killed() -> Peak:
    os.kill(os.getpid(), signal.SIGKILL)
    return NOT_DONE


def asks_for_too_much() -> Peak:
    return measure_peak(lambda: torch.empty(2**46), CPU)


def makes_a_mistake() -> Peak:
    raise RuntimeError("a mistake")
