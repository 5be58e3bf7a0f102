"""This machine and process: its devices, what computed something, by which command, and its memory."""

import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from unimask.errors import ConfigError, choices, first_line

_PACKAGES = ("unimask", "torch", "torchvision", "timm", "lightning-fabric", "hotcoco")
DEVICES = ("auto", "cpu", "cuda", "cuda:1", "mps")


def find_device(name: str) -> torch.device:
    """Return the torch device of a name; `auto` is CUDA, else mps, else the CPU.

    Raises:
        ConfigError: torch does not know the device, or this machine does not have it.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        if name.partition(":")[0] not in DEVICES:
            raise ConfigError("device", f"{name!r} does not exist; {choices(name, DEVICES)}") from None
        reason = f"cannot be used here ({first_line(error)}); try auto or cpu"
        raise ConfigError("device", f"{name!r} {reason}") from None
    return device


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
_MEMORY = Path("/proc/meminfo")
_CONTAINERS = (  # where the two kinds of control groups say what may be used and what is
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (
        Path("/sys/fs/cgroup/memory"),
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)
_UNKNOWN = 4 << 30  # what a machine is taken to have that does not say


def free_memory(device: torch.device) -> int:
    """Return the bytes that could be used: of a CUDA device, else of the machine or its container.

    Where the system does not say, 4 GiB.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return max(0, min([_available(), *(_free_in(*container) for container in _CONTAINERS)]))


def _free_in(folder: Path, limit: str, used: str, given_back: str) -> int:
    """Return what a control group leaves; files that it keeps at hand can be given back."""
    try:
        free = int((folder / limit).read_text()) - int((folder / used).read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):  # there is none of this kind, or no limit ("max")
        return sys.maxsize
    return free + sum(int(line.split()[1]) for line in lines if line.startswith(f"{given_back} "))


def _available() -> int:
    """Return the bytes that Linux says can be had without swapping; elsewhere half of all memory."""
    if _MEMORY.exists():
        for line in _MEMORY.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):  # Windows
        return _UNKNOWN


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
