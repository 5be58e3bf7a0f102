"""Checks of a checkpoint against the training that resumes from it, before anything is loaded."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from unimask.checkpoints.tensors import check_fit
from unimask.errors import ConfigError, WeightsError, some_of
from unimask.training.run_folder import RunFolder, changes_of_run, is_whole
from unimask.training.speed import Window

PARTS: Mapping[str, type] = {
    "step": int,
    "skipped": int,
    "skipped_in_row": int,
    "seconds": float,
    "origin": str,
    "model": dict,
    "average": dict,
    "optimizer": dict,
    "precision": dict,
    "window": dict,
}
"""The keys of a checkpoint."""
OF_TENSORS = ("model", "average", "optimizer")
"""What is beside it where the model was split over processes (`training/sharding.py`)."""

_WAY_OUT = "remove this folder to resume from the checkpoint before it, or start again"


def check_parts(folder: Path, state: Mapping[str, Any]) -> None:
    """Check that a checkpoint has all of its parts; of a model that was split, the tensors are elsewhere.

    Raises:
        WeightsError: a part is missing.
    """
    elsewhere = OF_TENSORS if state.get("sharded") else ()
    wrong = [
        name
        for name, kind in PARTS.items()
        if name not in elsewhere and not (isinstance(state.get(name), kind) and _is_sound(name, state[name]))
    ]
    best = state.get("best")  # earlier versions did not keep it
    if best is not None and not (isinstance(best, dict) and is_whole(best)):
        wrong.append("best")
    if wrong:
        raise WeightsError(
            folder, f"is no whole checkpoint: {some_of(wrong)} is missing or damaged; {_WAY_OUT}"
        )


def _is_sound(name: str, value: Any) -> bool:
    """Return whether a part of a checkpoint of the right kind has a possible value."""
    if name == "window":
        try:
            Window.from_state(value)
        except ValueError:
            return False
        return True
    return not isinstance(value, int | float) or (math.isfinite(value) and value >= 0)


def check_description(folder: RunFolder, saved: object, now: Mapping[str, Any]) -> None:
    """Check that a run is the one whose checkpoint was taken; earlier versions did not keep its description.

    Raises:
        ConfigError: `experiment.json` was changed since.
    """
    changed = changes_of_run(saved, now) if isinstance(saved, dict) else []
    if changed:
        raise ConfigError(
            str(folder.experiment),
            f"was changed after {folder.taken.name} was written; put the old values back to resume the run, "
            "or start another one:\n  " + "\n  ".join(changed),
        )


def check_average(folder: Path, model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Check that averaged weights, as the state of an `average_of` the model, are those of this model.

    Raises:
        WeightsError: they have other names, shapes or kinds of numbers, or are not finite.
    """
    own = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    check_fit(
        folder,
        f"holds an average of weights that are not those of this model; {_WAY_OUT}",
        wanted={**own, "n_averaged": torch.zeros((), dtype=torch.long)},
        found=saved,
    )


def check_optimizer(folder: Path, optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Check that the state of an optimiser belongs to the parameters of this one.

    Raises:
        WeightsError: it has other groups or shapes, or numbers that are no floats or not finite.
    """
    own = [len(group["params"]) for group in optimizer.param_groups]
    try:
        groups = [len(group["params"]) for group in saved["param_groups"]]
        states = {int(index): dict(values) for index, values in saved["state"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise WeightsError(folder, f"holds a damaged state of the optimiser; {_WAY_OUT}") from None
    if groups != own or not all(0 <= index < sum(own) for index in states):
        raise WeightsError(
            folder,
            f"holds the state of an optimiser of {sum(groups)} parameters in {len(groups)} groups, the "
            f"training has {sum(own)} in {len(own)}; {_WAY_OUT}",
        )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    wrong = [
        f"{name} of parameter {index}"
        for index, values in states.items()
        for name, value in values.items()
        if isinstance(value, Tensor) and not _fits(value, parameters[index])
    ]
    if wrong:
        raise WeightsError(
            folder,
            f"holds numbers of the optimiser that are of another shape, no floats or not finite, in "
            f"{some_of(wrong)}; {_WAY_OUT}",
        )


def _fits(value: Tensor, parameter: Tensor) -> bool:
    """Return whether a tensor can be a mean of gradients of a parameter, or a number of steps."""
    same_shape = value.ndim == 0 or value.shape == parameter.shape
    return same_shape and value.is_floating_point() and bool(torch.isfinite(value).all())
