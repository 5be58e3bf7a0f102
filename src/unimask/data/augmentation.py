"""Augmentation of images and their ground truth; all random numbers come from one generator."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from unimask.config.data import DataConfig, ScaleJitter
from unimask.data.placing import resize_image
from unimask.ops.boxes import box_areas, clip_boxes, scale_of
from unimask.ops.id_maps import renumber
from unimask.structures import Sample, Segments, Size, Truth


@dataclass(frozen=True, kw_only=True)
class CropWindow:
    """The part of an image that is cut out, and the size it is resized to."""

    top: int
    left: int
    taken: Size  # in pixels of the file
    resized: Size


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """A cut, a resize, flips and an exchange of rows and columns, for an image and its truth alike."""

    window: CropWindow
    horizontal: bool  # flipped left to right
    vertical: bool  # flipped upside down
    transposed: bool = False  # at last, rows become columns

    def move(self, maps: Tensor, *, is_image: bool) -> Tensor:
        """Cut, resize, flip and transpose an image (bilinear, antialiased) or an id map (nearest)."""
        maps = _cut(maps, self.window, is_image=is_image)
        if self.horizontal:
            maps = functional.horizontal_flip(maps)
        if self.vertical:
            maps = functional.vertical_flip(maps)
        return maps.transpose(1, 2) if self.transposed else maps

    def move_boxes(self, boxes: Float[Tensor, "boxes 4"]) -> Float[Tensor, "boxes 4"]:
        """Move boxes (xyxy, pixels) likewise and clip them at the borders; some may be empty."""
        window, (height, width) = self.window, self.window.resized
        scale = scale_of(window.resized, boxes) / scale_of(window.taken, boxes)
        boxes = (boxes - boxes.new_tensor([window.left, window.top] * 2)) * scale
        boxes = clip_boxes(boxes, window.resized)
        if self.horizontal:
            boxes = torch.stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), dim=1)
        if self.vertical:
            boxes = torch.stack((boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]), dim=1)
        return boxes[:, [1, 0, 3, 2]] if self.transposed else boxes


def augment(sample: Sample, config: DataConfig, generator: torch.Generator) -> Sample:
    """Resize, crop, flip, turn and recolor a sample for training; at most of size `config.crop`.

    Image and ground truth go through the same geometry. Crowd is dropped (its pixels become void), and so are
    segments without a pixel and boxes of which less than a pixel's width or height is left. Deterministic in
    the generator's state; the number of draws is the same for every sample of one configuration.
    """
    geometry = draw_geometry((sample.image.shape[1], sample.image.shape[2]), config, generator)
    image = geometry.move(sample.image, is_image=True)
    if config.color > 0:
        image = jitter_color(image, config.color, generator)
    image = jitter_camera(image, config, generator)
    return Sample(image=image.contiguous(), truth=_moved(sample.truth, geometry), image_id=sample.image_id)


def _moved(truth: Truth, geometry: Geometry) -> Truth:
    if isinstance(truth, Segments):
        layers = geometry.move(truth.layers, is_image=False)
        return drop_unseen(replace(truth, layers=layers, stated_areas=torch.empty(0)))
    boxes = geometry.move_boxes(truth.boxes)
    seen = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(dim=1) & ~truth.is_crowd
    return replace(truth, boxes=boxes, areas=box_areas(boxes)).select(seen)


def draw_geometry(size: Size, config: DataConfig, generator: torch.Generator) -> Geometry:
    """Draw whether to transpose (unless that is off), a random window and random flips."""
    transposed = config.transpose > 0 and _draw(generator) < config.transpose
    if transposed:
        config = replace(config, crop=config.crop[::-1])  # of the image as it is before
    return Geometry(
        window=draw_window(size, config, generator),
        horizontal=_draw(generator) < config.horizontal_flip,
        vertical=_draw(generator) < config.vertical_flip,
        transposed=transposed,
    )


def drop_unseen(segments: Segments) -> Segments:
    """Drop crowd regions, whose pixels become void, and segments without a pixel."""
    keep = (segments.areas() > 0) & ~segments.is_crowd
    return renumber(segments, keep)


def draw_window(size: Size, config: DataConfig, generator: torch.Generator) -> CropWindow:
    """Draw a window: the image resized by a jittered factor, and of that a random crop.

    The crop is taken in the file's pixels and only then resized. An image that becomes smaller than the
    crop is taken whole.

    Source: large-scale jittering, arXiv 2012.07177, Sec. 3 (`relative_to="crop"`).
    """
    factor = scale_factor(size, config.jitter, config.crop, _draw(generator))
    resized = (max(1, round(size[0] * factor)), max(1, round(size[1] * factor)))
    out = (min(resized[0], config.crop[0]), min(resized[1], config.crop[1]))
    taken = (_share(size[0], out[0], resized[0]), _share(size[1], out[1], resized[1]))
    top = int(_draw(generator) * (size[0] - taken[0] + 1))
    left = int(_draw(generator) * (size[1] - taken[1] + 1))
    return CropWindow(top=top, left=left, taken=taken, resized=out)


def scale_factor(size: Size, jitter: ScaleJitter, crop: Size, uniform: float) -> float:
    """Return the factor of a resize for a random number from [0, 1)."""
    factor = jitter.low + (jitter.high - jitter.low) * uniform
    if jitter.relative_to == "crop":
        return factor * min(crop[0] / size[0], crop[1] / size[1])
    if jitter.relative_to == "short_side":
        return factor * min(crop) / min(size)
    return factor


def _share(side: int, out: int, resized: int) -> int:
    return side if out == resized else min(side, max(1, round(side * out / resized)))


def _cut(maps: Tensor, window: CropWindow, *, is_image: bool) -> Tensor:
    part = functional.crop_image(maps, window.top, window.left, *window.taken)
    if window.taken == window.resized:
        return part
    if is_image:
        return resize_image(part, window.resized)
    return functional.resize_image(part, list(window.resized), interpolation=InterpolationMode.NEAREST_EXACT)


def jitter_color(
    image: UInt8[Tensor, "3 height width"], strength: float, generator: torch.Generator
) -> UInt8[Tensor, "3 height width"]:
    """Change brightness, contrast, saturation and hue, each with probability one half, in random order.

    At strength 1 the first three are scaled by 0.5 to 1.5 and the hue is turned by up to 18 degrees.

    Source: SSD, arXiv 1512.02325, and the original's color augmentation; there, brightness is added.
    """
    order = torch.randperm(4, generator=generator).tolist()
    used = torch.rand(4, generator=generator) < 0.5
    change = (2 * torch.rand(4, generator=generator) - 1) * strength
    for which in order:
        if used[which]:
            image = _COLOR_CHANGES[which](image, float(change[which]))
    return image


def jitter_camera(
    image: UInt8[Tensor, "3 height width"], config: DataConfig, generator: torch.Generator
) -> UInt8[Tensor, "3 height width"]:
    """Change an image as another microscope might have: gamma, blur, noise, each with probability one half.

    What the configuration has at 0 is left out, and nothing is drawn for it. Noise is the same in all three
    channels, so a grey image stays grey.
    """
    for most, change in ((config.gamma, _gamma), (config.blur, _blur), (config.noise, _noise)):
        if most > 0:
            used, strength = _draw(generator) < 0.5, _draw(generator)
            image = change(image, most * strength if used else 0.0, generator)
    return image


def _gamma(image: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    brighter = _draw(generator) < 0.5
    return functional.adjust_gamma(image, 2.0 ** (-strength if brighter else strength)) if strength else image


def _blur(image: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    if strength < _LEAST_BLUR:
        return image
    radius = min(math.ceil(2 * strength), image.shape[1] - 1, image.shape[2] - 1)  # mirrored at the borders
    return functional.gaussian_blur(image, [2 * radius + 1] * 2, [strength] * 2) if radius > 0 else image


def _noise(image: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    noise = torch.randn(image.shape[1:], generator=generator) * strength
    return (image + noise).round_().clamp_(0, 255).to(torch.uint8) if strength else image


_LEAST_BLUR = 0.1
"""A smaller sigma, in pixels, changes nothing."""

_COLOR_CHANGES: tuple[Callable[[Tensor, float], Tensor], ...] = (
    lambda image, change: functional.adjust_brightness(image, max(0.0, 1 + 0.5 * change)),
    lambda image, change: functional.adjust_contrast(image, max(0.0, 1 + 0.5 * change)),
    lambda image, change: functional.adjust_saturation(image, max(0.0, 1 + 0.5 * change)),
    lambda image, change: functional.adjust_hue(image, max(-0.5, min(0.5, 0.05 * change))),
)


def _draw(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))
