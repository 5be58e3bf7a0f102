"""Numpy arrays from untrusted pickles.

A pickle is a program that calls what it names, with arguments of its own, and numpy's constructors trust
theirs: an array of objects over bytes of the file has pointers that the file chose, and the process dies, or
worse. So a file never reaches numpy. What it calls are the stand-ins below, which accept plain numbers of a
fixed width (floats, integers, booleans) and exactly as many bytes as the shape needs.
"""

import math
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import BinaryIO

import numpy as np

_NUMBERS = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})
_MOST_DIMENSIONS = 32


class _Sealed(type):
    """A class whose attributes a pickle cannot set."""

    def __setattr__(cls, name: str, value: object) -> None:
        raise pickle.UnpicklingError("it wants to change how files are read")


class PickledNumbers(metaclass=_Sealed):
    """Stands in for `numpy.dtype`: a kind of number of a fixed width, and its byte order."""

    def __init__(self, code: object, *_: object) -> None:
        text = code.decode("ascii", "replace") if isinstance(code, bytes) else code
        if not isinstance(text, str) or text.lstrip("<>|=") not in _NUMBERS:
            raise pickle.UnpicklingError(
                f"an array of {code!r:.60}, only floats, integers and booleans are read"
            )
        self.code = text.lstrip("<>|=")
        self.order = text[0] if text[0] in "<>" else "="

    def __setstate__(self, state: object) -> None:
        """Take the byte order; a dtype with fields, a shape or flags of its own is refused."""
        if not isinstance(state, tuple) or len(state) < 8 or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("an array of structures, only plain numbers are read")
        order = state[1].decode("ascii", "replace") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"an unknown byte order {order!r:.20}")
        self.order = order if order in ("<", ">") else "="

    def numpy(self) -> np.dtype:
        """Return the dtype."""
        return np.dtype(f"{self.order}{self.code}")


class PickledArray(metaclass=_Sealed):
    """Stands in for `numpy.ndarray` while its state is read."""

    def __init__(self) -> None:
        self.array = np.empty(0)

    def __setstate__(self, state: object) -> None:
        """Take shape, kind of numbers, order and bytes, if they belong together."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("an array without shape and numbers")
        _, shape, numbers, column_major, data = state
        self.array = _array(data, numbers, shape, bool(column_major))


class _Array(metaclass=_Sealed):
    """Stands in for the name `numpy.ndarray`, which files hand to `_reconstruct` and never need to call."""


def new_array(kind: object, shape: object, code: object) -> PickledArray:
    """Stand in for `numpy.core.multiarray._reconstruct`: an array whose state follows."""
    if kind is not _Array:
        raise pickle.UnpicklingError("an array of another class than numpy.ndarray")
    return PickledArray()


def array_of_buffer(data: object, numbers: object, shape: object, order: object) -> PickledArray:
    """Stand in for `numpy.core.numeric._frombuffer`: an array with its bytes."""
    result = PickledArray()
    result.array = _array(data, numbers, shape, order == "F")
    return result


def number(numbers: object, data: object = b"") -> float | int | bool:
    """Stand in for `numpy.core.multiarray.scalar`: one number."""
    value: float | int | bool = _array(data, numbers, (), False).item()
    return value


def _array(data: object, numbers: object, shape: object, column_major: bool) -> np.ndarray:
    if isinstance(data, str):  # how pickles of Python 2 spell bytes
        data = data.encode("latin1")
    if not isinstance(numbers, PickledNumbers) or not isinstance(data, bytes | bytearray | memoryview):
        raise pickle.UnpicklingError("an array that is not made of plain numbers")
    sizes = shape if isinstance(shape, tuple) else (shape,)
    if len(sizes) > _MOST_DIMENSIONS or not all(type(size) is int and size >= 0 for size in sizes):
        raise pickle.UnpicklingError("an array of an impossible shape")
    dtype = numbers.numpy()
    if dtype.kind not in "fiub":
        raise pickle.UnpicklingError("an array that is not made of plain numbers")
    if math.prod(sizes) * dtype.itemsize != len(data):
        raise pickle.UnpicklingError(f"an array of shape {sizes} over {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(sizes, order="F" if column_major else "C")


def _encode_latin1(text: object, encoding: object) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("bytes in an unknown encoding")
    return text.encode("latin1")


class PickledNamespace(metaclass=_Sealed):
    """Stands in for `argparse.Namespace`, in which trainings keep their arguments."""

    values: Mapping[str, object] = MappingProxyType({})

    def __setstate__(self, state: object) -> None:
        """Take the arguments that are plain values."""
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("arguments that are no table")
        plain = (bool, int, float, str, list, type(None))
        self.values = {str(key): value for key, value in state.items() if isinstance(value, plain)}


STAND_INS: Mapping[str, Callable[..., object]] = {
    "numpy.ndarray": _Array,
    "numpy.dtype": PickledNumbers,
    "argparse.Namespace": PickledNamespace,
    **{f"numpy.{core}.multiarray._reconstruct": new_array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": number for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": array_of_buffer for core in ("core", "_core")},
}
"""Name in a pickle -> what is called in its place."""

_PERMITTED: Mapping[str, Callable[..., object]] = {
    **STAND_INS,
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _encode_latin1,
}


class _ArrayUnpickler(pickle._Unpickler):
    """Builds plain values and stand-ins of arrays; every other name in the file is refused.

    The unpickler in Python, because the one in C asks for as much memory as a file of a few bytes names.
    """

    def find_class(self, module: str, name: str) -> Callable[..., object]:
        """Return the stand-in of a name, if it is permitted."""
        permitted = _PERMITTED.get(f"{module}.{name}")
        if permitted is None:
            raise pickle.UnpicklingError(
                f"it wants to call {module:.60}.{name:.60}, only numpy arrays are permitted"
            )
        return permitted


def unpickle_arrays(file: BinaryIO) -> object:
    """Return what a pickle holds, with `PickledArray` for its arrays.

    Raises:
        Exception: a broken pickle can fail in any way; `pickle.UnpicklingError` where it is refused.
    """
    return _ArrayUnpickler(file, encoding="latin1").load()
