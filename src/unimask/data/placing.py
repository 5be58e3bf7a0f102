"""Preprocessing of images in training and prediction: resized, placed on a canvas, normalised."""

import platform
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional

from unimask.config.data import DataConfig, Exact, Scale, ShortSide, Square
from unimask.structures import ImageBatch, Placement, Size

Channels = tuple[float, float, float]


def placement_for(original: Size, config: DataConfig) -> Placement:
    """Place an image to predict on: resized as configured, on a canvas of its own."""
    resize, divisor = config.resize, config.divisor
    if isinstance(resize, Exact):
        return Placement.fit(original, (resize.height, resize.width), divisor)
    if isinstance(resize, Square):
        resized = _scaled(original, resize.size / max(original))
        return Placement(original=original, resized=resized, canvas=(resize.size, resize.size))
    if isinstance(resize, Scale):
        return Placement.fit(original, _scaled(original, resize.factor), divisor)
    if resize.fit == "stretch":
        canvas = Placement.fit(original, _rounded_down(original, resize), divisor).canvas
        return Placement(original=original, resized=canvas, canvas=canvas)
    factor = min(resize.size / min(original), resize.longest / max(original))
    return Placement.fit(original, _scaled(original, factor), divisor)


def _scaled(size: Size, factor: float) -> Size:
    """Return the sides times the factor, rounded, and at least 1."""
    return max(1, int(size[0] * factor + 0.5)), max(1, int(size[1] * factor + 0.5))


def _rounded_down(size: Size, resize: ShortSide) -> Size:
    """Return the size with the short side as wanted, the long side rounded down, as transformers does.

    Source: `get_size_with_aspect_ratio` of transformers.
    """
    short, long = min(size), max(size)
    wanted: float = resize.size
    if long / short * resize.size > resize.longest:
        wanted = resize.longest * short / long
    shorter = round(wanted)
    longer = long if shorter == short else int(wanted * long / short)
    sides = (max(1, shorter), max(1, longer))
    return sides if size[0] <= size[1] else (sides[1], sides[0])


def batch_images(
    images: Sequence[UInt8[Tensor, "3 _height _width"]],
    placements: Sequence[Placement],
    mean: Channels,
    std: Channels,
    padding: Literal["mean", "black"] = "mean",
) -> ImageBatch:
    """Resize images, place them on one canvas and normalise them: (value - mean) / std.

    Padding has the color of the mean, so it is 0, or is black.

    Raises:
        ValueError: the canvases differ. They are not padded to the largest, because that would change the
            results of smaller images.
    """
    canvases = {placement.canvas for placement in placements}
    if len(canvases) != 1:
        raise ValueError(f"one batch needs one canvas, got {sorted(canvases)}")
    valid = torch.zeros((len(images), *placements[0].canvas), dtype=torch.bool)
    for index, placement in enumerate(placements):
        valid[index, : placement.resized[0], : placement.resized[1]] = True
    center, spread = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
    color = {"mean": torch.zeros_like(center), "black": -center / spread}[padding]
    pixels = color.repeat(len(images), 1, *placements[0].canvas)
    for index, (image, placement) in enumerate(zip(images, placements)):
        resized = resize_image(image.cpu(), placement.resized)
        pixels[index, :, : placement.resized[0], : placement.resized[1]] = (resized - center) / spread
    return ImageBatch(pixels=pixels, valid=valid, placements=tuple(placements))


def resize_image(
    image: UInt8[Tensor, "3 height width"], size: Size
) -> UInt8[Tensor, "3 new_height new_width"]:
    """Resize bilinearly with antialiasing, in training and prediction alike.

    The bits are those of torchvision's `resize`, which takes long to import. A result one pixel wide is made
    in two steps, height first: in one step torch (2.13) gives wrong values for it, or an internal error.
    """
    if tuple(image.shape[1:]) == size:
        return image
    if size[1] > 1:
        return _bilinear(image, size)
    wide = image.repeat(1, 1, 2) if image.shape[2] == 1 else image
    return _bilinear(_bilinear(wide, (size[0], wide.shape[2])), size)


def _bilinear(image: UInt8[Tensor, "3 height width"], size: Size) -> UInt8[Tensor, "3 new_height new_width"]:
    if tuple(image.shape[1:]) == size:
        return image
    # strides that say clearly where channels lie last: torch then writes the result likewise, without a copy
    batch = image.as_strided((1, *image.shape), (image.numel(), *image.stride()))
    if not _HAS_BYTES:
        batch = batch.float()
    resized = functional.interpolate(batch, size, mode="bilinear", align_corners=False, antialias=True)[0]
    return resized if _HAS_BYTES else resized.round_().to(torch.uint8)


_HAS_BYTES = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or platform.machine() in (
    "aarch64",
    "arm64",
)
"""Whether torch resizes bytes as they are, with this processor; elsewhere it is done in floats."""
