"""The most memory that a piece of work holds at a time, measured in a process of its own."""

import ctypes
import gc
import math
import multiprocessing
import platform
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from unimask.machine import memory_now, peak_memory

Given = TypeVar("Given")

_CPU = torch.device("cpu")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Bytes that were held before a piece of work, and at most during it; of the process or of the device."""

    before: int | float
    highest: int | float

    @property
    def above(self) -> int | float:
        """Bytes that the work added; not a number where it could not be done."""
        return self.highest - self.before


NOT_DONE = Peak(before=math.nan, highest=math.nan)
"""Of work for which the memory did not suffice."""


def measure_peak(work: Callable[[], object], device: torch.device) -> Peak:
    """Return the peak of some work in this process: of the CUDA allocator's memory, or of resident memory.

    Memory that was freed before is handed back to the system first, so that the work has to ask for it
    again. Linux can forget an earlier peak; where that is not possible, only what exceeds it is seen.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return Peak(before=before, highest=torch.cuda.max_memory_allocated(device))
    _return_free_memory()
    before = _reset_peak()
    work()
    return Peak(before=before, highest=max(before, peak_memory(_CPU)))


def _return_free_memory() -> None:
    """Hand freed memory back to the system, where the C library is glibc; others have no such call."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _reset_peak() -> int:
    """Forget the earlier peak where the system can; return the bytes from which to count."""
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return peak_memory(_CPU)
    return memory_now(_CPU)


def in_fresh_process(function: Callable[..., Given], *arguments: object) -> Given:
    """Return what a function of a module returns in a new Python process, without this one's memory.

    Raises:
        BrokenProcessPool: the process was killed, mostly because the machine's memory was full.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def peak_in_fresh_process(function: Callable[..., Peak], *arguments: object) -> Peak:
    """Return the peak that a function measures in a new process; `NOT_DONE` if memory did not suffice.

    Raises:
        RuntimeError: the function failed for another reason.
    """
    try:
        return in_fresh_process(function, *arguments)
    except (BrokenProcessPool, MemoryError, torch.OutOfMemoryError):
        return NOT_DONE
    except RuntimeError as error:
        if "can't allocate memory" in str(error):
            return NOT_DONE
        raise
