"""Image files that Pillow reads, as 8-bit RGB, or one clear error."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from unimask.data.pixels import (
    EIGHT_BITS,
    Layout,
    Read,
    on_white,
    page_note,
    rgba,
    swaps_sides,
    to_rgb,
    turned,
)
from unimask.data.reading import Reading
from unimask.errors import DataError, UnimaskError, instead_of
from unimask.files import read_bytes
from unimask.structures import Size

MOST_PIXELS = 178_000_000  # more is refused: a decompression bomb, or an image to cut into tiles
SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_ORIENTATION = 0x0112
_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF orientation -> how an image that was turned by it lies in the file again."""


def open_image(path: Path, *, rotate: bool) -> Image.Image:
    """Decode a file of one image, such as a label map, with PIL.

    Raises:
        DataError: the file is missing, empty, damaged, not an image, too large, or of several pages.
    """
    check_file(path)
    with one_sentence(str(path)), opened(path) as image:
        if (pages := frames_in(image)) > 1:
            raise DataError(path, f"is a label map of {pages} pages; expected one, save each as a file")
        return _loaded(image, path, str(path), rotate)


def tags_of(image: Image.Image) -> Mapping[int, Any]:
    """Return the tags of a TIFF by their numbers; none of other files."""
    return image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}


@contextmanager
def opened(source: Path | bytes) -> Iterator[Image.Image]:
    """Open an image file without decoding it.

    A TIFF whose orientation makes rows of columns is read at once: Pillow would map it into memory with the
    sides of the turned image.

    Raises:
        DataError: there is no regular file with content.
    """
    if isinstance(source, Path):
        check_file(source)
    with Image.open(source if isinstance(source, Path) else BytesIO(source)) as image:
        if isinstance(source, bytes) or not swaps_sides(tags_of(image).get(_ORIENTATION, 1)):
            yield image
            return
    with Image.open(BytesIO(read_bytes(source))) as image:
        yield image


def stated_size(path: Path, default: Size) -> Size:
    """Return the size in the head of an image file, `default` where that cannot be read.

    So a file of the wrong size is refused before its pixels take any memory.
    """
    try:
        if not path.is_file():
            return default
        with Image.open(path) as image:
            return image.height, image.width
    except Exception:  # decoders raise all kinds of errors; they are reported where the file is read
        return default


@contextmanager
def one_sentence(name: str) -> Iterator[None]:
    """Turn what decoders raise on damaged files into a DataError."""
    try:
        yield
    except Image.DecompressionBombWarning as warning:  # where Python is told to take warnings for errors
        raise DataError(name, f"is refused by Pillow's own limit ({warning})") from None
    except Image.DecompressionBombError:
        raise DataError(name, f"more than {MOST_PIXELS:,} pixels; cut it into tiles") from None
    except UnidentifiedImageError:
        raise DataError(name, "is not an image in a known format; save it as PNG, JPEG or TIFF") from None
    except PermissionError:
        raise DataError(name, "may not be read; check its permissions") from None
    except MemoryError:
        raise DataError(name, "does not fit into memory; cut it into tiles") from None
    except UnimaskError:
        raise
    except Exception as error:  # decoders raise all kinds of errors on damaged files
        raise _damaged(name, error) from None


def check_file(path: Path) -> None:
    """Check that there is a regular file with content.

    Raises:
        DataError: there is none.
    """
    try:
        if path.is_dir():
            raise DataError(path, "is a folder, not an image; `unimask.predict` takes folders")
        if not path.exists():
            raise DataError(path, f"no such file{instead_of(str(path))}")
        if not path.is_file():
            raise DataError(path, "is no regular file (a pipe or a device)")
        if path.stat().st_size == 0:
            raise DataError(path, "the file is empty (0 bytes); copy it again")
    except (OSError, ValueError) as error:  # a name too long, or with a null
        raise _damaged(str(path), error) from None


def frames_in(image: Image.Image) -> int:
    """Return how many images a file has; the previews of a camera (MPO) do not count."""
    return 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))


def is_cut(image: Image.Image) -> bool:
    """Return whether Pillow would cut colours of 16 bits to the high byte."""
    raw = [part for tile in getattr(image, "tile", ()) for part in _strings(tile[3])]
    return image.mode not in SIXTEEN_BIT and any(";16" in part for part in raw)


def _strings(arguments: object) -> list[str]:
    parts = arguments if isinstance(arguments, tuple | list) else (arguments,)
    return [part for part in parts if isinstance(part, str)]


def of_pillow(image: Image.Image, name: str, reading: Reading, source: Path | bytes | None = None) -> Read:
    """Read the page that is asked for; `source` is the file that the image was just opened from."""
    frames = frames_in(image)
    rotate = reading.orientation != "stored"
    if reading.page == "max" and frames > 1:
        found = [_of_frame(image, number, name, reading) for number in range(frames)]
        return replace(found[0], pixels=torch.stack([one.pixels for one in found]).amax(0))
    number = reading.page if isinstance(reading.page, int) else 1
    if number > frames:
        raise DataError(name, f"has {frames} pages; there is no page {number}")
    if number > 1 or (frames > 1 and source is None and isinstance(reading.page, int)):
        return _of_frame(image, number - 1, name, reading)
    notes = page_note(frames) if frames > 1 and source is not None and reading.page == "first" else ()
    if image.format == "PNG" and source is not None and is_cut(image):
        read = _deep_png(image, source, name, reading)
    else:
        read = _to_rgb(_loaded(image, source, name, rotate), name, reading)
    return replace(read, notes=(*notes, *read.notes)) if notes else read


def _of_frame(image: Image.Image, number: int, name: str, reading: Reading) -> Read:
    image.seek(number)
    return _to_rgb(_loaded(image.copy(), None, name, reading.orientation != "stored"), name, reading)


def _decode_png(content: bytes) -> Tensor:
    """Decode a PNG with libpng, which keeps 16 bits and complains: (channels, height, width)."""
    from torchvision.io import decode_png  # takes long to import, and few images need it

    decoded: Tensor = decode_png(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    return decoded


def _deep_png(image: Image.Image, source: Path | bytes, name: str, reading: Reading) -> Read:
    """Return whether an image has colours, or grey with alpha, of 16 bits."""
    check_pixels(image.height, image.width, name)
    content = source if isinstance(source, bytes) else read_bytes(source)
    values = _decode_png(content).permute(1, 2, 0).numpy()
    if reading.orientation != "stored":
        values = turned(values, image.getexif().get(_ORIENTATION, 1))
    alpha: Literal["straight", "none"] = "straight" if values.shape[2] in (2, 4) else "none"
    colors: Literal["rgb", "grey"] = "rgb" if values.shape[2] >= 3 else "grey"
    return to_rgb(values, Layout(colors=colors, alpha=alpha, bits=8 * values.itemsize), reading, name)


def _loaded(image: Image.Image, source: Path | bytes | None, name: str, rotate: bool) -> Image.Image:
    """Decode the pixels of an image that was opened from `source`, turned or as they are stored."""
    check_pixels(image.height, image.width, name)
    is_png = image.format == "PNG" and source is not None
    stored = int(tags_of(image).get(_ORIENTATION, 1)) if image.format == "TIFF" and not rotate else 1
    image.load()  # turns a TIFF
    if rotate:
        image = ImageOps.exif_transpose(image)
    elif stored in _BACK:
        image = image.transpose(_BACK[stored])
    if is_png and source is not None and not _all_rows_there(image, source):
        raise EOFError("rows are missing")
    return image


def check_pixels(height: int, width: int, name: str) -> None:
    """Check the number of pixels of an image.

    Raises:
        DataError: there are too many, or none.
    """
    if width * height > MOST_PIXELS:
        raise DataError(name, f"{width} x {height} is more than {MOST_PIXELS:,} pixels; cut it into tiles")
    if width == 0 or height == 0:
        raise DataError(name, f"has no pixels ({width} x {height})")


def _all_rows_there(image: Image.Image, source: Path | bytes) -> bool:
    """Return whether a PNG has data for each row that its head promises; Pillow leaves missing rows black.

    The file is only decoded a second time, with a decoder that complains, where the last row is black.
    """
    if np.asarray(image.crop((0, image.height - 1, image.width, image.height))).any():
        return True
    content = source if isinstance(source, bytes) else read_bytes(source)
    try:
        _decode_png(content)
    except RuntimeError as error:
        return "Internal error" not in str(error)  # of libpng, which has printed the reason
    return True


def _damaged(name: str, error: Exception) -> DataError:
    reason = str(error) or type(error).__name__
    return DataError(name, f"the image is damaged or cut off ({reason}); copy or save it again")


def _to_rgb(image: Image.Image, name: str, reading: Reading) -> Read:
    """Return a loaded image as 8-bit RGB."""
    if image.mode in SIXTEEN_BIT:
        bits = (*tags_of(image).get(258, (16,)), 16)[0]  # 12 where the file says so
        bits = bits if 8 < bits < 16 else 16
        return to_rgb(np.asarray(image)[..., None], Layout(colors="grey", bits=bits), reading, name)
    if image.mode == "F":
        raise DataError(name, "has floating-point pixels; save it with 8 or 16 bits a channel")
    mode = image.mode
    try:
        if reading.channel != "colors":
            return _of_bands(image, name, reading)
        if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            image = on_white(rgba(image))
        pixels = np.array(image.convert("RGB"))
    except ValueError as error:  # some modes cannot be converted to RGB
        raise DataError(name, f"is of mode {mode} ({error}); save it as RGB, for instance as PNG") from None
    return Read(pixels=torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), notes=(), span=EIGHT_BITS)


def _of_bands(image: Image.Image, name: str, reading: Reading) -> Read:
    """Some channel of an image of 8 bits; those of a palette and of CMYK are red, green and blue."""
    if image.mode not in ("1", "L", "LA", "RGB", "RGBA"):
        image = rgba(image) if "A" in image.getbands() else image.convert("RGB")
    bands = image.getbands()
    values = np.asarray(image).reshape(image.height, image.width, len(bands))
    colors: Literal["rgb", "grey"] = "rgb" if len(bands) >= 3 else "grey"
    alpha: Literal["straight", "none"] = "straight" if "A" in bands else "none"
    return to_rgb(values, Layout(colors=colors, alpha=alpha), reading, name)
