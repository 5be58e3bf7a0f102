"""Values of any depth and number of channels as 8-bit RGB."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from unimask.data.reading import Channel, Depth, Reading
from unimask.errors import DataError

Values = Shaped[ndarray, "_height _width _channels"]
FEW_LEVELS = 16  # of 256 in an image of more than 8 bits; fewer are reported


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the channels of values mean."""

    colors: Literal["grey", "white_is_zero", "rgb", "cmyk", "palette"]
    alpha: Literal["none", "straight", "premultiplied"] = "none"  # the channel after the colours
    bits: int = 8  # of a value, as the file states them
    palette: UInt8[ndarray, "_entries 3"] = field(default_factory=lambda: np.zeros((0, 3), np.uint8))


EIGHT_BITS = (0, 255)


@dataclass(frozen=True, kw_only=True)
class Read:
    """An image, and sentences about how it was read."""

    pixels: UInt8[Tensor, "3 height width"]
    notes: tuple[str, ...]
    span: tuple[int, int]  # the lowest and the highest value of the file


def to_rgb(values: Values, layout: Layout, reading: Reading, name: str) -> Read:
    """Return values as 8-bit RGB, of the channels and in the depth of `reading`.

    Raises:
        DataError: there is no such channel, the values are no integers, or are beyond the depth.
    """
    if values.dtype == bool:
        values, layout = values.astype(np.uint8), _with(layout, bits=1)
    if not np.issubdtype(values.dtype, np.integer):
        raise DataError(name, f"holds {values.dtype} values; expected integers from 0 to 255 (uint8)")
    if layout.colors == "palette":
        values, layout = _colors_of(values, layout, name), Layout(colors="rgb")
    elif layout.colors == "cmyk":
        values, layout = _rgb_of_cmyk(values, name), Layout(colors="rgb")
    elif layout.colors == "white_is_zero":
        values, layout = (2**layout.bits - 1) - values.astype(np.int64), _with(layout, colors="grey")
        values = values.astype(np.uint8) if layout.bits <= 8 else values
    chosen, notes = choose_channel(values, layout, reading.channel, name)
    colors = 3 if chosen.shape[2] >= 3 else 1
    scaled, more, span = to_8_bits(chosen[..., :colors], layout.bits, reading.depth, name)
    if chosen.shape[2] > colors:
        alpha, *_ = to_8_bits(chosen[..., colors:], layout.bits, min(16, 8 * chosen.itemsize), name)
        scaled = np.concatenate([scaled, alpha], axis=2)
    return Read(pixels=_tensor(scaled, layout), notes=(*notes, *more), span=span)


def choose_channel(
    values: Values, layout: Layout, channel: Channel, name: str
) -> tuple[Values, tuple[str, ...]]:
    """Return the channels that are asked for: 1, 3, or with alpha 2 or 4; and what is left out.

    Raises:
        DataError: there is no such channel.
    """
    count = values.shape[2]
    opaque = count - (layout.alpha != "none")
    if channel == "max":
        return values[..., :opaque].max(axis=2, keepdims=True), ()
    if isinstance(channel, int):
        if channel > count:
            raise DataError(name, f"has {count} channels; there is no channel {channel}")
        return values[..., channel - 1 : channel], ()
    colors = 3 if layout.colors == "rgb" and opaque >= 3 else 1
    if colors == opaque:
        return values, ()
    read = "channels 1 to 3" if colors == 3 else "channel 1"
    note = f"{read} of {opaque} read; others with --channel NUMBER, the largest value with --channel max"
    return values[..., :colors], (note,)


def to_8_bits(
    values: Values, bits: int, depth: Depth, name: str
) -> tuple[UInt8[ndarray, "height width channels"], tuple[str, ...], tuple[int, int]]:
    """Scale values of a file with so many bits; of more than 8 bits by `depth`, the bits of the camera.

    Returns the scaled values, sentences about them, and the lowest and the highest value of the file.

    Raises:
        DataError: a value is negative or beyond the depth.
    """
    if bits < 8:
        return (values * (255 / (2**bits - 1))).round().astype(np.uint8), (), EIGHT_BITS
    if values.dtype == np.uint8:
        return values, (), EIGHT_BITS
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest > 65535:
        raise DataError(name, f"has values from {lowest} to {highest}; expected 8 or 16 bits (0 to 65535)")
    used = depth_of(highest, bits, depth)
    full = 2**used - 1
    if highest > full:
        raise DataError(
            name,
            f"has values up to {highest}, beyond its depth of {used} bits ({full}); say how many bits the "
            "camera has: --depth, in settings data.depth",
        )
    scaled = values if used == 8 else (values.astype(np.float32) * (255 / full)).round()
    result = scaled.astype(np.uint8)
    notes = []
    if depth == "auto" and bits == 16:
        notes.append(f"taken as {used}-bit by its brightest value, {highest}; say it for all with --depth")
    notes += few_levels((lowest, highest), used)
    return result, tuple(notes), (lowest, highest)


def few_levels(span: tuple[int, int], depth: int) -> tuple[str, ...]:
    """Return a sentence if values from the lowest to the highest become few of the 256 levels."""
    levels = 1 + int((span[1] - span[0]) * 255 / (2**depth - 1))
    if levels >= FEW_LEVELS or span[1] - span[0] < FEW_LEVELS:
        return ()
    said = f"only about {levels} of 256 levels of brightness are used: values go from {span[0]} to {span[1]}"
    return (f"{said}, and {2**depth - 1} becomes 255; take fewer bits with --depth or data.depth",)


def depth_of(highest: int, bits: int, depth: Depth) -> int:
    """Return the depth that is asked for, else the one that the file states, else by its brightest value."""
    if depth != "auto":
        return depth
    if bits < 16:
        return bits
    return next(one for one in (8, 12, 16) if highest < 2**one)


def page_note(pages: int) -> tuple[str, ...]:
    """Return a sentence if only the first of several images in a file is read."""
    return (f"page 1 of {pages} is read; others with --page NUMBER, the largest value with --page max",)


def on_white(image: Image.Image) -> Image.Image:
    """Lay a transparent image on white."""
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


_TURNS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
"""EXIF orientation -> whether rows and columns change places, and then rows and columns are reversed."""


def turned(values: Values, orientation: int) -> Values:
    """Return values as their EXIF orientation says."""
    swapped, up, back = _TURNS.get(orientation, (False, False, False))
    values = values.transpose(1, 0, 2) if swapped else values
    return values[:: -1 if up else 1, :: -1 if back else 1]


def stored_window(
    rows: slice, columns: slice, size: tuple[int, int], orientation: int
) -> tuple[slice, slice]:
    """Return where a window of a turned image of (height, width) lies in the stored one."""
    swapped, up, back = _TURNS.get(orientation, (False, False, False))
    if up:
        rows = slice(size[0] - rows.stop, size[0] - rows.start)
    if back:
        columns = slice(size[1] - columns.stop, size[1] - columns.start)
    return (columns, rows) if swapped else (rows, columns)


def swaps_sides(orientation: int) -> bool:
    """Return whether an EXIF orientation makes rows of columns."""
    return orientation in _TURNS and _TURNS[orientation][0]


def _with(layout: Layout, **changes: object) -> Layout:
    return Layout(**{**vars(layout), **changes})


def _colors_of(values: Values, layout: Layout, name: str) -> Values:
    numbers = values[..., 0]
    if int(numbers.max()) >= len(layout.palette):
        raise DataError(name, f"has the index {numbers.max()} in a palette of {len(layout.palette)} colours")
    colors: Values = layout.palette[numbers]
    return colors


def _rgb_of_cmyk(values: Values, name: str) -> Values:
    if values.dtype == np.uint16:
        values = (values >> 8).astype(np.uint8)
    if values.dtype != np.uint8 or values.shape[2] < 4:
        raise DataError(name, f"is CMYK of {values.shape[2]} channels and {values.dtype}; save it as RGB")
    flat = np.ascontiguousarray(values[..., :4])
    image = Image.frombytes("CMYK", (flat.shape[1], flat.shape[0]), flat.tobytes())
    return np.array(image.convert("RGB"))


def _tensor(values: UInt8[ndarray, "height width channels"], layout: Layout) -> Tensor:
    """Of 1 or 3 channels, or of 2 or 4 with alpha, which is laid on white."""
    if values.shape[2] in (2, 4):
        modes = {
            ("straight", 2): "LA", ("straight", 4): "RGBA", ("premultiplied", 2): "La",
            ("premultiplied", 4): "RGBa",
        }  # fmt: skip
        flat = np.ascontiguousarray(values)
        mode, size = modes[layout.alpha, values.shape[2]], (flat.shape[1], flat.shape[0])
        values = np.array(on_white(rgba(Image.frombytes(mode, size, flat.tobytes()))))
    pixels = torch.from_numpy(np.array(values.transpose(2, 0, 1), order="C"))
    return pixels.expand(3, -1, -1).contiguous()


def rgba(image: Image.Image) -> Image.Image:
    """Return an image of a mode with alpha as RGBA; premultiplied grey has no direct way there."""
    return image.convert("LA" if image.mode == "La" else image.mode).convert("RGBA")
