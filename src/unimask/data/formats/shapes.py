"""A generated set: circles, squares and triangles (things) over sky, ground and stripes (stuff)."""

import math
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unimask.config.tasks import Task
from unimask.data.items import ItemDataset
from unimask.data.rasterise import truth_segments
from unimask.data.reading import PLAIN, Reading
from unimask.data.seeds import seeded_generator
from unimask.data.sources import Format, Source, Sources
from unimask.errors import DataError
from unimask.structures import Categories, Sample, Size

CATEGORIES = Categories(
    names=("circle", "square", "triangle", "sky", "ground", "stripes"),
    is_thing=(True, True, True, False, False, False),
    file_ids=(1, 2, 3, 4, 5, 6),
    colors=((220, 60, 60), (60, 160, 60), (240, 190, 40), (110, 180, 230), (140, 100, 60), (150, 110, 190)),
)
_SKY, _GROUND, _STRIPES = 3, 4, 5
_LEAST_VISIBLE = 0.25  # of a thing; with less of it uncovered it is not drawn


def shapes_dataset(*, size: Size = (96, 128), count: int = 1000, seed: int = 0, most: int = 6) -> ItemDataset:
    """Generate images of any size, each a function of (seed, index, size); nothing is stored.

    Above a slanted horizon lies sky, below it ground or stripes; up to `most` things of random color, size
    and turn lie on top of it and of each other. The ground truth is what is visible, in one layer, without
    void. Things with less than a quarter of their pixels uncovered are not drawn.
    """
    items = tuple(_ShapesItem(size=size, seed=seed, index=index, most=most) for index in range(count))
    return ItemDataset(categories=CATEGORIES, items=items)


@dataclass(frozen=True, kw_only=True, slots=True)
class _ShapesItem:
    size: Size
    seed: int
    index: int
    most: int

    @property
    def image_id(self) -> str:
        return f"shapes_{self.seed}_{self.index:05d}"

    @property
    def files(self) -> tuple[Path, ...]:
        return ()

    def stated_size(self) -> tuple[Size, ...]:
        return (self.size,)

    def read(self, reading: Reading = PLAIN) -> Sample:
        """Draw the image and its ground truth; no file is read."""
        generator = seeded_generator(self.seed, self.index)
        image, surface = _scenery(self.size, generator)
        labels, layer = [], torch.zeros(self.size, dtype=torch.int16)
        for _ in range(int(torch.randint(0, self.most + 1, (), generator=generator))):  # the front one first
            thing = _thing(self.size, generator)
            uncovered = thing.inside & (layer == 0)
            if int(uncovered.sum()) < max(4.0, _LEAST_VISIBLE * int(thing.inside.sum())):
                continue
            labels.append(thing.label)
            layer[uncovered] = len(labels)
            image = torch.where(uncovered, thing.color[:, None, None], image)
        for label in (_SKY, _GROUND, _STRIPES):
            free = (layer == 0) & (surface == label)
            if bool(free.any()):
                labels.append(label)
                layer[free] = len(labels)
        image = image + 0.03 * torch.randn(image.shape, generator=generator)
        return Sample(
            image=(image.clamp(0, 1) * 255).round().to(torch.uint8),
            truth=truth_segments(layer[None], labels, [False] * len(labels)),
            image_id=self.image_id,
        )


def is_generated(data: str | Path) -> bool:
    """Return whether data of this name are generated, not read from files."""
    return re.match("shapes(:|$)", str(data)) is not None and not Path(data).exists()


def _find(path: Path, task: Task) -> Sources:
    """Find `shapes` or `shapes:96x128`: 10,000 images to train on, 100 others for "val" and for "test"."""
    text = str(path)
    if not is_generated(path):
        return {}
    match = re.fullmatch(r"shapes(?::([1-9]\d*)x([1-9]\d*))?", text)
    if match is None:
        raise DataError(text, "expected shapes or shapes:HEIGHTxWIDTH, as in shapes:96x128")
    size = (int(match[1]), int(match[2])) if match[1] else (96, 128)
    return {
        split: Source(path=path, open=partial(shapes_dataset, size=size, count=count, seed=seed))
        for split, count, seed in (("train", 10_000, 0), ("val", 100, 1), ("test", 100, 2))
    }


SHAPES = Format(layouts="  the word shapes or shapes:HEIGHTxWIDTH (a generated set)", find=_find)


@dataclass(frozen=True, kw_only=True)
class _DrawnThing:
    label: int
    inside: Bool[Tensor, "height width"]
    color: Float[Tensor, " 3"]


def _between(low: int | float, high: int | float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _grid(size: Size) -> tuple[Float[Tensor, "height 1"], Float[Tensor, "1 width"]]:
    """Return y and x of the pixel centres."""
    return torch.arange(size[0])[:, None] + 0.5, torch.arange(size[1])[None] + 0.5


def _scenery(
    size: Size, generator: torch.Generator
) -> tuple[Float[Tensor, "3 height width"], Float[Tensor, "height width"]]:
    """Return the empty image in [0, 1] and the label of each of its pixels."""
    y, x = _grid(size)
    height, width = size
    horizon = _between(0.1, 0.9, generator) * height + _between(-0.2, 0.2, generator) * (x - width / 2)
    below = _GROUND if float(torch.rand((), generator=generator)) < 0.5 else _STRIPES
    is_sky = y < horizon
    sky = torch.tensor([0.35, 0.6, 0.9])[:, None, None] + 0.3 * (y / height).expand(size)
    earth = torch.tensor([0.45, 0.35, 0.2])[:, None, None] + 0.15 * torch.randn(size, generator=generator)
    period = _between(6, 12, generator)
    bars = ((x + 0.5 * y + _between(0, period, generator)) / period).frac() < 0.5
    stripes = torch.where(bars, torch.tensor([0.8, 0.75, 0.9])[:, None, None], torch.full((3, 1, 1), 0.25))
    image = torch.where(is_sky, sky, earth if below == _GROUND else stripes)
    return image, torch.where(is_sky, float(_SKY), float(below))


def _thing(size: Size, generator: torch.Generator) -> _DrawnThing:
    """Return a circle, a square or a triangle that has its centre in the image."""
    y, x = _grid(size)
    label = int(torch.randint(0, 3, (), generator=generator))
    radius = max(2.0, _between(0.08, 0.28, generator) * min(size))
    down, right = y - _between(0, size[0], generator), x - _between(0, size[1], generator)
    turn = _between(0, 2 * math.pi, generator)
    if label == 0:
        inside = down**2 + right**2 <= radius**2
    else:
        # a regular polygon is where no side's outward distance is above that of the sides
        sides = 4 if label == 1 else 3
        angles = [turn + 2 * math.pi * side / sides for side in range(sides)]
        distances = torch.stack([math.sin(angle) * down + math.cos(angle) * right for angle in angles])
        inside = distances.amax(0) <= radius * (0.85 if label == 1 else 0.7)
    return _DrawnThing(label=label, inside=inside, color=torch.rand(3, generator=generator))
