"""How the images of a set or a run are read: decided once for all of them, and reported."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from unimask.data.pillow import SIXTEEN_BIT, frames_in, is_cut, opened
from unimask.data.pixels import EIGHT_BITS, depth_of, few_levels, swaps_sides
from unimask.data.read import read
from unimask.data.reading import Reading
from unimask.errors import DataError, UnimaskError, some_of
from unimask.structures import Size

MOST_HEADS = 1000  # of files, spread over the set, whose heads are read
MOST_DECODED = 50  # of the files of 16 bits among them, which are searched for the brightest value


@dataclass(frozen=True, kw_only=True)
class FileHead:
    """The head of an image file. `size` is that of the stored pixels."""

    size: Size
    orientation: int  # as EXIF numbers it; 1: as stored
    is_deep: bool  # more than 8 bits a channel
    pages: int


def head_of(path: Path) -> FileHead:
    """Return the head of an image file; of one that cannot be read a plain one without a size.

    The error is reported where the file is read.
    """
    try:
        with opened(path) as image:
            orientation = int(image.getexif().get(0x0112, 1))
            height, width = image.height, image.width
            if image.format == "TIFF" and swaps_sides(orientation):  # Pillow states the turned size
                height, width = width, height
            deep = image.mode in SIXTEEN_BIT or is_cut(image)
            return FileHead(
                size=(height, width), orientation=orientation, is_deep=deep, pages=frames_in(image)
            )
    except Exception:  # decoders raise all kinds of errors
        return FileHead(size=(0, 0), orientation=1, is_deep=path.suffix.lower() in (".tif", ".tiff"), pages=1)


def spread(count: int, most: int) -> list[int]:
    """Return indices below `count`, at most so many, spread evenly."""
    return list(range(count)) if count <= most else [index * count // most for index in range(most)]


@dataclass(frozen=True, kw_only=True)
class Decided:
    """How the images of a set are read, and a sentence about each decision."""

    reading: Reading
    said: tuple[str, ...]


def decide_for_set(
    images: Sequence[Path], stated: Callable[[int], tuple[Size, ...]], reading: Reading
) -> Decided:
    """Return how the images of a set are read: what `reading` leaves open is decided by its files.

    Where image files have an EXIF orientation, they are turned or not as the sizes of the labels tell
    (`stated`, by the index of the image); where these do not tell, they are turned. Of a large set some files
    are examined, spread over it.

    Raises:
        DataError: the labels of some images have the size of the turned image, and of others that of the
            stored pixels.
    """
    said: list[str] = []
    heads = {index: head_of(images[index]) for index in spread(len(images), MOST_HEADS)}
    if reading.orientation == "auto":
        turned = [
            (images[index], head, stated(index)) for index, head in heads.items() if head.orientation > 1
        ]
        reading = _orientation(turned, reading, said)
    reading = _depth([images[index] for index, head in heads.items() if head.is_deep], reading, said)
    if reading.page == "first" and (several := [images[i] for i, head in heads.items() if head.pages > 1]):
        said.append(
            f"{len(several)} images have several pages, and the first is read (data.page): "
            f"{some_of((path.name for path in several), 3)}"
        )
    return Decided(reading=reading, said=tuple(said))


def decide_for_run(images: Sequence[object], reading: Reading) -> tuple[Reading, tuple[str, ...]]:
    """Return how the images of a run are read, with their depth decided, and sentences about it.

    Files and arrays are examined, spread over the run.
    """
    said: list[str] = []
    chosen = [images[index] for index in spread(len(images), MOST_HEADS)]
    deep = [image for image in chosen if _is_deep(image)]
    return _depth(deep, reading, said), tuple(said)


def _is_deep(image: object) -> bool:
    """Return whether a file or an array has more than 8 bits a channel."""
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        return path.suffix.lower() not in EIGHT_BIT_SUFFIXES and head_of(path).is_deep
    if isinstance(image, Tensor):
        return not image.is_floating_point() and image.element_size() > 1
    return isinstance(image, np.ndarray) and image.dtype.kind in "iu" and image.itemsize > 1


EIGHT_BIT_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".gif", ".bmp", ".webp")


def _orientation(
    turned: Sequence[tuple[Path, FileHead, tuple[Size, ...]]], reading: Reading, said: list[str]
) -> Reading:
    """Decide whether images are turned, by the sizes that labels state."""
    fits: dict[str, list[Path]] = {"exif": [], "stored": []}
    for path, head, stated in turned:
        if swaps_sides(head.orientation) and head.size[0] != head.size[1]:
            if stated == (head.size,):
                fits["stored"].append(path)
            elif stated == (head.size[::-1],):
                fits["exif"].append(path)
    exif, stored = fits["exif"], fits["stored"]
    if exif and stored:
        raise DataError(
            stored[0],
            f"its labels have the size of the stored pixels, but those of {exif[0].name} that of the image "
            f"turned by its EXIF orientation ({len(stored)} and {len(exif)} images); label them alike, or "
            "take the orientation out of the files",
        )
    if not turned:
        return reading
    what = f"{len(turned)} images have an EXIF orientation"
    if stored:
        said.append(
            f"{what}, and their labels have the size of the stored pixels: none is turned "
            "(data.orientation=stored)"
        )
        return replace(reading, orientation="stored")
    if exif:
        said.append(f"{what}, and their labels have the size of the turned image (data.orientation=exif)")
        return replace(reading, orientation="exif")
    names = some_of((path.name for path, *_ in turned), 3)
    chosen = {"exif": "they are turned", "stored": "none is turned"}[reading.undecided]
    said.append(
        f"{what}, and the sizes of their labels do not tell whether they were drawn on turned images: "
        f"{chosen} (data.orientation={reading.undecided}; exif or stored): {names}"
    )
    return replace(reading, orientation=reading.undecided)


def _depth(deep: Sequence[object], reading: Reading, said: list[str]) -> Reading:
    """Decide how many bits the camera has, by the brightest of some images of more than 8."""
    spans = [span for index in spread(len(deep), MOST_DECODED) if (span := _span(deep[index], reading))]
    if not spans:
        return reading
    lowest, highest = min(low for low, _ in spans), max(high for _, high in spans)
    depth = depth_of(highest, 16, reading.depth)
    if reading.depth == "auto":
        said.append(
            f"images of 16 bits are taken as {depth}-bit, for the brightest value of {len(spans)} of them is "
            f"{highest}; say otherwise with --depth or data.depth"
        )
    said += few_levels((lowest, highest), depth)
    return replace(reading, depth=depth)


def _span(image: object, reading: Reading) -> tuple[int, ...]:
    """Return the lowest and highest value of a 16-bit image; none where it has 8 bits or cannot be read."""
    try:
        span = read(image, replace(reading, depth="auto")).span
    except UnimaskError:  # reported where the file is read
        return ()
    return () if span == EIGHT_BITS else span
