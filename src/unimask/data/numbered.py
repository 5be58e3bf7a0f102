"""Label pictures whose numbers are classes, or classes and objects in one number, as segments."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from numpy import ndarray
from torch import Tensor

from unimask.data.rasterise import truth_segments
from unimask.data.read import read_image
from unimask.errors import DataError, some_of
from unimask.ops.id_maps import MOST_SEGMENTS
from unimask.structures import Categories, Sample, Segments


@dataclass(frozen=True, kw_only=True)
class LabelPair:
    """A picture and its label picture."""

    picture: Path
    labels: Path


@dataclass(frozen=True, kw_only=True)
class NumberScheme:
    """What a number in a label picture means.

    Numbers below `plain` are classes. From there on `number // divisor` is the class, and each number is one
    segment. A number below `plain` whose class is a thing is a crowd region: nobody has told its objects
    apart. With `plain` 0 and `divisor` 1 a number is a class and nothing else.
    """

    categories: Categories
    classes: tuple[int, ...]  # of each category, as the label pictures number them
    ignored: tuple[int, ...]  # classes whose pixels are void
    plain: int
    divisor: int
    way_out: str  # what to do about a number that is no class: the end of the message

    def class_of(self, number: int) -> int:
        """The class of a number; whether there is such a class is not asked."""
        return number if number < self.plain else number // self.divisor


class NumberedPictures:
    """Pictures with label pictures, read when a sample is asked for; `read` gives the numbers of the latter.

    Raises:
        DataError: a picture cannot be read, has another size than its labels, or holds a number that the
            scheme does not know.
    """

    def __init__(
        self, pairs: Sequence[LabelPair], scheme: NumberScheme, read: Callable[[Path], ndarray]
    ) -> None:
        self._pairs, self._scheme, self._read = tuple(pairs), scheme, read

    @property
    def categories(self) -> Categories:
        """The categories of the scheme."""
        return self._scheme.categories

    @property
    def image_ids(self) -> tuple[str, ...]:
        """The id of every sample, without reading it."""
        return tuple(pair.picture.stem for pair in self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Sample:
        pair = self._pairs[index]
        numbers = self._read(pair.labels)
        image = picture_of_size(pair, numbers.shape)
        segments = segments_of_numbers(numbers, pair.labels, self._scheme)
        return Sample(image=image, truth=segments, image_id=pair.picture.stem)


def segments_of_numbers(numbers: ndarray, path: Path, scheme: NumberScheme) -> Segments:
    """One segment for each number that is there and not ignored, in their order.

    Raises:
        DataError: a number is no class, or there are too many; `path` is named.
    """
    known = {number: label for label, number in enumerate(scheme.classes)}
    ignored = frozenset(scheme.ignored)
    present = np.unique(numbers).tolist()
    foreign = [n for n in present if (c := scheme.class_of(n)) not in known and c not in ignored]
    if foreign:
        raise DataError(
            path,
            f"has labels that are no class: {some_of(foreign)}; the classes are {some_of(known)}; "
            f"ignored are {some_of(scheme.ignored)}; {scheme.way_out}",
        )
    kept = [number for number in present if scheme.class_of(number) in known]
    if len(kept) > MOST_SEGMENTS:
        raise DataError(path, f"has {len(kept)} segments; at most {MOST_SEGMENTS} are possible")
    labels = [known[scheme.class_of(number)] for number in kept]
    is_thing = scheme.categories.is_thing
    is_crowd = [number < scheme.plain and is_thing[label] for number, label in zip(kept, labels)]
    return select_numbers(numbers, kept, labels, is_crowd)


def select_numbers(
    numbers: ndarray, kept: Sequence[int], labels: Sequence[int], is_crowd: Sequence[bool]
) -> Segments:
    """The segments of the kept numbers, in their order; all other pixels are void."""
    table = np.zeros(int(numbers.max(initial=0)) + 1, dtype=np.int16)
    table[list(kept)] = np.arange(1, len(kept) + 1)
    return truth_segments(torch.from_numpy(table[numbers][None]), labels, is_crowd)


def picture_of_size(pair: LabelPair, size: tuple[int, ...]) -> UInt8[Tensor, "3 height width"]:
    """The picture of a pair, turned by its EXIF orientation only if it fits its labels then.

    Raises:
        DataError: it cannot be read, or has another size (height, width) than its labels.
    """
    image = read_image(pair.picture)
    if tuple(image.shape[1:]) != size:
        image = read_image(pair.picture, rotate=False)
    if tuple(image.shape[1:]) != size:
        raise DataError(
            pair.labels,
            f"is {size[1]} x {size[0]} pixels, but its picture {pair.picture.name} is "
            f"{image.shape[2]} x {image.shape[1]}; both must have one size, label it again",
        )
    return image
