"""The formats that results are written in, and the files of each."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unimask.config.tasks import Task
from unimask.errors import ConfigError, choices
from unimask.results.folder import JOINED, PARTS
from unimask.results.formats.imagej import write_imagej
from unimask.results.formats.table import as_csv
from unimask.results.formats.yolo import yolo_data
from unimask.results.found import Files, Record, category_records, json_writer, text_writer
from unimask.results.result import Result

OVERLAPPING = ("instance", "detection")
"""Tasks whose segments or boxes may overlap: one image of ids cannot hold them."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the files of a result go, and what they say beyond the result."""

    folder: Path
    name: str  # of the files, without their endings
    image: str  # the path or address of the image; "" where it has none
    pixel_size: float | None  # micrometres


@dataclass(frozen=True, kw_only=True)
class FileFormat:
    """A format: what it is good for, and what writes the files of one result."""

    help: str
    files: Callable[[Result, Place], Files]


def _overlay(result: Result, place: Place) -> Files:
    return {f"{place.name}.overlay.png": lambda path: result.plot().save(path, format="PNG")}


def _png(result: Result, place: Place) -> Files:
    def write(path: Path) -> None:
        result.to_panoptic_png().save(path, format="PNG", optimize=True)

    return {f"{place.name}.segments.png": write}


def _json(result: Result, place: Place) -> Files:
    return {f"{place.name}.json": json_writer(result.to_json())}


def _csv(result: Result, place: Place) -> Files:
    table = replace(result, name=place.name).to_table(place.pixel_size)
    return {f"{place.name}.csv": text_writer(as_csv(table))}


def coco_document(result: Result, *, image: str = "", png: str = "") -> Record:
    """Return an annotation file of COCO about one image (a path; by default the result's name) with the id 1.

    Instances and boxes are annotations with ids and scores. Panoptic and semantic segments are one annotation
    with `segments_info`, to the PNG of a name.
    """
    size = {"height": result.height, "width": result.width}
    records = result.to_coco(1)
    if result.task in OVERLAPPING:
        numbered = enumerate(records, start=1)
        annotations: list[Record] = [{"id": number, **record, "iscrowd": 0} for number, record in numbered]
    else:
        annotations = [{"image_id": 1, "file_name": png, "segments_info": records}]
    return {
        "images": [{"id": 1, "file_name": image or result.name, **size}],
        "annotations": annotations,
        "categories": category_records(result.categories),
    }


def _coco(result: Result, place: Place) -> Files:
    png = {} if result.task in OVERLAPPING else _png(result, place)
    content = coco_document(result, image=place.image or place.name, png=next(iter(png), ""))
    return {f"{place.name}.coco.json": json_writer(content), **png}


def _geojson(result: Result, place: Place) -> Files:
    return {f"{place.name}.geojson": json_writer(result.to_geojson())}


def _imagej(result: Result, place: Place) -> Files:
    def write(path: Path) -> None:
        write_imagej(path, result.segments, result.polygons, result.categories)

    return {f"{place.name}.rois.zip": write}


def _labelme(result: Result, place: Place) -> Files:
    image = place.image and _seen_from(place.folder / "labelme", place.image)
    return {f"labelme/{place.name}.json": json_writer(result.to_labelme(image))}


def _label_studio(result: Result, place: Place) -> Files:
    task = result.to_label_studio(place.image or place.name)
    return {f"{place.name}.label_studio.json": json_writer([task])}


def _yolo(result: Result, place: Place) -> Files:
    data = text_writer(yolo_data(result.categories))
    return {f"yolo/labels/{place.name}.txt": text_writer(result.to_yolo()), "yolo/data.yaml": data}


FORMATS: Mapping[str, FileFormat] = {
    "overlay": FileFormat(files=_overlay, help="NAME.overlay.png: the image with what was found"),
    "png": FileFormat(
        files=_png,
        help="NAME.segments.png: the segment id of each pixel, R + 256 G + 65536 B",
    ),
    "json": FileFormat(files=_json, help="NAME.json: everything that was found"),
    "csv": FileFormat(files=_csv, help="NAME.csv: a row per segment with its measures"),
    "coco": FileFormat(files=_coco, help="NAME.coco.json: an annotation file of COCO"),
    "geojson": FileFormat(files=_geojson, help="NAME.geojson: polygons, for QuPath and maps"),
    "imagej-roi": FileFormat(
        files=_imagej, help="NAME.rois.zip: regions for the ROI Manager of ImageJ and Fiji"
    ),
    "labelme": FileFormat(files=_labelme, help="labelme/NAME.json: polygons to correct in LabelMe"),
    "label-studio": FileFormat(
        files=_label_studio, help="NAME.label_studio.json: predictions to import into Label Studio"
    ),
    "yolo": FileFormat(
        files=_yolo,
        help="yolo/labels/NAME.txt and yolo/data.yaml: a data set, with the images in yolo/images",
    ),
}
"""ADD A FORMAT HERE; if it is one file for a folder of images, then also to `folder.JOINED`."""


def default_formats(task: Task) -> tuple[str, ...]:
    """Return the formats that are written unless others are asked for."""
    return ("overlay", "json") if task in OVERLAPPING else ("overlay", "png", "json")


def check_known(formats: Sequence[str]) -> None:
    """Check that there are such formats.

    Raises:
        ConfigError: there is one that does not exist.
    """
    for name in formats:
        if name not in FORMATS:
            raise ConfigError("format", f"{name!r} does not exist; {choices(name, FORMATS)}")


def check_formats(formats: Sequence[str], task: Task) -> tuple[str, ...]:
    """Return the formats, each once; none stand for the default ones.

    Raises:
        ConfigError: there is no such format, or it has no room for results of the task.
    """
    check_known(formats)
    if "png" in formats and task in OVERLAPPING:
        raise ConfigError("format", f"png holds one segment per pixel, and those of {task} may overlap")
    return tuple(dict.fromkeys(formats)) or default_formats(task)


def files_of(result: Result, formats: Sequence[str], place: Place, *, parts: bool = False) -> Files:
    """Return functions that write the files of a result; none of the formats stand for the default ones.

    With `parts`, files that are to be joined for a folder go where `folder.join_parts` finds them.

    Raises:
        ConfigError: as `check_formats`.
    """
    files: dict[str, Callable[[Path], object]] = {}
    for name in check_formats(formats, result.task):
        made = FORMATS[name].files(result, place)
        if parts and name in JOINED:
            part = f"{place.name}{JOINED[name].part}"
            made = {f"{PARTS}/{file}" if file == part else file: write for file, write in made.items()}
        files.update(made)
    return files


def _seen_from(folder: Path, file: str) -> str:
    """Return the path of a file relative to a folder; unchanged if it is an address or on another drive."""
    if "://" in file:
        return file
    try:
        return Path(os.path.relpath(file, folder)).as_posix()
    except ValueError:
        return file
