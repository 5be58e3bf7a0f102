"""What the numbers or colours of label maps in folders mean: `classes.json`, or a guess."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy import ndarray

from unimask.data.category_tables import color_or_default, default_color
from unimask.data.formats.coco_file import Record, load_json, records, unique, whole
from unimask.data.numbered import LabelPair, numbers_of_colors, pack_color, palette_colors
from unimask.data.pillow import open_image
from unimask.data.read import read_labels
from unimask.errors import DataError, some_of
from unimask.structures import Categories

CLASSES_FILE = "classes.json"
EXAMPLE = '{"kind": "semantic", "classes": [{"id": 0, "name": "road"}, ...], "ignore_label": 255}'
VOID_COLOR = (224, 224, 192)  # of the border of objects in Pascal VOC


@dataclass(frozen=True, kw_only=True)
class LabelScheme:
    """What the numbers in label maps mean.

    "semantic": a number is a class (`categories.file_ids`), and classes are stuff; label maps may have the
    colours of the classes instead. "instances": a number other than 0 is one object of the only class; 0 is
    background. Pixels with an ignored number are void.
    """

    kind: Literal["semantic", "instances"]
    categories: Categories
    ignored: tuple[int, ...]
    numbers_of_colors: Mapping[int, int]  # R + 256 G + 65536 B -> number, of label maps in colours
    by_palette: bool = False  # whether a number in a palette counts by its colour, as files differ in them
    guessed: str = ""  # what was taken for granted without `classes.json`: a sentence


def read_classes(path: Path, colors: Mapping[int, int], *, by_palette: bool = False) -> ndarray:
    """Read the numbers of a label map, or those of its colours, with `by_palette` also those of a palette.

    Raises:
        DataError: as `read_labels`, or a colour is not in the table.
    """
    image = open_image(path, rotate=False)
    if image.mode not in ("RGB", "RGBA", *["P"] * by_palette):
        return read_labels(path)
    if not colors:
        raise DataError(
            path,
            f"is a label map of colours (mode {image.mode}), and nothing says what they mean; give each "
            f'class of {CLASSES_FILE} its "color": [red, green, blue], or save one number per pixel '
            "(8- or 16-bit grey, or a palette)",
        )
    return numbers_of_colors(path, image, colors, CLASSES_FILE)


def read_scheme(folder: Path, pairs: Sequence[LabelPair]) -> LabelScheme:
    """Read what labels mean from `classes.json` in the folder, else guess it from some label maps.

    `classes.json` holds an object: "classes" is a list of {"id": number, "name": text, "color": [r, g, b]}
    (the color may be left out), "kind" is "semantic" (the default) or "instances" (then there is one class,
    and its id does not matter), "ignore_label" is a number or a list of numbers (255 by default for
    "semantic", where no class has it). Numbers in a palette are classes, whatever their colours; where label
    maps have different palettes, the colours of the classes count.

    Without the file: 16-bit labels are instance numbers of one class "object"; labels with no numbers but 0
    and 255, or 0 and 1, are the classes "background" and "foreground". Anything else needs the file.

    Raises:
        DataError: the file cannot be used, or is needed.
    """
    path = folder / CLASSES_FILE
    scheme = _scheme_from_file(path) if path.exists() else _guess_scheme(path, pairs)
    if scheme.kind == "semantic" and (differ := _differing_palettes(pairs)):
        if not scheme.numbers_of_colors:
            way_out = f'give each class of {CLASSES_FILE} its "color", or save all with one palette'
            raise DataError(differ[0], f"{differ[1]}, so that numbers do not tell classes; {way_out}")
        scheme = replace(scheme, by_palette=True)
    if not path.exists():
        return scheme
    is_binary = scheme.kind == "semantic" and set(scheme.categories.file_ids) == {0, 1}
    if is_binary and "ignore_label" not in load_json(path):
        present = _numbers_in(pairs)
        if 255 in present and 1 not in present:
            raise DataError(
                path,
                f"numbers its classes 0 and 1, but the label maps hold {some_of(sorted(present))}; give the "
                'class of 255 the "id" 255, or save its pixels as 1',
            )
    return scheme


def _differing_palettes(pairs: Sequence[LabelPair]) -> tuple[Path, str] | None:
    """Return the first of some label maps in which a number has another colour than in one before it."""
    known: dict[int, tuple[tuple[int, int, int], str]] = {}
    for pair in pairs[:: max(1, len(pairs) // 20)]:
        try:
            colors = palette_colors(open_image(pair.labels, rotate=False))
        except DataError:  # said where it is read
            continue
        for number, color in colors.items():
            first, name = known.setdefault(number, (color, pair.labels.name))
            if color != first:
                return pair.labels, f"has {color} for {number} in its palette, but {name} has {first}"
    return None


def _numbers_in(pairs: Sequence[LabelPair]) -> set[int]:
    """Return the numbers in some label maps of one channel, spread over all."""
    chosen = (pair.labels for pair in pairs[:: max(1, len(pairs) // 20)])
    numbers = [path for path in chosen if open_image(path, rotate=False).mode not in ("RGB", "RGBA")]
    return set().union(*(np.unique(read_labels(path)).tolist() for path in numbers))


def _scheme_from_file(path: Path) -> LabelScheme:
    content = load_json(path, EXAMPLE)
    entries = records(path, content, "classes", EXAMPLE)
    kind = content.get("kind", "semantic")
    if kind not in ("semantic", "instances"):
        raise DataError(path, f"kind is {kind!r}; expected 'semantic' or 'instances'")
    if kind == "instances" and len(entries) != 1:
        raise DataError(
            path, f"has {len(entries)} classes; label maps of instances hold one class, use COCO for more"
        )
    ids = tuple(whole(path, entry, "id", f"class {entry.get('name')!r}") for entry in entries)
    unique(path, ids, "class id")
    categories = Categories(
        names=tuple(_name(path, entry) for entry in entries),
        is_thing=(kind == "instances",) * len(entries),
        file_ids=ids,
        colors=tuple(color_or_default(entry.get("color"), index) for index, entry in enumerate(entries)),
    )
    if len(set(categories.names)) < len(entries):
        raise DataError(path, "two classes have the same name")
    default = [255] if kind == "semantic" and 255 not in ids else []
    given = content.get("ignore_label", default)
    listed = given if isinstance(given, list) else [given]
    ignored = tuple(number for number in listed if isinstance(number, int) and number not in ids)
    if len(ignored) < len(listed):
        raise DataError(path, f"ignore_label is {given!r}; expected numbers that are no class")
    return LabelScheme(
        kind="instances" if kind == "instances" else "semantic",
        categories=categories,
        ignored=ignored,
        numbers_of_colors=_numbers_of_colors(path, entries, ids, ignored),
    )


def _numbers_of_colors(
    path: Path, entries: Sequence[Record], ids: Sequence[int], ignored: Sequence[int]
) -> dict[int, int]:
    """Return the colours that the file gives to classes, and that of the border of objects in VOC."""
    numbers = {pack_color(VOID_COLOR): ignored[0]} if ignored else {}
    stated = [color_or_default(entry["color"], 0) for entry in entries if "color" in entry]
    if len(stated) < len(entries):
        return {}
    if len(set(stated)) < len(stated):
        raise DataError(path, "two classes have the same color")
    return {**numbers, **{pack_color(color): number for color, number in zip(stated, ids)}}


def _name(path: Path, entry: Record) -> str:
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        raise DataError(path, f"class {entry.get('id')} has the name {name!r}; expected text")
    return name


def _guess_scheme(path: Path, pairs: Sequence[LabelPair]) -> LabelScheme:
    chosen = pairs[:: max(1, len(pairs) // 20)]
    if open_image(chosen[0].labels, rotate=False).mode.startswith("I"):
        return LabelScheme(
            kind="instances",
            categories=_plain_categories(("object",), (1,), thing=True),
            ignored=(),
            numbers_of_colors={},
            guessed="label maps of 16 bits are taken as numbers of objects of one class",
        )
    if open_image(chosen[0].labels, rotate=False).mode in ("RGB", "RGBA"):
        read_classes(chosen[0].labels, {})  # raises the error
    present = sorted(_numbers_in(pairs))
    if set(present) <= {0, 1} or set(present) <= {0, 255}:
        categories = _plain_categories(("background", "foreground"), (0, max(1, present[-1])), thing=False)
        return LabelScheme(kind="semantic", categories=categories, ignored=(), numbers_of_colors={})
    raise DataError(
        path,
        f"no such file, and the labels (8-bit numbers {some_of(present, 12)}) do not say what they mean; "
        f"add it, for example {EXAMPLE}, or of kind 'instances' where the numbers count objects of a class",
    )


def _plain_categories(names: tuple[str, ...], ids: tuple[int, ...], *, thing: bool) -> Categories:
    colors = tuple(default_color(index) for index in range(len(names)))
    return Categories(names=names, is_thing=(thing,) * len(names), file_ids=ids, colors=colors)
