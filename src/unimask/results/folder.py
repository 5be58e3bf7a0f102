"""One file for all images of a folder, joined from a file per image, with one of them in memory at a time."""

import csv
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TextIO

from unimask.errors import DataError
from unimask.files import json_text, remove
from unimask.results.ledger import result_files

PARTS = ".parts"
"""The folder, in that of the results, of the files per image until they are joined."""


def join_tables(parts: Sequence[Path], targets: Sequence[Path]) -> None:
    """Write the rows of all tables into the first file, and the counts of each image into the second.

    Counts are by category; an image in which nothing was found has one row, with no category and 0.
    """
    with (
        targets[0].open("w", encoding="utf-8", errors="backslashreplace", newline="") as rows,
        targets[1].open("w", encoding="utf-8", errors="backslashreplace", newline="") as images,
    ):
        counts = csv.writer(images, lineterminator="\n")
        counts.writerow(("image", "category", "count", "area"))
        for number, part in enumerate(parts):
            text = part.read_text(encoding="utf-8")
            rows.write(text if number == 0 else text.partition("\n")[2])
            areas: dict[str, list[float]] = defaultdict(list)
            for row in csv.DictReader(text.splitlines(keepends=True)):
                areas[row["category"]].append(float(row["area"]))
            image = part.name.removesuffix(JOINED["csv"].part)
            for category, values in sorted(areas.items()) or [("", [])]:
                counts.writerow((image, category, len(values), f"{sum(values):.12g}"))


def join_coco(parts: Sequence[Path], targets: Sequence[Path]) -> None:
    """Write one annotation file; images and annotations are numbered from 1 on, in the order of the parts.

    Names of image files are relative to the folder that holds all of them.
    """

    def documents() -> Iterator[tuple[int, Any]]:
        for number, part in enumerate(parts, start=1):
            yield number, json.loads(part.read_text(encoding="utf-8"))

    def images() -> Iterator[object]:
        for number, one in documents():
            yield {**one["images"][0], "id": number, "file_name": names[number - 1]}

    def annotations() -> Iterator[object]:
        numbers = count(1)
        for number, one in documents():
            for record in one["annotations"]:
                own = {"id": next(numbers)} if "id" in record else {}  # panoptic ones have none
                yield {**record, **own, "image_id": number}

    names = from_common_folder([one["images"][0]["file_name"] for _, one in documents()])
    categories: list[object] = next((one["categories"] for _, one in documents()), [])
    with targets[0].open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.write('{"images": ')
        write_list(file, images())
        file.write(',\n"categories": ')
        write_list(file, categories)
        file.write(',\n"annotations": ')
        write_list(file, annotations())
        file.write("}\n")


def join_lists(parts: Sequence[Path], targets: Sequence[Path]) -> None:
    """Join the JSON lists of the parts."""
    with targets[0].open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        write_list(file, (one for part in parts for one in json.loads(part.read_text(encoding="utf-8"))))
        file.write("\n")


def write_list(file: TextIO, values: Iterable[object]) -> None:
    """Write values as a JSON list, one a line, as they come."""
    start = "["
    for value in values:
        file.write(f"{start}\n{json_text(value, None)}")
        start = ","
    file.write("\n]" if start == "," else "[]")


def from_common_folder(files: Sequence[str]) -> list[str]:
    """Return the paths relative to the folder that holds all of them, with slashes; addresses as given."""
    if any("://" in file for file in files):
        return list(files)
    folders = [os.path.dirname(os.path.abspath(file)) for file in files]
    try:
        common = os.path.commonpath(folders)
        return [Path(os.path.relpath(os.path.abspath(file), common)).as_posix() for file in files]
    except ValueError:  # there are none, or they lie on several drives
        return list(files)


@dataclass(frozen=True, kw_only=True)
class Joined:
    """A format whose file per image, of this ending, is joined into files of the folder."""

    part: str
    files: tuple[str, ...]
    join: Callable[[Sequence[Path], Sequence[Path]], None]  # the parts, in their order, into the files


JOINED: Mapping[str, Joined] = {
    "csv": Joined(part=".csv", files=("segments.csv", "images.csv"), join=join_tables),
    "coco": Joined(part=".coco.json", files=("coco.json",), join=join_coco),
    "label-studio": Joined(part=".label_studio.json", files=("label_studio.json",), join=join_lists),
}
"""By the name of the format."""


def join_parts(
    folder: Path,
    names: Sequence[str],
    formats: Sequence[str],
    *,
    overwrite: bool = False,
    made_with: str = "",
    keep: bool = False,
) -> tuple[Path, ...]:
    """Join the parts of the images of these names, in their order; return the new files.

    They are complete when they appear. All parts are removed afterwards, unless `keep` says that more of them
    will come. `overwrite` and `made_with` are as for `found.save_result`.

    Raises:
        DataError: the files cannot be written.
    """
    made: list[Path] = []
    try:
        for joined in (JOINED[one] for one in formats if one in JOINED):
            with result_files(folder, joined.files, overwrite=overwrite, made_with=made_with) as temporary:
                joined.join([folder / PARTS / f"{name}{joined.part}" for name in names], temporary)
            made += [folder / file for file in joined.files]
    except OSError as error:
        raise DataError(folder, f"results cannot be written here ({error.strerror or error})") from None
    if not keep:
        remove(folder / PARTS)
    return tuple(made)
