"""This machine and process: what computed something, by which command, and how much memory it took."""

import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

_PACKAGES = ("unimask", "torch", "torchvision", "timm", "lightning-fabric", "hotcoco")


def synchronize(device: torch.device) -> None:
    """Return when a CUDA device has done all it was told; elsewhere at once."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that some work takes, until the device has done all of it."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def command_line() -> str:
    """Return the command of this process, as one would type it."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _processor() -> str:
    """Return the name of the processor."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe_machine(device: torch.device) -> dict[str, object]:
    """Return the machine, the versions and the command, ready for JSON."""
    return {
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "processor_cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "command": command_line(),
    }


_STATUS = Path("/proc/self/status")


def memory_now(device: torch.device) -> int:
    """Return the bytes in use: on a CUDA device by tensors, elsewhere by the process; 0 if unknown."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _status("VmRSS")


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that were in use at any time so far, as `memory_now` counts them."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM") or _resource()


def _status(name: str) -> int:
    """Return the bytes that Linux states for this process; its `getrusage` also counts the parent's."""
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
