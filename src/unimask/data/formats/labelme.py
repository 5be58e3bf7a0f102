"""LabelMe: a JSON per image with its shapes."""

import base64
import binascii
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from unimask.config.tasks import Task
from unimask.data.category_tables import with_background
from unimask.data.drawn import (
    Drawn,
    DrawnImage,
    Outline,
    Patch,
    Region,
    United,
    box_ring,
    drawn_dataset,
    ellipse_ring,
    ring,
    said_without_area,
)
from unimask.data.formats.coco_file import Record, load_json
from unimask.data.items import ItemDataset
from unimask.data.naming import Folders, find_own_image
from unimask.data.sources import SPLITS, Format, Source, Sources
from unimask.errors import DataError
from unimask.files import first_bytes
from unimask.structures import Size

IGNORE, NOTHING = "__ignore__", "_background_"
"""Labels that are no classes, as in LabelMe's own converters: pixels that are void, and background."""

_FILE = "a file of LabelMe (shapes, ...)"
IGNORED = ("line", "linestrip", "point", "points")  # shapes without an area


def labelme_files(folder: Path) -> list[Path]:
    """Return the JSON files of LabelMe directly in a folder, recognised by their `shapes`."""
    found = []
    for path in sorted(folder.glob("*.json")):
        if re.search(rb'"shapes"\s*:', first_bytes(path, 1 << 16)):
            found.append(path)
    return found


def labelme_names(files: Sequence[Path]) -> tuple[str, ...]:
    """Return all labels in the files, sorted.

    Raises:
        DataError: a file is no JSON of LabelMe, or there are no shapes.
    """
    names = {str(shape["label"]) for path in files for _, shape in _shapes(path, load_json(path, _FILE))}
    names -= {IGNORE, NOTHING}
    if not names:
        raise DataError(files[0].parent, f"{len(files)} JSON files of LabelMe hold no shapes with an area")
    return tuple(sorted(names))


def open_labelme(names: Sequence[str], files: Sequence[Path]) -> ItemDataset:
    """Open a sample per file. Shapes of one label and group (`group_id`) are one object.

    Polygons, rectangles, circles and masks are taken; lines and points have no area and are left out (their
    number is reported). The pixels of a shape called `__ignore__` are void, and a stuff category then has all
    pixels that are neither in it nor in an object.

    Raises:
        DataError: a file or a shape cannot be used, or an image is missing.
    """
    labels = {name: label for label, name in enumerate(names)}
    folders = Folders()
    flat: Counter[str] = Counter()
    images = [_image(path, labels, folders, flat) for path in files]
    dataset = drawn_dataset(names, images, left_out=said_without_area(flat, "shapes"))
    if not any(image.void for image in images):
        return dataset
    filled = tuple(replace(image, fill=(len(names),)) for image in images)
    return replace(dataset, categories=with_background(dataset.categories), items=filled)


def _shapes(path: Path, content: Record) -> list[tuple[str, Record]]:
    """Return the shapes with an area, and how messages name them."""
    shapes = content.get("shapes")
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise DataError(path, "has no list of objects 'shapes'; expected a JSON of LabelMe")
    found = []
    for number, shape in enumerate(shapes, 1):
        where = f"shape {number} ({shape.get('label', '')!r})"
        if not shape.get("label"):
            raise DataError(path, f"{where} has no label")
        if shape.get("shape_type", "polygon") not in IGNORED:
            found.append((where, shape))
    return found


def _image(path: Path, labels: dict[str, int], files: Folders, flat: Counter[str]) -> DrawnImage:
    """Read a file; `flat` counts its shapes without an area, by kind."""
    content = load_json(path, _FILE)
    shapes = content.get("shapes")
    for shape in shapes if isinstance(shapes, list) else ():
        if isinstance(shape, dict) and shape.get("shape_type") in IGNORED:
            flat[str(shape["shape_type"])] += 1
    groups: dict[object, list[tuple[str, int, Region]]] = {}
    void = []
    for where, shape in _shapes(path, content):
        name, group = str(shape["label"]), shape.get("group_id")
        region = _region(path, where, shape)
        if name == IGNORE:
            void.append(Drawn(label=len(labels), region=region, where=where))
        elif name != NOTHING:
            key = (name, repr(group)) if group is not None else where
            groups.setdefault(key, []).append((where, labels[name], region))
    objects = []
    for members in groups.values():
        regions = tuple(region for _, _, region in members)
        region = United(regions=regions) if len(regions) > 1 else regions[0]
        objects.append(Drawn(label=members[0][1], region=region, where=members[0][0]))
    height, width = content.get("imageHeight"), content.get("imageWidth")
    size = ((height, width),) if isinstance(height, int) and isinstance(width, int) else ()
    folders = [path.parent, path.parent.parent / "images", path.parent.parent, path.parent / "images"]
    image = find_own_image(path, str(content.get("imagePath") or ""), folders, files)
    return DrawnImage(image=image, source=path, size=size, objects=tuple(objects), void=tuple(void))


def _region(path: Path, where: str, shape: Record) -> Region:
    kind, points = shape.get("shape_type", "polygon"), shape.get("points")
    if isinstance(points, list) and len(points) % 2 == 0 and not any(isinstance(p, list) for p in points):
        points = [points[start : start + 2] for start in range(0, len(points), 2)]  # x1, y1, x2, y2, ...
    if isinstance(points, list) and len(points) == 1 and _is_nested(points[0]):
        points = points[0]
    if not isinstance(points, list) or not all(isinstance(p, list) and len(p) == 2 for p in points):
        raise DataError(path, f"{where}: points is no list of [x, y]")
    numbers = [number for point in points for number in point]
    if kind in ("polygon", "oriented_rectangle", "rotation") or (kind == "rectangle" and len(points) == 4):
        return Outline(rings=(ring(path, where, numbers),))
    if len(points) != 2:
        raise DataError(path, f"{where}: a {kind} has {len(points)} points; expected 2")
    x1, y1, x2, y2 = ring(path, where, [*numbers, 0, 0])[:4].tolist()
    if kind == "rectangle":
        return Outline(rings=(box_ring(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)),))
    if kind == "circle":
        radius = float(np.hypot(x2 - x1, y2 - y1))
        return Outline(rings=(ellipse_ring(x1, y1, radius, radius),))
    if kind == "mask":
        return _packed_mask(path, where, shape, round(min(x1, x2)), round(min(y1, y2)))
    raise DataError(path, f"{where}: shapes of type {kind!r} are not known")


def _is_nested(points: object) -> bool:
    return isinstance(points, list) and bool(points) and all(isinstance(point, list) for point in points)


@dataclass(frozen=True, kw_only=True)
class _PackedMask:
    """A mask of its own size as an image file, decoded when its pixels are asked for."""

    content: bytes
    left: int
    top: int

    def pixels(self, size: Size) -> np.ndarray:
        try:
            with Image.open(io.BytesIO(self.content)) as image:
                if image.height > size[0] + 1 or image.width > size[1] + 1:
                    raise ValueError(f"its mask of {image.width} x {image.height} is larger than the image")
                mask = np.asarray(image.convert("L")) > 0
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"its mask is damaged ({error})") from None
        return Patch(mask=mask, left=self.left, top=self.top).pixels(size)


def _packed_mask(path: Path, where: str, shape: Record, left: int, top: int) -> _PackedMask:
    try:
        content = base64.b64decode(str(shape.get("mask", "")))
        Image.open(io.BytesIO(content)).close()
    except (OSError, SyntaxError, ValueError, binascii.Error, Image.DecompressionBombError) as error:
        raise DataError(path, f"{where}: its mask is no image in base64 ({error})") from None
    return _PackedMask(content=content, left=left, top=top)


def _find(path: Path, task: Task) -> Sources:
    """Find folders with a JSON per image; all of them share their names."""
    places = {"": [path, path / "annotations", path / "labels", path / "json"]}
    places.update({split: [path / word for word in words] for split, words in SPLITS.items()})
    files = {}
    for split, folders in places.items():
        listed = [labelme_files(folder) for folder in folders if folder.is_dir()]
        files[split] = next((tuple(paths) for paths in listed if paths), ())
    chosen = {split: paths for split, paths in files.items() if paths and split} or {"": files[""]}
    every = [path for paths in chosen.values() for path in paths]
    if not every:
        return {}
    names = labelme_names(every)
    return {
        split: Source(path=paths[0].parent, open=partial(open_labelme, names, paths))
        for split, paths in chosen.items()
    }


LABELME = Format(layouts="  a JSON beside each image, also in train/, val/ (LabelMe)", find=_find)
