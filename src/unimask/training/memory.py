"""How much memory a process takes."""

import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


def memory_now(device: torch.device) -> int:
    """Bytes in use: on a CUDA device by tensors, elsewhere by the whole process; 0 where it is not known."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _status("VmRSS")


def peak_memory(device: torch.device) -> int:
    """The most bytes that were in use at any time so far, as `memory_now` counts them."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM") or _resource()


def _status(name: str) -> int:
    """A line of Linux's description of this process. (Its `getrusage` also counts the parent's memory.)"""
    if not _STATUS.exists():
        return 0
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _resource() -> int:
    if sys.platform == "win32":
        return 0
    from resource import RUSAGE_SELF, getrusage

    unit = 1 if sys.platform == "darwin" else 1024
    return int(getrusage(RUSAGE_SELF).ru_maxrss) * unit
