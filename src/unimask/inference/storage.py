"""Storage of the arrays for joining tiles: in memory, or in a file for images larger than memory."""

import math
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy import ndarray


@runtime_checkable
class Storage(Protocol):
    """Arrays by number. Writing into an array changes the stored one."""

    def put(self, array: ndarray) -> int:
        """Keep an array; return its number."""

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> int:
        """Keep an array of zeros; return its number."""

    def __getitem__(self, number: int) -> ndarray: ...


class MemoryStorage:
    """Arrays in memory."""

    def __init__(self) -> None:
        self._arrays: list[ndarray] = []

    def put(self, array: ndarray) -> int:
        """Keep the array itself; return its number."""
        self._arrays.append(array)
        return len(self._arrays) - 1

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> int:
        """Keep an array of zeros; return its number."""
        return self.put(np.zeros(shape, dtype))

    def __getitem__(self, number: int) -> ndarray:
        return self._arrays[number]


class DiskStorage:
    """Arrays in a temporary file in `folder`, which vanishes when it is closed.

    An array that is asked for is mapped, and takes memory only where it is used and as long as it is held.
    """

    def __init__(self, folder: Path) -> None:
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115  # closed by `close`
        self._end = 0
        self._places: list[tuple[int, tuple[int, ...], Any]] = []

    def put(self, array: ndarray) -> int:
        """Write a copy of the array; return its number."""
        number = self.zeros(array.shape, array.dtype)
        if array.size:
            self[number][...] = array
        return number

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> int:
        """Make room for an array of zeros, which needs disk only where it is written; return its number."""
        self._places.append((self._end, shape, dtype))
        self._end += math.prod(shape) * np.dtype(dtype).itemsize
        self._file.truncate(self._end)
        return len(self._places) - 1

    def __getitem__(self, number: int) -> ndarray:
        offset, shape, dtype = self._places[number]
        if math.prod(shape) == 0:
            return np.zeros(shape, dtype)
        return np.memmap(self._file, dtype, "r+", offset, shape)

    def close(self) -> None:
        """Remove the file."""
        self._file.close()
