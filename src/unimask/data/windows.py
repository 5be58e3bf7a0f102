"""Images that are read window by window: they may be larger than memory."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from unimask.data.read import MOST_PIXELS, read_image
from unimask.errors import DataError, needs_extra
from unimask.structures import Size

TIFF_SUFFIXES = (".tif", ".tiff")


@runtime_checkable
class LargeImage(Protocol):
    """An image of which windows can be read."""

    @property
    def size(self) -> Size:
        """(height, width)."""

    def read(self, rows: slice, columns: slice) -> UInt8[Tensor, "3 rows columns"]:
        """A window of it as 8-bit RGB."""


class TiffWindows:
    """A TIFF of 8-bit grey, RGB or RGBA (alpha is left out); only the strips or tiles needed are read."""

    def __init__(self, path: Path, array: Any) -> None:  # zarr arrays have no common type with tifffile's
        self._path, self._array = path, array

    @property
    def size(self) -> Size:
        """(height, width)."""
        return int(self._array.shape[0]), int(self._array.shape[1])

    def read(self, rows: slice, columns: slice) -> UInt8[Tensor, "3 rows columns"]:
        """Raises: DataError, where the file is damaged there."""
        try:
            values: ndarray = np.asarray(self._array[rows, columns])
        except Exception as error:  # decoders raise all kinds of errors on damaged files
            place = f"rows {rows.start} to {rows.stop}, columns {columns.start} to {columns.stop}"
            raise DataError(self._path, f"is damaged or cut off at {place} ({error})") from None
        shaped = values[..., None] if values.ndim == 2 else values
        colors = shaped[..., :3] if shaped.shape[2] >= 3 else shaped[..., :1].repeat(3, axis=2)
        return torch.from_numpy(np.ascontiguousarray(colors.transpose(2, 0, 1)))


class InMemory:
    """An image that has been read as a whole."""

    def __init__(self, image: UInt8[Tensor, "3 height width"]) -> None:
        self._image = image

    @property
    def size(self) -> Size:
        """(height, width)."""
        return self._image.shape[1], self._image.shape[2]

    def read(self, rows: slice, columns: slice) -> UInt8[Tensor, "3 rows columns"]:
        """A view of it."""
        return self._image[:, rows, columns]


def pixels_in(path: Path) -> int:
    """How many pixels a TIFF has, from its header; 0 for other files, and for those that cannot be read."""
    if path.suffix.lower() not in TIFF_SUFFIXES or not path.is_file():
        return 0
    try:
        import tifffile

        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            return int(page.shape[0]) * int(page.shape[1])
    except ModuleNotFoundError:
        return _pixels_by_pillow(path)
    except Exception:  # the reader reports it
        return 0


def _pixels_by_pillow(path: Path) -> int:
    """The same without tifffile; what Pillow refuses to open for its size counts as too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images
            with Image.open(path) as image:
                return image.width * image.height
    except Image.DecompressionBombError:
        return MOST_PIXELS + 1
    except Exception:  # the reader reports it
        return 0


@contextmanager
def open_large(path: Path) -> Iterator[LargeImage]:
    """Open a TIFF to read it in windows; other images are read at once, up to `read.MOST_PIXELS`.

    Raises:
        DataError: it cannot be read, or is a TIFF of other pixels than 8-bit grey or RGB.
        MissingPackageError: the packages for windows are not installed.
    """
    if path.suffix.lower() not in TIFF_SUFFIXES:
        yield InMemory(read_image(path))
        return
    with needs_extra("tiff", path):
        import tifffile
        import zarr
    with ExitStack() as stack:
        try:
            file = stack.enter_context(tifffile.TiffFile(path))
            store = stack.enter_context(file.series[0].levels[0].aszarr())
            array: Any = zarr.open(store, mode="r")
        except Exception as error:  # both raise all kinds of errors on damaged files
            raise DataError(path, f"the TIFF cannot be read ({error}); save it again") from None
        shape = tuple(array.shape)
        channels = shape[2] if len(shape) == 3 else 1
        if len(shape) not in (2, 3) or channels not in (1, 3, 4) or str(array.dtype) != "uint8":
            raise DataError(
                path,
                f"is a TIFF of shape {shape} and type {array.dtype}; windows are read of 8-bit grey or RGB, "
                "(height, width) or (height, width, 3)",
            )
        yield TiffWindows(path, array)
