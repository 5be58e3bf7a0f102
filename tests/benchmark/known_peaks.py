"""Work of a known size, importable by a process of its own."""

import torch

from unimask.benchmark.memory import Peak, measure_peak

MEGABYTE = 2**20
CPU = torch.device("cpu")


def allocate(megabytes: int) -> None:
    torch.ones(megabytes * MEGABYTE // 4)


def peak_of(megabytes: int) -> Peak:
    return measure_peak(lambda: allocate(megabytes), CPU)
