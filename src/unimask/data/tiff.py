"""TIFF files that Pillow does not open correctly: stacks, many channels, 16-bit colours; in windows."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from unimask.data.pixels import Layout, Read, page_note, stored_window, swaps_sides, to_rgb, turned
from unimask.data.reading import Reading
from unimask.errors import DataError, MissingPackageError, needs_extra
from unimask.structures import Size

TIFF_SUFFIXES = (".tif", ".tiff")
_ORIENTATION = 274
_CHANNELS = "CS"  # axes of tifffile that are channels: separate images, or samples of a pixel
_PHOTOMETRIC = {0: "white_is_zero", 1: "grey", 2: "rgb", 3: "palette", 5: "cmyk", 6: "rgb"}
_ALPHA = {1: "premultiplied", 2: "straight"}  # of the first extra sample
_JPEG = (6, 7, 34712, 33003, 33005)  # compressions whose decoders return RGB


@dataclass(frozen=True, kw_only=True)
class TiffImage:
    """One image of a TIFF: of its first level, of all channels. `arrays` are those of the pages to join."""

    name: str
    array: Any  # of zarr: it has no common type with tifffile's
    axes: str
    pages: int
    chosen: tuple[int, ...]  # of the pages, from 0 on; their largest value counts
    layout: Layout
    orientation: int
    channels: int

    @property
    def stored_size(self) -> Size:
        """(height, width) as the pixels lie in the file."""
        return self.array.shape[self.axes.index("Y")], self.array.shape[self.axes.index("X")]

    @property
    def size(self) -> Size:
        """(height, width), turned as the orientation says."""
        height, width = self.stored_size
        return (width, height) if swaps_sides(self.orientation) else (height, width)

    def read(self, rows: slice, columns: slice, reading: Reading) -> Read:
        """Return a window as 8-bit RGB.

        Raises:
            DataError: the file is damaged there, or the values are beyond the depth.
        """
        read = to_rgb(self.values(rows, columns), self.layout, reading, self.name)
        return replace(read, notes=(*self.notes(reading), *read.notes))

    def values(self, rows: slice, columns: slice) -> ndarray:
        """Return the values (height, width, channels) of a window.

        Raises:
            DataError: the file is damaged there.
        """
        stored = stored_window(rows, columns, self.size, self.orientation)
        try:
            values = self._page(self.chosen[0], *stored)
            for page in self.chosen[1:]:
                values = np.maximum(values, self._page(page, *stored))
        except Exception as error:  # decoders raise all kinds of errors on damaged files
            place = f"rows {rows.start} to {rows.stop}, columns {columns.start} to {columns.stop}"
            raise DataError(self.name, f"is damaged or cut off at {place} ({error})") from None
        return turned(values, self.orientation)

    def notes(self, reading: Reading) -> tuple[str, ...]:
        """Return sentences about pages that are not read."""
        return page_note(self.pages) if reading.page == "first" and self.pages > 1 else ()

    def _page(self, number: int, rows: slice, columns: slice) -> ndarray:
        others = [axis for axis in self.axes if axis not in f"YX{_CHANNELS}"]
        places = np.unravel_index(number, [self.array.shape[self.axes.index(axis)] for axis in others] or [1])
        index = dict(zip(others, (int(place) for place in places))) | {"Y": rows, "X": columns}
        values = np.asarray(self.array[tuple(index.get(axis, slice(None)) for axis in self.axes)])
        left = [axis for axis in self.axes if axis in f"YX{_CHANNELS}"]
        order = [left.index("Y"), left.index("X"), *(left.index(axis) for axis in left if axis in _CHANNELS)]
        return values.transpose(order).reshape(*(values.shape[place] for place in order[:2]), -1)


@contextmanager
def open_tiff(source: Path | BytesIO, name: str, reading: Reading) -> Iterator[TiffImage]:
    """Open the page of a TIFF that is asked for.

    Raises:
        DataError: it cannot be read, or there is no such page.
        MissingPackageError: the packages for it are not installed.
    """
    with needs_extra("tiff", name):
        import tifffile
        import zarr
    with ExitStack() as stack:
        try:
            file = stack.enter_context(tifffile.TiffFile(source))
            series, pages, chosen = _choose(file, reading, name)
            store = stack.enter_context(series.levels[0].aszarr())
            array: Any = zarr.open(store, mode="r")
            image = _image(name, series, array, pages, chosen, reading)
        except (DataError, MissingPackageError):
            raise
        except Exception as error:  # both raise all kinds of errors on damaged files
            raise DataError(name, f"the TIFF cannot be read ({error}); save it again") from None
        yield image


def _choose(file: Any, reading: Reading, name: str) -> tuple[Any, int, tuple[int, ...]]:
    """Return the series of the page, the number of all pages, and which of the series' own pages to read.

    Images of another size than the first one are series of their own.
    """
    counts = [_count(series) for series in file.series]
    total = sum(counts)
    if not total:
        raise DataError(name, "the TIFF cannot be read (no image is in it); save it again")
    if reading.page == "max":
        return file.series[0], total, tuple(range(counts[0]))
    number = 0 if reading.page == "first" else reading.page - 1
    if number >= total:
        raise DataError(name, f"has {total} pages; there is no page {number + 1}")
    for series, count in zip(file.series, counts):
        if number < count:
            return series, total, (number,)
        number -= count
    raise DataError(name, "holds no image; save it again")


def _count(series: Any) -> int:
    return prod(size for axis, size in zip(series.axes, series.shape) if axis not in f"YX{_CHANNELS}")


def _image(
    name: str, series: Any, array: Any, pages: int, chosen: tuple[int, ...], reading: Reading
) -> TiffImage:
    page, axes = series.keyframe, str(series.axes)
    if "Y" not in axes or "X" not in axes or tuple(array.shape) != tuple(series.shape):
        raise DataError(name, f"is a TIFF of axes {axes} and shape {tuple(array.shape)}; save it as images")
    if array.dtype.kind not in "uib":
        raise DataError(
            name,
            f"is a TIFF of shape {tuple(array.shape)} and type {array.dtype}; save it with 8 or 16 bits a "
            "channel",
        )
    colors = _PHOTOMETRIC.get(int(page.photometric), "")
    if colors == "" or (int(page.photometric) == 6 and int(page.compression) not in _JPEG):
        raise DataError(name, f"is a TIFF of {page.photometric.name}; save it as grey or RGB")
    channels = prod(size for axis, size in zip(axes, series.shape) if axis in _CHANNELS)
    extra = [int(kind) for kind in page.extrasamples]
    plain = 3 if colors == "rgb" else 4 if colors == "cmyk" else 1
    has_alpha = bool(extra) and extra[0] in _ALPHA and channels == plain + 1
    palette = np.zeros((0, 3), np.uint8)
    if colors == "palette" and page.colormap is not None:
        palette = (np.asarray(page.colormap).T >> 8).astype(np.uint8)
    tag = page.tags.get(_ORIENTATION)
    return TiffImage(
        name=name,
        array=array,
        axes=axes,
        pages=pages,
        chosen=chosen,
        layout=Layout(
            colors=colors,  # type: ignore[arg-type]  # one of the table
            alpha=_ALPHA[extra[0]] if has_alpha else "none",  # type: ignore[arg-type]
            bits=int(page.bitspersample),
            palette=palette,
        ),
        orientation=int(tag.value) if tag is not None and reading.orientation != "stored" else 1,
        channels=channels,
    )
