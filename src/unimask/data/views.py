"""One data set, four tasks: the ground truth of detection and of three kinds of segmentation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int64
from torch import Tensor

from unimask.config.tasks import Task
from unimask.data.category_tables import with_background
from unimask.data.items import ItemDataset
from unimask.errors import DataError, some_of
from unimask.ops.boxes import boxes_around
from unimask.ops.id_maps import renumber
from unimask.structures import Categories, Dataset, Detections, Sample, Segments, Truth


class TaskView:
    """A data set whose ground truth is changed when it is read; images stay as they are."""

    def __init__(self, dataset: Dataset, categories: Categories, change: Callable[[Truth], Truth]) -> None:
        self._dataset = dataset
        self._categories = categories
        self._change = change

    @property
    def categories(self) -> Categories:
        """The categories that the labels index after the change."""
        return self._categories

    @property
    def left_out(self) -> tuple[str, ...]:
        """Sentences about files beside the data that are not read."""
        return left_out_of(self._dataset)

    @property
    def decided(self) -> tuple[str, ...]:
        """Sentences about how its images are read."""
        return decided_of(self._dataset)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self._dataset[index]
        truth = self._change(sample.truth)
        covered = self._change.covered(sample.truth, truth) if isinstance(self._change, _Flatten) else 0
        return replace(sample, truth=truth, covered=sample.covered + covered)


def left_out_of(dataset: Dataset) -> tuple[str, ...]:
    """Return sentences about files beside a data set that are not read; nothing for sets of Python."""
    return dataset.left_out if isinstance(dataset, ItemDataset | TaskView) else ()


def decided_of(dataset: Dataset) -> tuple[str, ...]:
    """Return sentences about how the images of a data set are read; nothing for sets of Python."""
    if isinstance(dataset, ItemDataset):
        return dataset.decided.said
    return dataset.decided if isinstance(dataset, TaskView) else ()


def view(dataset: Dataset, task: Task, *, background: bool = True) -> Dataset:
    """Return the data set with the ground truth of a task.

    Raises:
        DataError: the data set has no things, and the task is instance segmentation or detection.
    """
    if task == "instance":
        return as_instance(dataset)
    if task == "detection":
        return as_detection(dataset)
    if task == "panoptic":
        return as_panoptic(dataset, background=background)
    return as_semantic(dataset, background=background)


def _with_background(categories: Categories, wanted: bool) -> tuple[Categories, bool]:
    """Return the categories, with a background if it is wanted and there is no stuff, and whether it is."""
    added = wanted and all(categories.is_thing)
    return (with_background(categories) if added else categories), added


def as_panoptic(dataset: Dataset, *, background: bool = True) -> Dataset:
    """Give every pixel to at most one segment, and merge the segments of each stuff category.

    Where segments overlap, the pixel goes to the smallest of them, because objects on top are usually
    smaller; crowd regions yield to everything. Segments that are covered completely are dropped. If the data
    has no stuff and `background` is on, the pixels without a segment become stuff of that name; without it
    they are void. Crowd regions are neither: they stay crowd.
    """
    categories, background = _with_background(dataset.categories, background)
    stuff = [label for label, thing in enumerate(categories.is_thing) if not thing]
    return TaskView(dataset, categories, _Flatten(merged=tuple(stuff), background=background))


def as_semantic(dataset: Dataset, *, background: bool = True) -> Dataset:
    """Give every pixel to at most one segment, and every category at most one segment.

    Overlaps and background as in `as_panoptic`. A crowd region is of its category like any other.
    """
    categories, background = _with_background(dataset.categories, background)
    return TaskView(dataset, categories, _Semantic(num_categories=len(categories), background=background))


def as_instance(dataset: Dataset) -> Dataset:
    """Keep only things and their categories; overlaps stay.

    Raises:
        DataError: the data set has no things.
    """
    given = dataset.categories
    things = [label for label, thing in enumerate(given.is_thing) if thing]
    if not things:
        raise DataError(
            "data", f"has only stuff ({some_of(given.names)}); instance segmentation needs things"
        )
    if len(things) == len(given):
        return dataset
    return TaskView(dataset, _select(given, things), _Relabel(_lookup(len(given), things)))


def as_detection(dataset: Dataset) -> Dataset:
    """Keep only things, as boxes: those of the data, or the smallest ones around its masks.

    Segments without a pixel are left out.

    Raises:
        DataError: the data set has no things.
    """
    things = as_instance(dataset)
    return TaskView(things, things.categories, _boxes)


def match_categories(dataset: Dataset, categories: Categories, task: Task) -> Dataset:
    """Make labels index a model's categories, matched by name.

    Raises:
        DataError: the data set has a category that the model lacks, or one is a thing here and stuff there,
            which makes no difference to the task `semantic`.
    """
    table = _labels_of_model(dataset.categories, categories, task)
    return TaskView(dataset, categories, _Relabel(table))


def _labels_of_model(given: Categories, categories: Categories, task: Task) -> Int64[Tensor, " categories"]:
    """Return, for each category of a data set, the label of the model's category of the same name."""
    known = {name: label for label, name in enumerate(categories.names)}
    missing = [name for name in given.names if name not in known]
    if missing:
        raise DataError(
            "data",
            f"has {len(missing)} {'category' if len(missing) == 1 else 'categories'} that the model does not "
            f"know: {some_of(missing)}; "
            f"the model knows: {some_of(categories.names)}. "
            "Rename them in the data, or train a model on it",
        )
    for label, name in enumerate(given.names):
        if task != "semantic" and given.is_thing[label] != categories.is_thing[known[name]]:
            here, there = ("a thing", "stuff") if given.is_thing[label] else ("stuff", "a thing")
            raise DataError(
                "data",
                f"category {name!r} is {here} in the data and {there} in the model; only the task 'semantic' "
                "does not mind; change the data, or `is_thing` in the model's config.json",
            )
    return torch.tensor([known[name] for name in given.names], dtype=torch.int64)


def _boxes(truth: Truth) -> Detections:
    return boxes_around(truth) if isinstance(truth, Segments) else truth


def _masks(truth: Truth) -> Segments:
    if isinstance(truth, Segments):
        return truth
    raise DataError("data", "has boxes, but no masks, which segmentation needs; its task is 'detection'")


@dataclass(frozen=True)
class _Relabel:
    """Look labels up in a table; segments that get the label -1 are dropped."""

    table: Int64[Tensor, " categories"]

    def __call__(self, truth: Truth) -> Truth:
        relabelled = replace(truth, labels=self.table[truth.labels])
        keep = relabelled.labels >= 0
        if bool(keep.all()):
            return relabelled
        return renumber(relabelled, keep) if isinstance(relabelled, Segments) else relabelled.select(keep)


@dataclass(frozen=True, kw_only=True)
class _Flatten:
    """Make one layer; merge the segments of some categories; then add the background."""

    merged: tuple[int, ...]
    background: bool

    def __call__(self, truth: Truth) -> Segments:
        flat = _merge(_one_layer(_masks(truth)), self.merged)
        return _fill(flat, max(self.merged)) if self.background else flat

    def covered(self, before: Truth, after: Truth) -> int:
        """Return how many things are in the ground truth that was given, but not in the flat one."""
        return sum(
            sign * sum(label not in self.merged for label in truth.labels[~truth.is_crowd].tolist())
            for sign, truth in ((1, before), (-1, after))
        )


@dataclass(frozen=True, kw_only=True)
class _Semantic:
    """Make one layer with a segment per category, crowd regions included; then add the background."""

    num_categories: int
    background: bool

    def __call__(self, truth: Truth) -> Segments:
        flat = _one_layer(_masks(truth))
        plain = replace(flat, is_crowd=torch.zeros_like(flat.is_crowd))
        merged = _merge(plain, range(self.num_categories))
        return _fill(merged, self.num_categories - 1) if self.background else merged


def _one_layer(segments: Segments) -> Segments:
    """Resolve overlaps: the smallest segment wins, crowd regions lose."""
    areas = segments.areas()
    if segments.layers.shape[0] == 1:
        flat = segments.layers
    else:
        order = torch.argsort(areas + segments.is_crowd * (areas.max() + 1), descending=True, stable=True)
        rank = torch.zeros(len(segments) + 1, dtype=torch.int16)
        rank[order + 1] = torch.arange(1, len(segments) + 1, dtype=torch.int16)
        top = rank[segments.layers.long()].amax(0, keepdim=True)
        back = torch.cat([torch.zeros(1, dtype=torch.int64), order + 1]).to(torch.int16)
        flat = back[top.long()]
    resolved = replace(segments, layers=flat, stated_areas=torch.empty(0))  # they change where it is covered
    return renumber(resolved, resolved.areas() > 0)


def _merge(segments: Segments, merged: Sequence[int]) -> Segments:
    """Merge the segments of each of the categories, and its crowd regions, into the first one."""
    first: dict[tuple[int, bool], int] = {}
    table = torch.arange(len(segments) + 1, dtype=torch.int16)
    keep = torch.ones(len(segments), dtype=torch.bool)
    for index, (label, crowd) in enumerate(zip(segments.labels.tolist(), segments.is_crowd.tolist())):
        if label in merged:
            number = first.setdefault((label, crowd), index + 1)
            table[index + 1] = number
            keep[index] = number == index + 1
    if bool(keep.all()):
        return segments
    return renumber(replace(segments, layers=table[segments.layers.long()]), keep)


def _fill(segments: Segments, label: int) -> Segments:
    """Add a segment of all pixels that have none."""
    free = segments.layers == 0
    if not bool(free.any()):
        return segments
    return Segments(
        layers=torch.where(free, len(segments) + 1, segments.layers).to(torch.int16),
        labels=torch.cat([segments.labels, torch.tensor([label])]),
        scores=torch.cat([segments.scores, torch.ones(1)]),
        is_crowd=torch.cat([segments.is_crowd, torch.zeros(1, dtype=torch.bool)]),
    )


def _select(categories: Categories, labels: Sequence[int]) -> Categories:
    return Categories(
        names=tuple(categories.names[label] for label in labels),
        is_thing=tuple(categories.is_thing[label] for label in labels),
        file_ids=tuple(categories.file_ids[label] for label in labels),
        colors=tuple(categories.colors[label] for label in labels),
    )


def _lookup(count: int, kept: Sequence[int]) -> Int64[Tensor, " categories"]:
    table = torch.full((count,), -1, dtype=torch.int64)
    table[list(kept)] = torch.arange(len(kept))
    return table
