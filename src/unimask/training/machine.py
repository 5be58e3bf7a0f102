"""On what, with what and by which command something was computed."""

import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

import torch

_PACKAGES = ("unimask", "torch", "torchvision", "timm", "lightning-fabric", "hotcoco")


def command_line() -> str:
    """The command of this process, as one would type it."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _processor() -> str:
    """The name of the processor."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe_machine(device: torch.device) -> dict[str, object]:
    """The machine, the versions and the command, ready for JSON."""
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
