"""Reads the files of others without running what is in them."""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct, scalar
from numpy._core.numeric import _frombuffer  # type: ignore[attr-defined]
from torch import Tensor

from unimask.checkpoints.tensors import load_tensors
from unimask.errors import WeightsError


def _encode_latin1(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


_PERMITTED: dict[tuple[str, str], Callable[..., object]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode_latin1,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
}

_NUMPY: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
    np.ndarray,
    np.dtype,
    *(type(np.dtype(name)) for name in ("bool", "uint8", "int32", "int64", "float16", "float32", "float64")),
    *((_reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
"""What a training checkpoint may hold besides tensors, for instance in the state of its schedule."""


class _ArrayUnpickler(pickle.Unpickler):
    """Builds plain values and numpy arrays; every other name in the file is refused."""

    def find_class(self, module: str, name: str) -> Callable[..., object]:
        """What the name stands for, if it is permitted."""
        if (module, name) not in _PERMITTED:
            raise pickle.UnpicklingError(f"it wants to call {module}.{name}, only numpy arrays are permitted")
        return _PERMITTED[module, name]


def read_foreign_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pkl` (numpy arrays), `.pth`, `.pt`, `.bin` or `.safetensors` file, on the CPU.

    Where the file is a training checkpoint, they are what is under `model` or `state_dict`. Reading
    never runs code of the file: pickles may hold arrays and plain values only.

    Raises:
        WeightsError: the file is missing, cut off, of another format, refused, or holds no tensors.
    """
    if not path.is_file():
        raise WeightsError(path, "there is no such file")
    if path.suffix == ".safetensors":
        return load_tensors(path)
    read = _read_arrays if path.suffix == ".pkl" else _read_torch
    try:
        with path.open("rb") as file:
            content = read(file)
    except Exception as error:  # a broken pickle can fail in any way
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            path,
            f"cannot be read, it may be cut off, of another format, or hold more than weights ({reason})",
        ) from None
    return _tensors(path, content)


def _read_arrays(file: BinaryIO) -> object:
    return _ArrayUnpickler(file, encoding="latin1").load()


def _read_torch(file: BinaryIO) -> object:
    with torch.serialization.safe_globals(_NUMPY):
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
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
    return None
