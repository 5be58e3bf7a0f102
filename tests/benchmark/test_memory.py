"""Peaks of allocations of a known size; in this process, and in new ones that are killed or fail."""

import math
import os

import pytest
import torch
from benchmark.known_peaks import (
    CPU,
    MEGABYTE,
    allocate,
    asks_for_too_much,
    is_killed,
    makes_a_mistake,
    peak_of,
)

from unimask.benchmark.memory import NOT_DONE, in_fresh_process, measure_peak, peak_in_fresh_process


def test_the_peak_of_a_known_allocation() -> None:
    allocate(300)  # an earlier peak, which does not count
    peak = measure_peak(lambda: allocate(113), CPU)
    assert 110 < peak.above / MEGABYTE < 125
    assert peak.highest == peak.before + peak.above


def test_what_was_held_before_does_not_count() -> None:
    held = torch.ones(97 * MEGABYTE // 4)
    peak = measure_peak(lambda: allocate(31), CPU)
    assert 29 < peak.above / MEGABYTE < 42
    assert peak.before > held.nbytes


def test_fresh_processes() -> None:
    assert in_fresh_process(os.getpid) != os.getpid()
    assert 60 < peak_in_fresh_process(peak_of, 61).above / MEGABYTE < 73


def test_where_memory_does_not_suffice_there_is_no_number() -> None:
    assert peak_in_fresh_process(is_killed) is NOT_DONE
    assert peak_in_fresh_process(asks_for_too_much) is NOT_DONE
    assert math.isnan(NOT_DONE.above)
    with pytest.raises(RuntimeError, match="a mistake"):
        peak_in_fresh_process(makes_a_mistake)
