"""Read the files of others without running what is in them."""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from unimask.checkpoints.tensors import load_tensors
from unimask.conversion.pickled_arrays import STAND_INS, PickledArray, unpickle_arrays
from unimask.errors import WeightsError, first_line


def read_foreign_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a `.pkl` (arrays), `.pth`, `.pt`, `.bin` or `.safetensors` file, on the CPU.

    Where the file is a training checkpoint, they are what is under `model` or `state_dict`. Reading
    never runs code of the file: pickles may hold arrays and plain values only.

    Raises:
        WeightsError: the file is missing, cut off, of another format, refused, or holds no tensors.
    """
    if not path.is_file():
        raise WeightsError(path, "there is no such file")
    if path.suffix == ".safetensors":
        return load_tensors(path)
    read = unpickle_arrays if path.suffix == ".pkl" else _read_torch
    try:
        with path.open("rb") as file:
            content = read(file)
    except Exception as error:  # a broken pickle can fail in any way
        raise WeightsError(
            path,
            "cannot be read, it may be cut off, of another format, or hold more than weights "
            f"({first_line(error)})",
        ) from None
    return _tensors(path, content)


def _read_torch(file: BinaryIO) -> object:
    named: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
        (stand_in, name) for name, stand_in in STAND_INS.items()
    ]
    with torch.serialization.safe_globals([*named, PickledArray]):
        return torch.load(file, map_location="cpu", weights_only=True)


def _tensors(path: Path, content: object) -> dict[str, Tensor]:
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise WeightsError(path, f"holds a {type(content).__name__}, not a table of weights")
    tensors = {str(key): _tensor(value) for key, value in content.items()}
    found = {key: value for key, value in tensors.items() if value is not None}
    if not found:
        raise WeightsError(path, "holds no weights")
    return found


def _tensor(value: object) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, PickledArray):
        array = value.array
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
    return None
