"""What a data set holds, told before anything is learned from it or measured on it."""

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from unimask.config.images import DataConfig, Experiment, Task, Tiles, queries_of, warnings_of_settings
from unimask.data.open import labelled_task, open_splits
from unimask.data.placing import placement_for
from unimask.data.reading import reading_of
from unimask.data.views import decided_of, left_out_of, view
from unimask.errors import DataError, some_of
from unimask.ops.boxes import boxes_around
from unimask.structures import Categories, Dataset, Detections, Sample, Segments

FEW_IMAGES = 10  # of a category, below which a warning is given
_MOST_SAID = 8  # errors in one message
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
    decided: tuple[str, ...]  # how images are read, and why

    @property
    def whole(self) -> bool:
        """Return whether every image was read, or tried."""
        return self.read + len(self.broken) == self.images


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

    def refuse(self) -> None:
        """Raise what is wrong, if anything is.

        Raises:
            DataError: it is no use to train on the data or to measure on it; the first reasons are given.
        """
        errors = list(dict.fromkeys(self.errors))
        if len(errors) == 1:
            path, _, reason = errors[0].partition(": ")
            raise DataError(path, reason)
        if errors:
            said = errors[:_MOST_SAID]
            more = [f"and {len(errors) - len(said)} more, which `unimask check` lists"] * (errors != said)
            raise DataError(self.data, "\n  ".join([f"has {len(errors)} errors:", *said, *more]))

    def summary(self) -> str:
        """Return in one line how much there is."""
        splits = [
            f"{name} {one.images:,} images with {sum(one.objects.values()):,} objects"
            + f" in the {one.read:,} that were looked at" * (one.read < one.images)
            for name, one in self.splits.items()
        ]
        return f"{self.data}: {'; '.join(splits)}; {len(self.categories)} categories"

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
                "decided": list(one.decided),
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
    task: Task | None = None,
    experiment: Experiment = Experiment(),  # noqa: B008  # frozen
    *,
    seconds: float = math.inf,
    progress: Progress = _silent,
) -> DataCheck:
    """Read a data set as the ground truth of a task, and return what it holds.

    `task` is what the data were labelled for (`labelled_task`) unless another is named.
    `experiment` says how the model sees the images, how many segments it can find in a view, and whether
    pixels without an object are background. After `seconds` no more images are read: those that were are
    spread evenly over each split, and the numbers are theirs.

    What is wrong does not raise: it stands in `errors`, with every file that cannot be used.

    Raises:
        DataError: no format is recognised, or the files that say what is in the set cannot be used.
    """
    task = task or labelled_task(data, follow_outside=experiment.data.follow_outside)
    errors: list[str] = []
    datasets: dict[str, Dataset] = {}
    reading = reading_of(experiment.data)
    for name, opener in open_splits(data, task, follow_outside=experiment.data.follow_outside).items():
        try:
            items = replace(opener(), reading=reading)
            reading = items.decided.reading  # of the other splits, too
            datasets[name] = view(items, task, background=experiment.data.background)
        except DataError as error:
            errors.append(str(error))
    checked = check_datasets(datasets, task, experiment, data=data, seconds=seconds, progress=progress)
    return replace(
        checked,
        errors=(*errors, *checked.errors),
        warnings=(*checked.warnings, *warnings_of_settings(experiment.training)),
    )


def check_datasets(
    datasets: Mapping[str, Dataset],
    task: Task,
    experiment: Experiment,
    *,
    data: str | Path = "data",
    seconds: float = math.inf,
    progress: Progress = _silent,
) -> DataCheck:
    """Return what data sets hold that are open already, with ground truth of the task; else as `check`."""
    splits: dict[str, SplitCheck] = {}
    samples: list[Sample] = []
    for name, dataset in datasets.items():
        tally = _Tally(dataset.categories.names, experiment.data, task)
        until = time.monotonic() + seconds / len(datasets)
        for done, index in enumerate(_spread(len(dataset)), 1):
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
            progress(name, done, len(dataset))
        splits[name] = tally.result(len(dataset), left_out_of(dataset), decided_of(dataset))
    return DataCheck(
        data=str(data),
        task=task,
        categories=next((one.categories for one in datasets.values()), _NO_CATEGORIES),
        splits=splits,
        errors=_errors(splits),
        warnings=_warnings(splits, queries_of(experiment.model)),
        samples=tuple(samples),
    )


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

    def result(self, images: int, left_out: tuple[str, ...], decided: tuple[str, ...]) -> SplitCheck:
        """Return the sums, of a split of so many images."""
        sides = torch.cat(self.sides) if self.sides else torch.empty(0)
        shares = {"10 %": 0.1, "50 %": 0.5, "90 %": 0.9}
        return SplitCheck(
            images=images,
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
            left_out=left_out,
            broken=tuple(self.broken),
            duplicates=tuple(self.duplicates),
            decided=decided,
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
        if one.whole and (nothing := _nothing_to_find(name, one)):
            found.append(nothing)
    return tuple(found)


def _nothing_to_find(name: str, one: SplitCheck) -> str:
    """Return a sentence where no object was seen; else nothing."""
    if sum(one.objects.values()) or not one.read:
        return ""
    way_out = "; take another val split, or training.evaluate_every=0 to do without" * (name == "val")
    if one.crowd:
        return f"{name}: all {one.crowd} objects are crowd, so there is nothing to find{way_out}"
    which = f"{one.images:,} images" if one.whole else f"{one.read:,} images that were looked at"
    return f"{name}: none of the {which} has an object{way_out}"


def _warnings(splits: Mapping[str, SplitCheck], most_found: int) -> tuple[str, ...]:
    found: list[str] = []
    for name, one in splits.items():
        say = found.append
        if not one.whole:
            say(f"{name}: {one.read:,} of {one.images:,} images were read, the numbers are theirs")
            if nothing := _nothing_to_find(name, one):
                say(nothing)
        never = [category for category, count in one.objects.items() if not count]
        if never and sum(one.objects.values()):
            void = f"; {one.void_share:.0%} of the pixels are void" if one.void_share >= 0.005 else ""
            say(f"{name}: {some_of(never)} {'never occurs' if len(never) == 1 else 'never occur'}{void}")
        few = [f"{key} ({count})" for key, count in one.images_of.items() if 0 < count < FEW_IMAGES]
        if few and name == "train" and one.whole:
            say(f"{name}: in fewer than {FEW_IMAGES} images: {some_of(few)}")
        if one.tiny:
            have = "object has" if one.tiny == 1 else "objects have"
            say(f"{name}: {one.tiny} {have} at most one pixel as the model sees it; enlarge data.resize")
        if one.most_objects > most_found:
            say(
                f"{name}: a view has {one.most_objects} objects, the model finds at most {most_found}; raise "
                "the number of its queries, or let it see tiles (data.view)"
            )
        if one.duplicates:
            pairs = [f"{first} = {second}" for first, second in one.duplicates]
            say(f"{name}: {len(pairs)} images have the same pixels as another: {some_of(pairs, 3)}")
        found += [f"{name}: {sentence}" for sentence in (*one.decided, *one.left_out)]
    known = {name: set(one.objects) for name, one in splits.items()}
    first = next(iter(known.values()), set())
    for name, here in known.items():
        if here != first:
            found.append(
                f"{name} has other categories than {next(iter(known))}: {some_of(sorted(here ^ first))}"
            )
    return tuple(found)
