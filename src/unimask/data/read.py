"""Read images, label maps and lists: 8-bit RGB whatever the file holds, or one clear error."""

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, UInt8
from numpy import ndarray
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from unimask.data.pillow import (
    SIXTEEN_BIT,
    check_file,
    check_pixels,
    frames_in,
    is_cut,
    of_pillow,
    one_sentence,
    open_image,
    opened,
    tags_of,
)
from unimask.data.pixels import Layout, Read, to_rgb
from unimask.data.reading import PLAIN, Reading
from unimask.data.tiff import open_tiff
from unimask.errors import DataError
from unimask.files import read_bytes
from unimask.structures import Size


@runtime_checkable
class ByteStream(Protocol):
    """A file that is open in binary mode, or an object with its `read`."""

    def read(self) -> bytes:
        """Return what is left of it."""


@runtime_checkable
class ArrayLike(Protocol):
    """Anything that numpy converts to an array."""

    def __array__(self) -> ndarray: ...


AnyImage = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | ByteStream
    | Image.Image
    | ndarray
    | Tensor
    | ArrayLike
)
"""What can be read as an image: a path, the bytes of a file or a stream of them, a PIL image, an array
(H,W[,C]) or a tensor ([C,]H,W)."""

Channels = Literal["rgb", "bgr"]
"""The order of the colours in arrays and tensors; OpenCV's is bgr."""

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".jp2"}
    | {".avif"}
)
RESULT_ENDINGS = (".overlay.png", ".segments.png")  # of images that `Result.save` writes
_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_image(
    image: AnyImage, reading: Reading = PLAIN, *, channels: Channels = "rgb"
) -> UInt8[Tensor, "3 height width"]:
    """Read an image as 8-bit RGB.

    The EXIF orientation is applied. Transparent images are laid on white. Palettes become colours, grey
    becomes three equal channels, CMYK is converted. Values of 16 bits are scaled by the depth of the camera,
    by default guessed from the brightest one: below 256 they are taken as they are, below 4096 they are
    12-bit, otherwise 16-bit. Of several images in a file the first one is read, of channels that are no
    colours the first. `reading` changes all of that. Arrays and tensors have the order of `channels`.

    Raises:
        DataError: the file is missing, empty, damaged, not an image, too large, or of floating-point pixels.
        MissingPackageError: the packages for such a TIFF are not installed.
    """
    return read(image, reading, channels=channels).pixels


def read(image: object, reading: Reading = PLAIN, *, channels: Channels = "rgb") -> Read:
    """Read an image as `read_image`, with sentences about what is left out or was guessed.

    Raises:
        DataError: also where the source cannot be an image.
    """
    if isinstance(image, str | os.PathLike):
        return _read_file(Path(image), os.fspath(image), reading)
    if isinstance(image, Image.Image):
        name = (str(image.filename) if isinstance(image, ImageFile.ImageFile) else "") or "PIL image"
        with one_sentence(name):
            return of_pillow(image, name, reading)
    if isinstance(image, Tensor):
        if image.is_floating_point() or image.is_complex():
            raise DataError("tensor", f"holds {image.dtype} values; expected integers from 0 to 255 (uint8)")
        array = image.detach().cpu().numpy()
        shaped = array.transpose(1, 2, 0) if array.ndim == 3 else array
        return _of_array(shaped, "tensor", "([C,]H,W)", reading, channels)
    if isinstance(image, bytes | bytearray | memoryview):
        return _read_file(bytes(image), "bytes", reading)
    if isinstance(image, ByteStream):
        name = _name_of(image) or "stream"
        return _read_file(_bytes_of(image, name), name, reading)
    if isinstance(image, ndarray):
        return _of_array(image, "array", "(H,W[,C])", reading, channels)
    if isinstance(image, ArrayLike):
        return _of_array(np.asarray(image), type(image).__name__, "(H,W[,C])", reading, channels)
    if image is None:
        raise DataError("image", "is None, as cv2.imread returns it for a file that it cannot read")
    raise DataError(
        "image",
        f"is of type {type(image).__name__}; expected a path, bytes, a stream, a PIL image, an array or a "
        "tensor",
    )


def is_one_image(image: object) -> bool:
    """Return whether an object is one image, even if it can be iterated over."""
    kinds = str | os.PathLike | bytes | bytearray | memoryview | Image.Image | ndarray | Tensor | ArrayLike
    return isinstance(image, kinds | ByteStream)


def image_name(image: object, number: int) -> str:
    """Return the name of an image: the stem of its file, or its number among several."""
    if isinstance(image, str | os.PathLike):
        return Path(image).stem
    return (Path(_name_of(image)).stem if isinstance(image, ByteStream) else "") or f"image_{number}"


def _name_of(stream: ByteStream) -> str:
    """Return the path of the file behind a stream; "" where it has none, or only a number."""
    name = getattr(stream, "name", "")  # those in memory have none
    return name if isinstance(name, str) else ""


def _bytes_of(stream: ByteStream, name: str) -> bytes:
    try:
        content = stream.read()
    except (OSError, ValueError) as error:  # closed, or not open for reading
        raise DataError(name, f"the stream cannot be read ({error})") from None
    if not isinstance(content, bytes | bytearray | memoryview):
        raise DataError(name, f"is a stream of {type(content).__name__}; open the file in binary mode ('rb')")
    return bytes(content)


def read_annotated_image(path: Path, size: Size, reading: Reading = PLAIN) -> UInt8[Tensor, "3 height width"]:
    """Read an image whose annotations are of `size`; the caller checks that it has that size.

    Where a file has an EXIF orientation, nothing has been decided about the set (`orientation` "auto"), and
    only its stored pixels fit the size, it is not turned: the annotations were then made without regard to
    the orientation.

    Raises:
        DataError: as `read_image`.
    """
    image = read_image(path, reading)
    if tuple(image.shape[1:]) == size or reading.orientation != "auto":
        return image
    return read_image(path, replace(reading, orientation="stored"))


def _read_file(source: Path | bytes, name: str, reading: Reading) -> Read:
    if isinstance(source, Path):
        check_file(source)
    elif not source:
        raise DataError(name, "holds nothing (0 bytes); a stream that was read begins again with seek(0)")
    with one_sentence(name):
        try:
            with opened(source) as image:
                if not (image.format == "TIFF" and _is_for_tifffile(image, reading)):
                    return of_pillow(image, name, reading, source)
        except UnidentifiedImageError:
            if not _head(source).startswith(_TIFF_HEADS):
                raise
        with open_tiff(_stream(source), name, reading) as tiff:
            check_pixels(*tiff.size, name)
            return tiff.read(slice(0, tiff.size[0]), slice(0, tiff.size[1]), reading)


def _stream(source: Path | bytes) -> Path | BytesIO:
    return source if isinstance(source, Path) else BytesIO(source)


def _head(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:4]
    with source.open("rb") as file:
        return file.read(4)


def _is_for_tifffile(image: Image.Image, reading: Reading) -> bool:
    """Return whether Pillow reads only a part of the file, or wrongly."""
    tags = tags_of(image)
    if frames_in(image) > 1 or reading.channel != "colors":
        return _has_tifffile()  # Pillow reads pages and colours, too
    white_is_zero = tags.get(262) == 0 and image.mode in SIXTEEN_BIT
    dropped = 0 in tuple(tags.get(338, ()))  # channels that are no colours
    is_stack = str(tags.get(270, "")).startswith("ImageJ=") and "\nimages=" in str(tags.get(270))
    return white_is_zero or is_cut(image) or is_stack or (dropped and _has_tifffile())


def _has_tifffile() -> bool:
    try:
        import tifffile  # noqa: F401
        import zarr  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def _of_array(array: ndarray, name: str, form: str, reading: Reading, channels: Channels) -> Read:
    shaped = array[..., None] if array.ndim == 2 else array
    if shaped.ndim != 3 or (shaped.shape[2] not in (1, 3, 4) and reading.channel == "colors"):
        raise DataError(
            name,
            f"has shape {array.shape}; expected an image {form} of 1, 3 or 4 channels (of others choose one)",
        )
    if shaped.size == 0:
        raise DataError(name, f"has no pixels (shape {array.shape})")
    count = shaped.shape[2]
    if channels == "bgr" and count in (3, 4):
        shaped = shaped[..., [2, 1, 0, 3][:count]]
    elif channels not in ("rgb", "bgr"):
        raise DataError(name, f"has channels {channels!r}; expected 'rgb' or 'bgr'")
    layout = Layout(
        colors="rgb" if count in (3, 4) else "grey",
        alpha="straight" if count == 4 else "none",
        bits=8 if shaped.dtype == np.uint8 else 16,
    )
    return to_rgb(shaped, layout, reading, name)


def read_labels(path: Path) -> Int32[ndarray, "height width"]:
    """Read the numbers of a label map: grey values of 8 or 16 bits, or palette indices (not their colours).

    Raises:
        DataError: as `open_image`, or the image has colours instead of one number per pixel.
    """
    image = open_image(path, rotate=False)
    if image.mode not in ("1", "L", "P", *SIXTEEN_BIT):
        raise DataError(
            path,
            f"is a label map of mode {image.mode}; expected one number per pixel (8- or 16-bit grey, "
            "or a palette)",
        )
    return np.array(image).astype(np.int32)


def read_panoptic_ids(path: Path) -> Int32[ndarray, "height width"]:
    """Read the segment ids of a PNG of the COCO panoptic format: R + 256 G + 65536 B.

    Raises:
        DataError: as `open_image`, or the image has no three channels of 8 bits.
    """
    image = open_image(path, rotate=False)
    if image.mode not in ("RGB", "RGBA"):
        raise DataError(
            path, f"is of mode {image.mode}; a panoptic PNG is RGB, with id = R + 256 G + 65536 B"
        )
    channels = np.asarray(image.convert("RGB")).astype(np.int32)
    return channels[..., 0] + 256 * channels[..., 1] + 65536 * channels[..., 2]


def image_files(paths: Sequence[str | Path]) -> list[Path]:
    """List image files: files as they are given, folders replaced by the images in them, sorted.

    A file that is named need not exist: reading it gives the error. Of a folder, hidden files, subfolders and
    results of `Result.save` (NAME.overlay.png, NAME.segments.png) are left out.

    Raises:
        DataError: a folder has no image, or nothing is given.
    """
    if not paths:
        raise DataError("images", "none given; name at least one image or folder")
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            files.append(path)
            continue
        found = [file for file in images_in(path) if not file.name.endswith(RESULT_ENDINGS)]
        if not found:
            kinds = " ".join(sorted(IMAGE_SUFFIXES))
            raise DataError(path, f"no images in this folder (looked for {kinds}, not in subfolders)")
        files.extend(found)
    return files


def left_out_of(paths: Sequence[str | Path]) -> tuple[str, ...]:
    """Say for each folder among the paths which files are no images: their number, and the first of them.

    What `Result.save` wrote beside the images does not count, nor do hidden files.
    """
    found = []
    for folder in (path for path in map(Path, paths) if path.is_dir()):
        names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
        if others := left_out_among(names, {path.name for path in images_in(folder)}):
            found.append(f"{folder}: {others}")
    return tuple(found)


def left_out_among(names: Sequence[str], images: Collection[str]) -> str:
    """Say which of the names in a folder are neither images nor results of these; nothing where all are."""
    stems = {Path(name).stem for name in images}
    others = sorted(
        name
        for name in names
        if name not in images
        and not name.endswith((*RESULT_ENDINGS, ".segments.tif"))
        and not (Path(name).suffix == ".json" and Path(name).stem in stems)
    )
    if not others:
        return ""
    kind = f"{len(others)} files and folders are no images" if len(others) > 1 else "one is no image"
    return f"{kind} and left out, the first is {others[0]}"


def images_in(folder: Path) -> list[Path]:
    """List the images directly in a folder, by their suffix, sorted by name, without hidden files."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and not path.is_dir()
    )


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number, from 1 on, and the content of each line of a text file that is not blank, stripped.

    Bytes that are not UTF-8 become replacement characters.
    """
    text = read_bytes(path).decode("utf-8-sig", errors="replace")
    yield from ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip())
