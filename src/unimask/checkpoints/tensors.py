"""Weights as safetensors files, which cannot run code, and weights put into a model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unimask.errors import WeightsError, first_line, is_out_of_memory, some_of
from unimask.files import complete_file, complete_files, put_text

WEIGHTS_NAME = "model.safetensors"
UNWRITABLE = "make room for it, check the permissions of its folder, or name another one"
NO_METADATA: Mapping[str, str] = MappingProxyType({})


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] = NO_METADATA
) -> None:
    """Write a safetensors file that is complete when it appears.

    Raises:
        WeightsError: it cannot be written; the disk may be full.
    """
    with _writable(path), complete_file(path) as temporary:
        save_file(_copies(tensors), temporary, dict(metadata))


def save_folder(
    folder: Path,
    tensors: Mapping[str, Tensor],
    texts: Mapping[str, str],
    metadata: Mapping[str, str] = NO_METADATA,
) -> None:
    """Write `model.safetensors` and text files (name -> content) into a folder, which is made if needed.

    They take their names together when all are complete: an error, or Ctrl-C, leaves what was there before.

    Raises:
        WeightsError: the folder cannot be written to; the disk may be full.
    """
    paths = [folder / name for name in (WEIGHTS_NAME, *texts)]
    with _writable(folder), complete_files(paths) as (weights, *others):
        save_file(_copies(tensors), weights, dict(metadata))
        for part, content in zip(others, texts.values(), strict=True):
            put_text(part, content)


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that share no memory, which safetensors refuses."""
    return {key: tensor.detach().cpu().clone().contiguous() for key, tensor in tensors.items()}


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    """Name the file or folder where writing fails inside."""
    try:
        yield
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(path, f"cannot be written ({first_line(error)}); {UNWRITABLE}") from None


def weights_of(model: nn.Module, *, half: bool) -> dict[str, Tensor]:
    """Return the weights of a model; with `half`, matrices and kernels in float16, vectors as they are."""
    state: dict[str, Tensor] = model.state_dict()
    return {key: value.half() if half and value.ndim >= 2 else value for key, value in state.items()}


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, on the CPU.

    Raises:
        WeightsError: the file is missing, cut off, or not a safetensors file.
    """
    if not path.is_file():
        raise WeightsError(path, "there is no such file")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except Exception as error:  # also of kinds of numbers that this torch does not have
        if is_out_of_memory(error):
            raise
        reason = f"cannot be read, it may be cut off or of another format ({first_line(error)})"
        raise WeightsError(path, f"{reason}; copy or save it again") from None
    return tensors


def fill(
    model: nn.Module, tensors: Mapping[str, Tensor], path: Path, *, described_in: str = "config.json"
) -> None:
    """Copy tensors into a model whose state dict has exactly these keys and shapes.

    `described_in` is the name of the file that states the model, for messages.

    Raises:
        WeightsError: keys are missing, unexpected or of another shape; nothing is copied then. A wrong number
            of classes is named as such.
    """
    own = model.state_dict()
    reason = _class_count_reason(own, tensors, described_in)
    reason = reason or f"does not fit the model that its {described_in} describes"
    check_fit(path, reason, wanted=own, found=tensors)
    model.load_state_dict(dict(tensors))


def check_fit(
    path: str | Path, reason: str, *, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> None:
    """Check that tensors have exactly the wanted keys and shapes, and numbers that a model can have.

    Raises:
        WeightsError: keys are missing, unexpected or of another shape (`reason` says what they do not fit),
            or `check_numbers` refuses a tensor.
    """
    missing = tuple(key for key in wanted if key not in found)
    unexpected = tuple(key for key in found if key not in wanted)
    mismatched = tuple(
        f"{key} {tuple(found[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in found and found[key].shape != wanted[key].shape
    )
    if missing or unexpected or mismatched:
        raise WeightsError(path, reason, missing=missing, unexpected=unexpected, mismatched=mismatched)
    check_numbers(wanted, found, path)


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_numbers(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Check that tensors can be the weights of a model: floats where its own are floats, and all finite.

    `own` is the model's state dict; keys that are only in one of the two are left alone.

    Raises:
        WeightsError: a tensor is of another kind of number, or holds NaN or infinity; all of them are named.
    """
    shared = [key for key in tensors if key in own]
    kinds = tuple(
        f"{key} ({str(tensors[key].dtype).removeprefix('torch.')})"
        for key in shared
        if (tensors[key].dtype in _FLOATS) != own[key].is_floating_point()
    )
    if kinds:
        raise WeightsError(path, f"holds another kind of number than the model has: {some_of(kinds)}")
    broken = tuple(
        key for key in shared if own[key].is_floating_point() and not tensors[key].isfinite().all()
    )
    if broken:
        raise WeightsError(
            path,
            f"holds numbers that are not finite (NaN or infinity), in {some_of(broken)}; the training that "
            "made it failed, take an earlier checkpoint",
        )


def _class_count_reason(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], described_in: str) -> str:
    """Return a sentence on the number of classes where that is what differs, else nothing."""
    for key, tensor in tensors.items():
        if not key.endswith("heads.classes.weight") or key not in own or not tensor.ndim:
            continue
        if tensor.shape[0] != own[key].shape[0]:
            return (
                f"the weights are for {tensor.shape[0] - 1} classes, {described_in} lists "
                f"{own[key].shape[0] - 1} categories; list there those that the weights were trained "
                "on, or train a model on the new ones"
            )
    return ""
