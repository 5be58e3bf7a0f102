"""Label maps whose numbers are classes, or classes and objects in one number, as segments."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from unimask.data.items import ItemDataset
from unimask.data.pillow import stated_size
from unimask.data.rasterise import truth_segments
from unimask.data.read import read_annotated_image, read_labels
from unimask.data.reading import PLAIN, Reading
from unimask.errors import DataError, some_of
from unimask.ops.id_maps import MOST_SEGMENTS
from unimask.structures import Categories, Sample, Segments, Size


@dataclass(frozen=True, kw_only=True)
class LabelPair:
    """The files of an image and of its label map."""

    image: Path
    labels: Path


@dataclass(frozen=True, kw_only=True)
class NumberScheme:
    """What a number in a label map means.

    Numbers below `plain` are classes. From there on `number // divisor` is the class, and each number is one
    segment. A number below `plain` whose class is a thing is a crowd region: its objects are not told
    apart. With `plain` 0 and `divisor` 1 a number is a class and nothing else.
    """

    categories: Categories
    classes: tuple[int, ...]  # of each category, as the label maps number them
    ignored: tuple[int, ...]  # classes whose pixels are void
    plain: int
    divisor: int
    way_out: str  # the end of the message about a number that is no class

    def class_of(self, number: int) -> int:
        """Return the class that a number stands for, which may not exist."""
        return number if number < self.plain else number // self.divisor


@dataclass(frozen=True, kw_only=True)
class NumberedItem:
    """An image with a label map, which `read_numbers` reads."""

    pair: LabelPair
    scheme: NumberScheme
    read_numbers: Callable[[Path], ndarray]

    @property
    def image_id(self) -> str:
        """The stem of the image's file."""
        return self.pair.image.stem

    @property
    def files(self) -> tuple[Path, ...]:
        """The image and its label map."""
        return self.pair.image, self.pair.labels

    def stated_size(self) -> tuple[Size, ...]:
        """Return the size of its label map."""
        return size_of_labels(self.pair)

    def read(self, reading: Reading = PLAIN) -> Sample:
        """Read the image and one segment for each number.

        Raises:
            DataError: the image cannot be read, has another size than its labels, or holds a number that is
                not in the scheme.
        """
        check_sizes(self.pair)
        numbers = self.read_numbers(self.pair.labels)
        image = image_of_pair(self.pair, numbers.shape, reading)
        truth = segments_of_numbers(numbers, self.pair.labels, self.scheme)
        return Sample(image=image, truth=truth, image_id=self.image_id)


def numbered_dataset(
    pairs: Sequence[LabelPair], scheme: NumberScheme, read_numbers: Callable[[Path], ndarray] = read_labels
) -> ItemDataset:
    """Return a sample for each pair, with the categories of the scheme."""
    items = tuple(NumberedItem(pair=pair, scheme=scheme, read_numbers=read_numbers) for pair in pairs)
    return ItemDataset(categories=scheme.categories, items=items)


def segments_of_numbers(numbers: ndarray, path: Path, scheme: NumberScheme) -> Segments:
    """Make a segment of each number that occurs and is not ignored, in ascending order.

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
    """Make segments of the kept numbers, in their order; all other pixels are void."""
    table = np.zeros(int(numbers.max(initial=0)) + 1, dtype=np.int16)
    table[list(kept)] = np.arange(1, len(kept) + 1)
    return truth_segments(torch.from_numpy(table[numbers][None]), labels, is_crowd)


def check_sizes(pair: LabelPair) -> None:
    """Check that image and label map state one size, if need be with the image turned by a quarter.

    Raises:
        DataError: they do not.
    """
    of_labels = stated_size(pair.labels, (0, 0))
    of_image = stated_size(pair.image, of_labels)
    if 0 not in of_labels and of_labels not in (of_image, of_image[::-1]):
        raise _sizes_differ(pair, of_labels, of_image)


def size_of_labels(pair: LabelPair) -> tuple[Size, ...]:
    """Return the size that the head of the label map states; none where it cannot be read."""
    size = stated_size(pair.labels, (0, 0))
    return () if 0 in size else (size,)


def image_of_pair(
    pair: LabelPair, size: tuple[int, ...], reading: Reading = PLAIN
) -> UInt8[Tensor, "3 height width"]:
    """Read the image of a pair whose label map is of `size`.

    Raises:
        DataError: it cannot be read, or has another size (height, width) than its labels.
    """
    image = read_annotated_image(pair.image, (size[0], size[1]), reading)
    if tuple(image.shape[1:]) != size:
        raise _sizes_differ(pair, size, tuple(image.shape[1:]))
    return image


def _sizes_differ(pair: LabelPair, labels: tuple[int, ...], image: tuple[int, ...]) -> DataError:
    return DataError(
        pair.labels,
        f"is {labels[1]} x {labels[0]} pixels, but its image {pair.image.name} is {image[1]} x {image[0]}; "
        "both must have one size, label it again",
    )


def numbers_of_colors(
    path: Path, image: Image.Image, numbers: Mapping[int, int], table: str
) -> Int64[ndarray, "height width"]:
    """Return the number of each pixel's colour, by a table of R + 256 G + 65536 B.

    Raises:
        DataError: a colour is not in it; `table` is where it should stand.
    """
    channels = np.asarray(image.convert("RGB")).astype(np.int64)
    packed = channels[..., 0] + 256 * channels[..., 1] + 65536 * channels[..., 2]
    colors, places = np.unique(packed, return_inverse=True)
    foreign = [color for color in colors.tolist() if color not in numbers]
    if foreign:
        shown = some_of((c & 255, c >> 8 & 255, c >> 16) for c in foreign)
        raise DataError(path, f"has colours that {table} does not name: {shown}")
    values = np.array([numbers[color] for color in colors.tolist()], dtype=np.int64)
    return values[places].reshape(packed.shape)


def palette_colors(image: Image.Image) -> dict[int, tuple[int, int, int]]:
    """Return the colours of the numbers that occur in an image with a palette; of others nothing."""
    palette = (image.getpalette("RGB") or []) if image.mode == "P" else []
    used = np.unique(np.asarray(image)).tolist() if palette else []
    return {n: (palette[3 * n], palette[3 * n + 1], palette[3 * n + 2]) for n in used if 3 * n < len(palette)}


def pack_color(color: tuple[int, int, int]) -> int:
    """Return a colour as one number: R + 256 G + 65536 B."""
    return color[0] + 256 * color[1] + 65536 * color[2]
