"""Images that are read window by window: they may be larger than memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from unimask.data.pillow import MOST_PIXELS
from unimask.data.read import read
from unimask.data.reading import PLAIN, Reading
from unimask.data.tiff import TIFF_SUFFIXES, TiffImage, open_tiff
from unimask.errors import DataError
from unimask.structures import Size


@runtime_checkable
class LargeImage(Protocol):
    """An image of which windows can be read."""

    @property
    def size(self) -> Size:
        """(height, width)."""

    def read(self, rows: slice, columns: slice) -> UInt8[Tensor, "3 rows columns"]:
        """Return a window of it as 8-bit RGB."""


class TiffWindows:
    """A TIFF of which only the strips or tiles that are needed are read; windows equal the whole image."""

    def __init__(self, image: TiffImage, reading: Reading) -> None:
        self._image, self._reading = image, reading

    @property
    def size(self) -> Size:
        """(height, width)."""
        return self._image.size

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what is left out of the file."""
        return self._image.notes(self._reading)

    def read(self, rows: slice, columns: slice) -> UInt8[Tensor, "3 rows columns"]:
        """Return a window as 8-bit RGB.

        Raises:
            DataError: the file is damaged there.
        """
        return self._image.read(rows, columns, self._reading).pixels


class InMemory:
    """An image that has been read as a whole."""

    def __init__(self, image: UInt8[Tensor, "3 height width"], notes: tuple[str, ...] = ()) -> None:
        self._image, self._notes = image, notes

    @property
    def size(self) -> Size:
        """(height, width)."""
        return self._image.shape[1], self._image.shape[2]

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about how it was read."""
        return self._notes

    def read(self, rows: slice, columns: slice) -> UInt8[Tensor, "3 rows columns"]:
        """Return a view of it."""
        return self._image[:, rows, columns]


def pixels_in(path: Path) -> int:
    """Return how many pixels a TIFF has, from its header; 0 for other files and for unreadable ones."""
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
    """Return the same without tifffile; what Pillow refuses to open for its size counts as too large."""
    try:
        with Image.open(path) as image:
            return image.width * image.height
    except Image.DecompressionBombError:
        return MOST_PIXELS + 1
    except Exception:  # the reader reports it
        return 0


@contextmanager
def open_large(path: Path, reading: Reading = PLAIN) -> Iterator[TiffWindows | InMemory]:
    """Open a TIFF to read it in windows; other images are read at once, up to `pillow.MOST_PIXELS`.

    Raises:
        DataError: it cannot be read, or has more than 8 bits and nothing says how many the camera has.
        MissingPackageError: the packages for windows are not installed.
    """
    if path.suffix.lower() not in TIFF_SUFFIXES:
        whole = read(path, reading)
        yield InMemory(whole.pixels, whole.notes)
        return
    with open_tiff(path, str(path), reading) as image:
        if image.layout.bits == 16 and reading.depth == "auto":
            raise DataError(
                path, "has 16 bits a channel and is read in windows; say how many the camera has: --depth"
            )
        yield TiffWindows(image, reading)
