"""What every result consists of: the record of a segment or box, its JSON, and files that appear complete."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from unimask.config.tasks import Task
from unimask.errors import DataError
from unimask.files import json_text
from unimask.ops.outlines import Ring
from unimask.results.ledger import ledger_of, result_files
from unimask.structures import Categories, Size

Record = dict[str, object]  # of JSON

Bbox = tuple[int, int, int, int] | tuple[float, float, float, float]
"""x, y, width, height, in pixels."""

Polygons = list[list[Ring]]
"""The parts of a segment: of each its outer ring, then those of its holes (`ops.outlines.outlines`)."""

Writer = Callable[[Path], object]
"""Writes a file at a path."""

Files = Mapping[str, Writer]
"""What writes each file, by its path in the folder of the results."""

IMAGES = ("overlay.png", "segments.png", "segments.tif")
"""The files, besides the JSON, that a result may have."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """One segment or box of a result."""

    id: int  # 1, 2, ...; of a segment its number in the id map
    category_id: int  # as annotation files number categories
    category: str
    score: float  # 0..1
    area: int | float  # pixels; of a box width times height
    bbox: Bbox

    def to_coco(self) -> Record:
        """Return the fields of a COCO result, but for the image."""
        return {
            "category_id": self.category_id,
            "bbox": list(self.bbox),
            "area": self.area,
            "score": self.score,
        }

    def to_panoptic(self) -> Record:
        """Return an entry of the `segments_info` of a panoptic annotation of COCO."""
        return {
            "id": self.id,
            "category_id": self.category_id,
            "bbox": list(self.bbox),
            "area": self.area,
            "iscrowd": 0,
        }

    def to_json(self) -> Record:
        """Return all fields as plain values."""
        return {**vars(self), "bbox": list(self.bbox)}


def found_in(
    categories: Categories,
    number: int,
    label: int,
    score: float,
    area: int | float,
    bbox: Bbox,
) -> Found:
    """Return the record of a segment or box of a category, given by its label."""
    return Found(
        id=number,
        category_id=categories.file_ids[label],
        category=categories.names[label],
        score=round(score, 6),
        area=area,
        bbox=bbox,
    )


def category_records(categories: Categories) -> list[Record]:
    """Return the categories as the JSON of a result lists them."""
    rows = zip(categories.file_ids, categories.names, categories.is_thing, categories.colors, strict=True)
    return [
        {"id": file_id, "name": name, "isthing": int(is_thing), "color": list(color)}
        for file_id, name, is_thing, color in rows
    ]


def document(task: Task, size: Size, categories: Categories, **found: object) -> Record:
    """Return the JSON of a result: task, height, width, categories and what was found."""
    about = {"task": task, "height": size[0], "width": size[1]}
    return {**about, "categories": category_records(categories), **found}


def json_writer(content: object) -> Writer:
    """Return a function that writes the content as JSON."""
    return text_writer(json_text(content) + "\n")


def text_writer(text: str) -> Writer:
    """Return a function that writes a text, in UTF-8."""
    return lambda path: path.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def save_result(
    folder: str | Path, name: str, files: Files, *, overwrite: bool = False, made_with: str = ""
) -> tuple[Path, ...]:
    """Write the files of a result, given by their paths in the folder; return their full paths.

    All files are complete before the first one takes its name, and noted in the ledger of the folder with
    what they were made with. Where NAME.json is among them, images of an earlier result of this name that are
    not are removed: their segments have other ids.

    Raises:
        DataError: the folder cannot be made or written to, the name is none, or a file is there that is no
            earlier result, and `overwrite` is off.
    """
    if not name or name in (".", "..") or {"/", os.sep, "\0"} & set(name):
        raise DataError(name, "is not a name for files; give one without folders")
    folder = Path(folder)
    paths = tuple(folder / file for file in files)
    try:
        with result_files(folder, list(files), overwrite=overwrite, made_with=made_with) as temporary:
            for part, write in zip(temporary, files.values(), strict=True):
                write(part)
        for image in (f"{name}.{ending}" for ending in IMAGES if f"{name}.json" in files):
            if image not in files and ledger_of(folder).owns(image):
                (folder / image).unlink()
    except OSError as error:
        raise DataError(folder, f"results cannot be written here ({error.strerror or error})") from None
    return paths
