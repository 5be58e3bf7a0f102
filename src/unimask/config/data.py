"""Settings of data: how images are read, augmented, resized and cut into tiles."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from unimask.config.tasks import Task
from unimask.config.values import CountOrNone, Factor, Share, Size


@dataclass(frozen=True, kw_only=True)
class ShortSide:
    """Resize so that the short side has `size` pixels, but the long side at most `longest`."""

    kind: Literal["short_side"] = "short_side"
    size: Size = 800
    longest: Size = 1333
    # to a multiple of `data.divisor` the image is padded, as in the originals, or stretched, as transformers
    # does, which also rounds sides down
    fit: Literal["pad", "stretch"] = "pad"


@dataclass(frozen=True, kw_only=True)
class Square:
    """Resize so that the long side has `size` pixels, and pad to a square (EoMT)."""

    kind: Literal["square"] = "square"
    size: Size = 640


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Resize by a fixed factor: for images whose pixels have a physical size (microscopy, satellites)."""

    kind: Literal["scale"] = "scale"
    factor: Factor = 1.0


@dataclass(frozen=True, kw_only=True)
class Exact:
    """Resize to one size, whatever the aspect of the image (transformers' `height` and `width`)."""

    kind: Literal["exact"] = "exact"
    height: Size = 512
    width: Size = 512


AnyResize = Annotated[ShortSide | Square | Scale | Exact, Field(discriminator="kind")]


@dataclass(frozen=True, kw_only=True)
class Whole:
    """The model gets the whole image at once."""

    kind: Literal["whole"] = "whole"


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """The model gets overlapping squares of an image; results are joined (`inference/stitching.py`)."""

    kind: Literal["tiles"] = "tiles"
    size: Size = 512  # side of a square in pixels of the file; each is then resized like an image
    # pixels that neighbours share at least; as wide as most objects
    overlap: CountOrNone = 128


@dataclass(frozen=True, kw_only=True)
class SlidingWindow:
    """The model gets overlapping squares of the resized image; the values of categories are averaged.

    For semantic segmentation, as EoMT and others do it: with `overlap` 0 as few squares as cover the image,
    spread evenly (`inference/joining.py:AveragedWindows`).
    """

    kind: Literal["sliding_window"] = "sliding_window"
    size: Size = 512  # side of a square in pixels of the resized image
    overlap: CountOrNone = 0  # pixels that neighbours share at least


AnyView = Annotated[Whole | Tiles | SlidingWindow, Field(discriminator="kind")]


def why_not_joined(view: Whole | Tiles | SlidingWindow, task: Task) -> str:
    """Return why the parts of an image cannot be joined to a result of the task; empty if they can."""
    if isinstance(view, Tiles) and task == "detection":
        return "boxes of tiles are not joined; take {'kind': 'whole'} for detection"
    if isinstance(view, SlidingWindow) and task != "semantic":
        return (
            "sliding windows are joined by averaging the values of categories, which is for semantic "
            f"segmentation; take {{'kind': 'whole'}} for {task}"
        )
    return ""


@dataclass(frozen=True, kw_only=True)
class ScaleJitter:
    """Random resizing before the crop: a factor drawn uniformly from [low, high]."""

    low: Factor = 0.1
    high: Factor = 2.0
    # crop: the image fits into factor x crop (large-scale jitter); short_side: its short side becomes
    # factor x the crop's (semantic training); file: factor x its own size (pixels of a physical size)
    relative_to: Literal["crop", "short_side", "file"] = "crop"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How images reach the model."""

    crop: tuple[Size, Size] = (1024, 1024)  # (height, width) of a training image; smaller ones are padded
    jitter: ScaleJitter = field(default_factory=ScaleJitter)
    horizontal_flip: Share = 0.5  # probability
    vertical_flip: Share = 0.0  # probability; 0.5 where up and down mean nothing
    transpose: Share = 0.0  # probability that rows become columns; with both flips: turns by 90 degrees
    # strength of the brightness, contrast, saturation and hue jitter; 0 is off
    color: Annotated[float, Field(ge=0, le=100)] = 0.0
    # half of the images each get a gamma curve of an exponent from 2 ** -gamma to 2 ** gamma, are blurred
    # with a sigma up to `blur` pixels, or get noise with a standard deviation up to `noise` (of 255)
    gamma: Annotated[float, Field(ge=0, le=4)] = 0.0
    blur: Annotated[float, Field(ge=0, le=16)] = 0.0
    noise: Annotated[float, Field(ge=0, le=255)] = 0.0
    # of an image to predict on
    resize: AnyResize = field(default_factory=ShortSide)
    # tiles where one view holds more objects than queries; sliding windows for semantic segmentation
    view: AnyView = field(default_factory=Whole)
    divisor: Size = 32  # the canvas is padded to a multiple of it
    padding: Literal["mean", "black"] = "mean"  # its color: the mean of all images; black in EoMT
    background: bool = True  # data without stuff gets a category "background" for panoptic and semantic
    follow_outside: bool = False  # read files outside of the data folder that names or links lead to
    # of images with an EXIF orientation. exif: turned as it says; stored: as the pixels lie in the file;
    # auto: whichever has the sizes that the labels state, decided once for a set
    orientation: Literal["auto", "exif", "stored"] = "auto"
    # bits of the camera where files have 16 a channel: its largest value becomes 255. auto: 8, 12 or 16 by
    # the brightest of a set or a run; a model keeps what its training set had
    depth: Literal["auto"] | Annotated[int, Field(ge=8, le=16)] = "auto"
    # of files with several images (stacks, animations): which one, or the largest value of all
    page: Literal["first", "max"] | Annotated[int, Field(ge=1)] = "first"
    # colors: RGB or grey, of other files the first channel; else the number of one, or the largest value of
    # all
    channel: Literal["colors", "max"] | Annotated[int, Field(ge=1)] = "colors"
