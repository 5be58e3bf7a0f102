"""What a data set holds, told before anything is learned from it or measured on it."""

import hashlib
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from unimask.config.images import DataConfig, Experiment, ModelConfig, Task, Tiles
from unimask.data.items import ItemDataset
from unimask.data.loader import placement_for
from unimask.data.open import open_splits
from unimask.data.views import view
from unimask.errors import DataError, some_of
from unimask.ops.boxes import boxes_around
from unimask.structures import Categories, Detections, Sample, Segments

FEW_IMAGES = 10  # of a category, below which a warning is given
SHOWN = 8  # samples that are kept to be drawn


@dataclass(frozen=True, kw_only=True)
class SplitCheck:
    """What one split holds, as the ground truth of a task."""

    images: int  # that the annotations name
    read: int  # that were read; fewer where time ran out or files are broken
    image_size: tuple[int, int]  # (height, width), the medians; (0, 0) where none was read
    objects: dict[str, int]  # category -> segments or boxes, without crowd
    images_of: dict[str, int]  # category -> images that show it
    crowd: int  # regions that are left out of the training and neither right nor wrong in an evaluation
    without_objects: int  # images
    void_share: float  # of the pixels: neither object nor background nor crowd
    tiny: int  # objects of at most one pixel on the model's canvas
    sizes: dict[str, float]  # 10 %, 50 % and 90 % of the objects have a shorter side below; canvas pixels
    most_objects: int  # in one view: the image, or a tile where the model sees tiles
    left_out: tuple[str, ...]  # what the folder holds and nothing reads
    broken: tuple[str, ...]  # a sentence per file
    duplicates: tuple[tuple[str, str], ...]  # images with the same pixels


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """What a data set holds, what is wrong with it, and what may be."""

    data: str
    task: Task
    categories: Categories
    splits: dict[str, SplitCheck]
    errors: tuple[str, ...]  # it is no use to train on it or to measure on it
    warnings: tuple[str, ...]
    samples: tuple[Sample, ...] = field(repr=False)  # a few, with their ground truth

    def as_json(self) -> dict[str, object]:
        """Return everything but the samples, as plain values."""
        splits = {
            name: {
                "images": one.images,
                "read": one.read,
                "image_size": list(one.image_size),
                "objects": one.objects,
                "images_of": one.images_of,
                "crowd": one.crowd,
                "without_objects": one.without_objects,
                "void_share": one.void_share,
                "tiny": one.tiny,
                "sizes": one.sizes,
                "most_objects": one.most_objects,
                "left_out": list(one.left_out),
                "broken": list(one.broken),
                "duplicates": [list(pair) for pair in one.duplicates],
            }
            for name, one in self.splits.items()
        }
        return {
            "data": self.data,
            "task": self.task,
            "splits": splits,
            "errors": list(self.errors),
            "warnings": list(self.warnings),
        }


_NO_CATEGORIES = Categories(names=(), is_thing=(), file_ids=(), colors=())

Progress = Callable[[str, int, int], None]
"""Called with the split, the images read so far and their number."""


def _silent(split: str, done: int, total: int) -> None:
    """Say nothing."""


def check(
    data: str | Path,
    task: Task = "panoptic",
    experiment: Experiment = Experiment(),  # noqa: B008  # frozen
    *,
    seconds: float = math.inf,
    progress: Progress = _silent,
) -> DataCheck:
    """Read a data set as the ground truth of a task, and return what it holds.

    `experiment` says how the model sees the images, how many segments it can find in a view, and whether
    pixels without an object are background. After `seconds` no more images are read: those that were are
    spread evenly over each split, and the numbers are theirs.

    What is wrong does not raise: it stands in `errors`, with every file that cannot be used.

    Raises:
        DataError: no format is recognised, or the files that say what is in the set cannot be used.
    """
    errors: list[str] = []
    splits: dict[str, SplitCheck] = {}
    samples: list[Sample] = []
    categories: Categories | None = None
    opened = open_splits(data, task, follow_outside=experiment.data.follow_outside)
    for name, opener in opened.items():
        try:
            items = opener()
            dataset = view(items, task, background=experiment.data.background)
        except DataError as error:
            errors.append(str(error))
            continue
        categories = categories or dataset.categories
        tally = _Tally(dataset.categories.names, experiment.data, task)
        until = time.monotonic() + seconds / len(opened)
        for done, index in enumerate(_spread(len(items)), 1):
            if time.monotonic() > until and done > 1:
                break
            try:
                sample = dataset[index]
            except DataError as error:
                tally.broken.append(str(error))
                continue
            tally.add(sample)
            if len(samples) < SHOWN and len(sample.truth):
                samples.append(sample)
            progress(name, done, len(items))
        splits[name] = tally.result(items)
    return DataCheck(
        data=str(data),
        task=task,
        categories=categories or _NO_CATEGORIES,
        splits=splits,
        errors=(*errors, *_errors(splits)),
        warnings=_warnings(splits, _most_found(experiment)),
        samples=tuple(samples),
    )


def _most_found(experiment: Experiment) -> int:
    """The most objects that the model can find in a view; for pixels that choose a category, any number."""
    model = experiment.model
    if not isinstance(model, ModelConfig):
        return model.queries
    return model.query_decoder.queries if model.classification == "masks" else sys.maxsize


def _spread(count: int) -> list[int]:
    """All indices, so ordered that any first part of them is spread over the whole."""
    step = max(1, round(count * 0.6180339887))
    while count > 1 and _common(step, count) > 1:
        step += 1
    return [index * step % count for index in range(count)]


def _common(one: int, other: int) -> int:
    while other:
        one, other = other, one % other
    return one


class _Tally:
    """Adds up the samples of a split."""

    def __init__(self, names: tuple[str, ...], config: DataConfig, task: Task) -> None:
        self.names, self.config, self.task = names, config, task
        self.objects, self.images_of = Counter[int](), Counter[int]()
        self.read = self.crowd = self.without = self.tiny = self.most = 0
        self.void = self.pixels = 0
        self.sides: list[Tensor] = []
        self.image_sizes: list[tuple[int, int]] = []
        self.broken: list[str] = []
        self.same: dict[bytes, str] = {}
        self.duplicates: list[tuple[str, str]] = []

    def add(self, sample: Sample) -> None:
        """Count one sample."""
        truth, size = sample.truth, (sample.image.shape[1], sample.image.shape[2])
        self.read += 1
        self.image_sizes.append(size)
        real = truth.labels[~truth.is_crowd].tolist()
        self.objects.update(real)
        self.images_of.update(set(real))
        self.crowd += int(truth.is_crowd.sum())
        self.without += not real
        placement = placement_for(size, self.config)
        down, right = (new / old for new, old in zip(placement.resized, placement.original))
        boxes = truth if isinstance(truth, Detections) else boxes_around(truth)
        corners = boxes.boxes[~boxes.is_crowd]
        self.most = max(self.most, _most_in_a_view(corners, self.config))
        width, height = (corners[:, 2:] - corners[:, :2]).unbind(1)
        self.sides.append(torch.minimum(width * right, height * down))
        areas = truth.areas()[~truth.is_crowd] if isinstance(truth, Segments) else width * height
        self.tiny += int((areas * down * right <= 1).sum())
        if isinstance(truth, Segments) and self.task in ("panoptic", "semantic"):
            self.void += int((truth.layers == 0).all(dim=0).sum())
            self.pixels += size[0] * size[1]
        digest = hashlib.sha256(sample.image.numpy().tobytes()).digest()
        if digest in self.same:
            self.duplicates.append((self.same[digest], sample.image_id))
        self.same.setdefault(digest, sample.image_id)

    def result(self, items: ItemDataset) -> SplitCheck:
        """Return the sums."""
        sides = torch.cat(self.sides) if self.sides else torch.empty(0)
        shares = {"10 %": 0.1, "50 %": 0.5, "90 %": 0.9}
        return SplitCheck(
            images=len(items),
            read=self.read,
            image_size=_medians(self.image_sizes),
            objects={name: self.objects[label] for label, name in enumerate(self.names)},
            images_of={name: self.images_of[label] for label, name in enumerate(self.names)},
            crowd=self.crowd,
            without_objects=self.without,
            void_share=self.void / self.pixels if self.pixels else 0.0,
            tiny=self.tiny,
            sizes={name: _quantile(sides, share) for name, share in shares.items()} if len(sides) else {},
            most_objects=self.most,
            left_out=items.left_out,
            broken=tuple(self.broken),
            duplicates=tuple(self.duplicates),
        )


def _most_in_a_view(boxes: Float[Tensor, "boxes 4"], config: DataConfig) -> int:
    """The most objects that the model sees at once; in tiles: whose middles lie in a square of that size."""
    if not isinstance(config.view, Tiles) or not len(boxes):
        return len(boxes)
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    _, counts = (middles // config.view.size).unique(dim=0, return_counts=True)
    return int(counts.max())


def _medians(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    if not sizes:
        return 0, 0
    heights, widths = zip(*sizes)
    return sorted(heights)[len(sizes) // 2], sorted(widths)[len(sizes) // 2]


def _quantile(values: Tensor, share: float) -> float:
    ordered = values.sort().values
    return round(float(ordered[min(len(ordered) - 1, int(share * len(ordered)))]), 1)


def _errors(splits: Mapping[str, SplitCheck]) -> tuple[str, ...]:
    found = [sentence for one in splits.values() for sentence in one.broken]
    for name, one in splits.items():
        total = sum(one.objects.values())
        if one.read == one.images - len(one.broken) and not total and one.read:
            found.append(
                f"{name}: all {one.crowd} objects are crowd, so there is nothing to find"
                if one.crowd
                else f"{name}: none of the {one.images} images has an object"
            )
    return tuple(found)


def _warnings(splits: Mapping[str, SplitCheck], most_found: int) -> tuple[str, ...]:
    found: list[str] = []
    for name, one in splits.items():
        say = found.append
        if one.read + len(one.broken) < one.images:
            say(f"{name}: {one.read:,} of {one.images:,} images were read, the numbers are theirs")
        never = [category for category, count in one.objects.items() if not count]
        if never and sum(one.objects.values()):
            void = f"; {one.void_share:.0%} of the pixels are void" if one.void_share >= 0.005 else ""
            say(f"{name}: {some_of(never)} {'never occurs' if len(never) == 1 else 'never occur'}{void}")
        few = [f"{key} ({count})" for key, count in one.images_of.items() if 0 < count < FEW_IMAGES]
        if few and name == "train":
            say(f"{name}: in fewer than {FEW_IMAGES} images: {some_of(few)}")
        if one.tiny:
            say(
                f"{name}: {one.tiny} objects have at most one pixel as the model sees them; "
                "enlarge data.resize"
            )
        if one.most_objects > most_found:
            say(
                f"{name}: a view has {one.most_objects} objects, the model finds at most {most_found}; raise "
                "the number of its queries, or let it see tiles (data.view)"
            )
        if one.duplicates:
            pairs = [f"{first} = {second}" for first, second in one.duplicates]
            say(f"{name}: {len(pairs)} images have the same pixels as another: {some_of(pairs, 3)}")
        found += [f"{name}: {sentence}" for sentence in one.left_out]
    known = {name: set(one.objects) for name, one in splits.items()}
    first = next(iter(known.values()), set())
    for name, here in known.items():
        if here != first:
            found.append(
                f"{name} has other categories than {next(iter(known))}: {some_of(sorted(here ^ first))}"
            )
    return tuple(found)
