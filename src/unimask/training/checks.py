"""Checks of the settings of a training before anything is built."""

from importlib.util import find_spec

import torch
from torch import distributed

from unimask.config.data import AnyView, why_not_joined
from unimask.config.models import AnyModelConfig, DetrConfig, tasks_of
from unimask.config.tasks import Task
from unimask.config.training import TrainingConfig
from unimask.config.values import check_values
from unimask.errors import ConfigError, choices
from unimask.machine import DEVICES


def check_settings(config: TrainingConfig, processes: int) -> None:
    """Check that the settings can work.

    Raises:
        ConfigError: one of them cannot, or the batch does not divide among processes and passes.
    """
    check_values(config, "training")
    if config.backbone_warmup_steps and config.schedule != "poly":
        raise ConfigError("training.backbone_warmup_steps", "is for the poly schedule; take 0 for others")
    if config.strategy == "fsdp" and config.precision == "16-mixed":
        raise ConfigError(
            "training.precision", "16-mixed scales losses, which fsdp does not know; take bf16-mixed"
        )
    if config.strategy == "fsdp" and not can_shard():
        raise ConfigError(
            "training.strategy",
            "fsdp needs PyTorch 2.6 or newer, built for several processes; take ddp",
        )
    if processes < 1:
        raise ConfigError("devices", f"at least one process is needed; got {processes}")
    if config.batch_size % (processes * config.accumulate):
        raise ConfigError(
            "training.batch_size",
            f"{config.batch_size} images or tokens do not divide among {processes} processes x "
            f"{config.accumulate} passes (training.accumulate); take a multiple of "
            f"{processes * config.accumulate}",
        )


def can_shard() -> bool:
    """Return whether this PyTorch can split a model over processes."""
    return distributed.is_available() and find_spec("torch.distributed.fsdp._fully_shard") is not None


_DETR_FOR = dict.fromkeys(("panoptic", "instance"), "model.mask_head=true") | {
    "detection": "model.mask_head=false"
}
"""Task -> the setting with which a DETR can be trained for it."""


def check_view(view: AnyView, task: Task) -> None:
    """Check that a model with this view can be evaluated on the task.

    Raises:
        ConfigError: it cannot.
    """
    if reason := why_not_joined(view, task):
        raise ConfigError("data.view", reason)


def check_model(model: AnyModelConfig, task: str) -> None:
    """Check that a model of this kind can be trained for the task.

    Raises:
        ConfigError: it cannot.
    """
    trained = tasks_of(model)
    presets = "a preset of DETR (detr_small)" if task == "detection" else "another preset (small)"
    if isinstance(model, DetrConfig):
        if model.mask_head:  # without masks in the data, the mask head would stay random
            trained = tuple(known for known in trained if known != "detection")
        presets = _DETR_FOR.get(task, presets)
    if task not in trained:
        raise ConfigError(
            "task",
            f"the model of this preset is trained for {', '.join(trained)}, not {task}; take {presets}",
        )


def check_device(name: str, devices: int, precision: str) -> tuple[str, int | list[int]]:
    """Return the engine's terms for a device: its kind, and how many or which one.

    Raises:
        ConfigError: the device is not here, there are too few, or it cannot compute in this precision.
    """
    kind, _, number = name.partition(":")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if kind not in ("cpu", "cuda", "mps") or (number and not number.isdigit()):
        raise ConfigError("device", f"{name!r} does not exist; {choices(name, DEVICES)}")
    if kind == "cuda":
        last = int(number or 0) if devices == 1 else devices - 1
        if last >= torch.cuda.device_count():
            found = torch.cuda.device_count()
            raise ConfigError(
                "device", f"{name!r} x {devices}: this machine has {found} CUDA devices; try auto or cpu"
            )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device", "this machine has no mps device; try auto or cpu")
    if kind == "cpu" and precision == "16-mixed":
        raise ConfigError(
            "training.precision", "16-mixed needs a CUDA device; take bf16-mixed or 32-true on the CPU"
        )
    if number and devices > 1:
        raise ConfigError("device", f"{name!r} is one device; take {kind} for {devices} of them")
    return kind, [int(number)] if number and kind == "cuda" else devices
