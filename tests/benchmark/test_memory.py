"""Peaks of allocations of a known size; in this process, and in new ones that are killed or fail."""

import math
import os

import pytest
import torch
from benchmark.known_peaks import CPU, MEGABYTE, allocate, peak_of

from unimask.benchmark import memory
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


def test_the_peak_in_a_new_process() -> None:
    assert 60 < peak_in_fresh_process(peak_of, 61).above / MEGABYTE < 73


def test_a_new_process_is_another_one() -> None:
    assert in_fresh_process(os.getpid) != os.getpid()


def test_where_memory_does_not_suffice_there_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_in_fresh_process(os._exit, 9) is NOT_DONE  # as if it were killed
    assert math.isnan(NOT_DONE.above)

    def cannot(function: object, size: int) -> None:
        torch.empty(size)

    monkeypatch.setattr(memory, "in_fresh_process", cannot)
    assert peak_in_fresh_process(peak_of, 2**46) is NOT_DONE


def test_other_mistakes_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(function: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(memory, "in_fresh_process", fails)
    with pytest.raises(RuntimeError, match="a mistake"):
        peak_in_fresh_process(peak_of)
