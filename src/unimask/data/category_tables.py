"""Tables of categories: those of well-known data sets, and their JSON."""

import colorsys
import json
from pathlib import Path

from unimask.errors import ConfigError
from unimask.structures import Categories

BACKGROUND = "background"
BACKGROUND_COLOR = (40, 40, 40)
CATEGORY_TABLES = Path(__file__).parent / "categories"


def categories_from_json(records: object) -> Categories:
    """Return the categories that a list of `{name, is_thing, file_id, color}` describes.

    Raises:
        ConfigError: a record lacks a field or holds a value of the wrong type; it is named.
    """
    if not isinstance(records, list) or not records:
        raise ConfigError("categories", "must be a list of at least one category")
    for index, record in enumerate(records):
        _check_category(record, f"categories.{index}")
    return Categories(
        names=tuple(record["name"] for record in records),
        is_thing=tuple(record["is_thing"] for record in records),
        file_ids=tuple(record["file_id"] for record in records),
        colors=tuple((record["color"][0], record["color"][1], record["color"][2]) for record in records),
    )


def categories_to_json(categories: Categories) -> list[dict[str, object]]:
    """One record per category, in the order of the labels; `categories_from_json` is the inverse."""
    rows = zip(categories.names, categories.is_thing, categories.file_ids, categories.colors, strict=True)
    return [
        {"name": name, "is_thing": is_thing, "file_id": file_id, "color": list(color)}
        for name, is_thing, file_id, color in rows
    ]


def _check_category(record: object, path: str) -> None:
    kinds: dict[str, type] = {"name": str, "is_thing": bool, "file_id": int, "color": list}
    if not isinstance(record, dict) or set(record) != set(kinds):
        raise ConfigError(path, f"must have exactly the fields {', '.join(kinds)}; got {record!r}")
    for key, kind in kinds.items():
        if not isinstance(record[key], kind):
            raise ConfigError(f"{path}.{key}", f"must be of type {kind.__name__}; got {record[key]!r}")
    color = record["color"]
    if len(color) != 3 or not all(type(value) is int and 0 <= value <= 255 for value in color):
        raise ConfigError(f"{path}.color", f"must be three integers from 0 to 255; got {color!r}")


def load_categories(name: str) -> Categories:
    """Return the categories of a well-known data set, for instance `coco_panoptic` or `cityscapes`.

    Raises:
        ConfigError: no table has this name; the message lists the tables.
    """
    path = CATEGORY_TABLES / f"{name}.json"
    known = sorted(table.stem for table in CATEGORY_TABLES.glob("*.json"))
    if name not in known:
        raise ConfigError(name, f"no such table of categories; there are: {', '.join(known)}")
    return categories_from_json(json.loads(path.read_text(encoding="utf-8")))


def color_or_default(given: object, index: int) -> tuple[int, int, int]:
    """Return the color that a file gives as [r, g, b], else the default one of category number `index`."""
    if isinstance(given, list) and len(given) == 3 and all(isinstance(value, int) for value in given):
        return (given[0] & 255, given[1] & 255, given[2] & 255)
    return default_color(index)


def default_color(index: int) -> tuple[int, int, int]:
    """Return a color for category number `index`: hues apart by the golden ratio, in three lightnesses."""
    hue = (0.58 + index * 0.61803398875) % 1.0
    red, green, blue = colorsys.hls_to_rgb(hue, (0.55, 0.4, 0.7)[index % 3], 0.75)
    return (round(red * 255), round(green * 255), round(blue * 255))


def with_background(categories: Categories) -> Categories:
    """Append the stuff category "background", or "unlabelled" where that name is taken."""
    return Categories(
        names=(*categories.names, "unlabelled" if BACKGROUND in categories.names else BACKGROUND),
        is_thing=(*categories.is_thing, False),
        file_ids=(*categories.file_ids, max(categories.file_ids, default=0) + 1),
        colors=(*categories.colors, BACKGROUND_COLOR),
    )
