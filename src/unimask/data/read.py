"""Read images, label maps and lists: 8-bit RGB whatever the file holds, or one clear error."""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int32, UInt8
from numpy import ndarray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.io import decode_png

from unimask.errors import DataError
from unimask.files import read_bytes
from unimask.structures import Size

AnyImage = str | Path | Image.Image | ndarray | Tensor
"""What can be read as an image: a file, a PIL image, an array (H,W[,C]) or a tensor ([C,]H,W)."""

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".jp2"}
    | {".avif"}
)
RESULT_ENDINGS = (".overlay.png", ".segments.png")  # of images that `Result.save` writes
MOST_PIXELS = 178_000_000  # more is refused: a decompression bomb, or an image to cut into tiles
_SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def read_image(image: AnyImage, *, rotate: bool = True) -> UInt8[Tensor, "3 height width"]:
    """Read an image as 8-bit RGB.

    The EXIF orientation is applied (unless `rotate` is off). Transparent images are laid on white.
    Palettes become colours, grey becomes three equal channels, CMYK is converted. 16-bit grey is scaled by
    the depth of the camera, guessed from the brightest pixel: below 256 the values are taken as they are,
    below 4096 they are 12-bit, otherwise 16-bit; so images of one camera are scaled alike, however bright
    they are. Only the first of several frames is read.

    Raises:
        DataError: the file is missing, empty, damaged, not an image, too large, or of floating-point pixels.
    """
    if isinstance(image, str | Path):
        return _to_tensor(open_image(Path(image), rotate=rotate), str(image))
    if isinstance(image, Image.Image):
        name = (str(image.filename) if isinstance(image, ImageFile.ImageFile) else "") or "PIL image"
        return _to_tensor(_load(image, Path(name), rotate), name)
    if isinstance(image, Tensor):
        if image.is_floating_point():
            raise DataError("tensor", f"holds {image.dtype} values; expected integers from 0 to 255 (uint8)")
        array = image.detach().cpu().numpy()
        return _from_array(array.transpose(1, 2, 0) if array.ndim == 3 else array, "tensor", "([C,]H,W)")
    return _from_array(image, "array", "(H,W[,C])")


def read_annotated_image(path: Path, size: Size) -> UInt8[Tensor, "3 height width"]:
    """Read an image whose annotations are of `size`; the caller checks that it has that size.

    Where a file has an EXIF orientation and only its stored pixels fit the size, it is not rotated: the
    annotations were then made without regard to the orientation.

    Raises:
        DataError: as `read_image`.
    """
    image = read_image(path)
    return image if tuple(image.shape[1:]) == size else read_image(path, rotate=False)


def open_image(path: Path, *, rotate: bool) -> Image.Image:
    """Decode a file with PIL.

    Raises:
        DataError: the file is missing, empty, damaged, not an image, or too large.
    """
    try:
        if path.is_dir():
            raise DataError(path, "is a folder, not an image")
        if not path.exists():
            raise DataError(path, "no such file")
        if not path.is_file():
            raise DataError(path, "is no regular file (a pipe or a device)")
        if path.stat().st_size == 0:
            raise DataError(path, "the file is empty (0 bytes); copy it again")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL warns of large images (the limit here is MOST_PIXELS)
            with Image.open(path) as image:
                is_png = image.format == "PNG"
                loaded = _load(image, path, rotate)
        if is_png and not _all_rows_there(loaded, path):
            raise _damaged(path, EOFError("rows are missing"))
        return loaded
    except Image.DecompressionBombError:
        raise DataError(path, f"more than {MOST_PIXELS:,} pixels; cut it into tiles") from None
    except UnidentifiedImageError:
        raise DataError(path, "is not an image in a known format; save it as PNG, JPEG or TIFF") from None
    except PermissionError:
        raise DataError(path, "may not be read; check its permissions") from None
    except MemoryError:
        raise DataError(path, "does not fit into memory; cut it into tiles") from None
    except Exception as error:  # decoders raise all kinds of errors on damaged files
        if isinstance(error, DataError):
            raise
        raise _damaged(path, error) from None


def stated_size(path: Path, default: Size) -> Size:
    """Return the size in the head of an image file, `default` where that cannot be read.

    So a file of the wrong size is told before its pixels take any memory.
    """
    try:
        if not path.is_file():
            return default
        with Image.open(path) as image:
            return image.height, image.width
    except Exception:  # decoders raise all kinds of errors; what is wrong is said where the file is read
        return default


def _load(image: Image.Image, path: Path, rotate: bool) -> Image.Image:
    if image.width * image.height > MOST_PIXELS:
        raise DataError(
            path, f"{image.width} x {image.height} is more than {MOST_PIXELS:,} pixels; cut it into tiles"
        )
    if image.width == 0 or image.height == 0:
        raise DataError(path, f"has no pixels ({image.width} x {image.height})")
    try:
        image.load()
        if rotate:
            image = ImageOps.exif_transpose(image)
    except MemoryError:
        raise DataError(path, "does not fit into memory; cut it into tiles") from None
    except Exception as error:
        raise _damaged(path, error) from None
    return image


def _all_rows_there(image: Image.Image, path: Path) -> bool:
    """Whether a PNG has data for each row that its head promises; Pillow leaves missing rows black.

    The file is only decoded a second time, with a decoder that complains, where the last row is black.
    """
    if np.asarray(image.crop((0, image.height - 1, image.width, image.height))).any():
        return True
    try:
        decode_png(torch.frombuffer(bytearray(read_bytes(path)), dtype=torch.uint8))
    except RuntimeError as error:
        return "Internal error" not in str(error)  # of libpng: it has told which
    return True


def _damaged(path: Path, error: Exception) -> DataError:
    reason = str(error) or type(error).__name__
    return DataError(path, f"the image is damaged or cut off ({reason}); copy or save it again")


def _to_tensor(image: Image.Image, name: str) -> UInt8[Tensor, "3 height width"]:
    if image.mode in _SIXTEEN_BIT:
        return _from_array(np.asarray(image), name, "")
    if image.mode == "F":
        raise DataError(name, "has floating-point pixels; save it with 8 or 16 bits a channel")
    mode = image.mode
    try:
        if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image)
        pixels = np.array(image.convert("RGB"))
    except ValueError as error:  # some modes have no way to RGB
        raise DataError(name, f"is of mode {mode} ({error}); save it as RGB, for instance as PNG") from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _from_array(array: ndarray, name: str, layout: str) -> UInt8[Tensor, "3 height width"]:
    shaped = array[..., None] if array.ndim == 2 else array
    if shaped.ndim != 3 or shaped.shape[2] not in (1, 3, 4):
        raise DataError(name, f"has shape {array.shape}; expected an image {layout} of 1, 3 or 4 channels")
    if shaped.size == 0:
        raise DataError(name, f"has no pixels (shape {array.shape})")
    if shaped.dtype == bool:
        shaped = shaped.astype(np.uint8) * 255
    if not np.issubdtype(shaped.dtype, np.integer):
        raise DataError(name, f"holds {array.dtype} values; expected integers from 0 to 255 (uint8)")
    if shaped.dtype != np.uint8:
        shaped = _to_8_bits(shaped, name)
    if shaped.shape[2] == 4:
        return _to_tensor(Image.fromarray(np.ascontiguousarray(shaped)), name)
    pixels = torch.from_numpy(np.array(shaped)).permute(2, 0, 1)
    return pixels.expand(3, -1, -1).contiguous()


def _to_8_bits(pixels: ndarray, name: str) -> ndarray:
    lowest, highest = int(pixels.min()), int(pixels.max())
    if lowest < 0 or highest > 65535:
        raise DataError(name, f"has values from {lowest} to {highest}; expected 8 or 16 bits (0 to 65535)")
    if highest < 256:
        return pixels.astype(np.uint8)
    full = 4095 if highest < 4096 else 65535
    return np.round(pixels.astype(np.float32) * (255 / full)).astype(np.uint8)


def read_labels(path: Path) -> Int32[ndarray, "height width"]:
    """Read the numbers of a label map: grey values of 8 or 16 bits, or palette indices (not their colours).

    Raises:
        DataError: as `open_image`, or the image has colours instead of one number per pixel.
    """
    image = open_image(path, rotate=False)
    if image.mode not in ("1", "L", "P", *_SIXTEEN_BIT):
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
