"""What a data set holds, checked before it is used for training or evaluation."""

import math
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from unimask.config.data import DataConfig
from unimask.config.images import Experiment
from unimask.config.models import queries_of
from unimask.config.tasks import Task
from unimask.config.training import warnings_of_settings
from unimask.data.drawn import holds_only_boxes
from unimask.data.items import ItemDataset
from unimask.data.looked import Looked, SplitCheck
from unimask.data.open import labelled_task, open_splits
from unimask.data.reading import reading_of
from unimask.data.sources import of_other_names
from unimask.data.unused import unused_files
from unimask.data.views import decided_of, left_out_of, view
from unimask.errors import DataError, some_of
from unimask.structures import Categories, Dataset, Sample

_ONLY_BOXES = "all objects are upright rectangles, whose masks are filled; the task 'detection' is for boxes"
FEW_IMAGES = 10  # of a category, below which a warning is given
_MOST_SAID = 8  # errors in one message
SHOWN = 8  # samples that are kept to be drawn


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """What a data set holds, what is wrong with it, and what may be."""

    data: str
    task: Task
    categories: Categories
    splits: dict[str, SplitCheck]
    errors: tuple[str, ...]  # why it cannot be used for training or evaluation
    warnings: tuple[str, ...]
    samples: tuple[Sample, ...] = field(repr=False)  # a few, with their ground truth
    looked: Mapping[str, Looked] = field(repr=False, compare=False)  # what was read of each split
    config: DataConfig = field(repr=False)  # how images reach the model
    beside: tuple[str, ...] = ()  # what lies beside the files of all splits

    def is_of(self, data: str, task: Task, config: DataConfig) -> bool:
        """Return whether a check of the data would read the same, whatever reaches the model."""
        alike = [_read_by(one) for one in (self.config, config)]
        return (self.data, self.task) == (data, task) and alike[0] == alike[1]

    def seen_by(self, experiment: Experiment, splits: Sequence[str]) -> "DataCheck":
        """Return the check of some of the splits for another model, without reading them again.

        The experiment reads images and ground truth as this check did (`is_of`).
        """
        looked = {name: self.looked[name] for name in splits}
        found = {name: one.result(experiment.data) for name, one in looked.items()}
        return replace(
            self,
            splits=found,
            errors=_errors(found),
            warnings=(*_warnings(found, queries_of(experiment.model)), *_in_several(looked), *self.beside),
            looked=looked,
            config=experiment.data,
        )

    def refuse(self) -> None:
        """Raise an error if anything is wrong.

        Raises:
            DataError: the data cannot be used for training or evaluation; the first reasons are given.
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
        """Return the number of images and objects, in one line."""
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
                "repeated": one.repeated,
                "dropped": one.dropped,
                "covered": one.covered,
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


def _read_by(config: DataConfig) -> tuple[object, ...]:
    """Return the settings that decide what is read, rather than how it reaches the model."""
    return reading_of(config), config.background, config.follow_outside


_NO_CATEGORIES = Categories(names=(), is_thing=(), file_ids=(), colors=())

Progress = Callable[[str, int, int], None]
"""Called with the split, the images read so far and their number."""


def _silent(split: str, done: int, total: int) -> None:
    """Report nothing."""


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
    `experiment` says how images reach the model, how many segments it can find in a view, and whether
    pixels without an object are background. After `seconds` no more images are read: those that were are
    spread evenly over each split, and the numbers are theirs.

    Errors in the data are not raised: they are listed in `errors`, with every file that cannot be used.

    Raises:
        DataError: no format is recognised, or the files that say what is in the set cannot be used.
    """
    task = task or labelled_task(data, follow_outside=experiment.data.follow_outside)
    errors: list[str] = []
    datasets: dict[str, Dataset] = {}
    opened: list[ItemDataset] = []
    reading = reading_of(experiment.data)
    for name, opener in open_splits(data, task, follow_outside=experiment.data.follow_outside).items():
        try:
            items = replace(opener(), reading=reading)
            reading = items.decided.reading  # of the other splits, too
            opened.append(items)
            datasets[name] = view(items, task, background=experiment.data.background)
        except DataError as error:
            errors.append(str(error))
    checked = check_datasets(datasets, task, experiment, data=data, seconds=seconds, progress=progress)
    boxes = task != "detection" and any(holds_only_boxes(items) for items in opened)
    beside = (*of_other_names(datasets), *(_ONLY_BOXES,) * boxes, *unused_files(opened))
    return replace(
        checked,
        errors=(*errors, *checked.errors),
        warnings=(*checked.warnings, *beside, *warnings_of_settings(experiment.training)),
        beside=beside,
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
    """Return what open data sets hold, with ground truth of the task; otherwise as `check`."""
    looked: dict[str, Looked] = {}
    samples: list[Sample] = []
    for name, dataset in datasets.items():
        tally = looked[name] = Looked(dataset, task)
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
        tally.left_out, tally.decided = left_out_of(dataset), decided_of(dataset)
    splits = {name: one.result(experiment.data) for name, one in looked.items()}
    return DataCheck(
        data=str(data),
        task=task,
        categories=next((one.categories for one in datasets.values()), _NO_CATEGORIES),
        splits=splits,
        errors=_errors(splits),
        warnings=(*_warnings(splits, queries_of(experiment.model)), *_in_several(looked)),
        samples=tuple(samples),
        looked=looked,
        config=experiment.data,
    )


def _spread(count: int) -> list[int]:
    """Return all indices in an order whose every beginning is spread over the whole."""
    step = max(1, round(count * 0.6180339887))
    while count > 1 and _common(step, count) > 1:
        step += 1
    return [index * step % count for index in range(count)]


def _common(one: int, other: int) -> int:
    while other:
        one, other = other, one % other
    return one


def _in_several(looked: Mapping[str, Looked]) -> tuple[str, ...]:
    """Say which images of a split are also in another one, where measures would be too good."""
    found = []
    splits = list(looked.items())
    for index, (name, one) in enumerate(splits):
        for other_name, other in splits[:index]:
            both = [f"{own} = {other.same[key]}" for key, own in one.same.items() if key in other.same]
            if both:
                found.append(
                    f"{name}: {_images_have(len(both))} the same pixels as one of {other_name}, and what is "
                    f"measured on images that were learned says nothing: {some_of(both, 3)}"
                )
    return tuple(found)


def _images_have(count: int) -> str:
    return "1 image has" if count == 1 else f"{count} images have"


def _alike(names: Iterable[str]) -> list[str]:
    """Return names that differ only in letter case, spaces or the form of accents, each group as one text."""
    groups: dict[str, list[str]] = {}
    for name in names:
        plain = "".join(unicodedata.normalize("NFKC", name).casefold().split())
        groups.setdefault(plain, []).append(repr(name))
    return [" and ".join(group) for group in groups.values() if len(group) > 1]


def _errors(splits: Mapping[str, SplitCheck]) -> tuple[str, ...]:
    found = [sentence for one in splits.values() for sentence in one.broken]
    for name, one in splits.items():
        if one.whole and (nothing := _nothing_to_find(name, one)):
            found.append(nothing)
    return tuple(found)


def _nothing_to_find(name: str, one: SplitCheck) -> str:
    """Return a sentence if no object was found; else nothing."""
    objects = sum(one.objects.values())
    if objects and one.empty == objects:
        return f"{name}: all {objects} objects have at most one pixel; are coordinates given as shares of 1?"
    if objects or not one.read:
        return ""
    way_out = "; take another val split, or training.evaluate_every=0 to do without" * (name == "val")
    if one.crowd:
        return f"{name}: all {one.crowd} objects are crowd, so there is nothing to find{way_out}"
    which = f"{one.images:,} images" if one.whole else f"{one.read:,} images that were looked at"
    why = f"; {_lost(one.dropped)}" if one.dropped else ""
    return f"{name}: none of the {which} has an object{why}{way_out}"


def _lost(count: int) -> str:
    which = "1 object covers" if count == 1 else f"{count} objects cover"
    return f"{which} no pixel (too thin, outside of the image, or in other units than pixels)"


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
            say(f"{name}: {_images_have(len(pairs))} the same pixels as another: {some_of(pairs, 3)}")
        if one.dropped:
            say(f"{name}: {_lost(one.dropped)}")
        if one.covered:
            are = "1 object is" if one.covered == 1 else f"{one.covered} objects are"
            say(f"{name}: {are} wholly covered by others and left out; the task 'instance' keeps such")
        if one.repeated:
            say(f"{name}: {one.repeated} objects lie exactly on another of their category; remove them")
        found += [f"{name}: {sentence}" for sentence in (*one.decided, *one.left_out)]
    found += [
        f"the categories {group} differ in case, spaces or accents only; were they meant as one?"
        for group in _alike(dict.fromkeys(category for one in splits.values() for category in one.objects))
    ]
    known = {name: set(one.objects) for name, one in splits.items()}
    first = next(iter(known.values()), set())
    for name, here in known.items():
        if here != first:
            found.append(
                f"{name} has other categories than {next(iter(known))}: {some_of(sorted(here ^ first))}"
            )
    return tuple(found)
