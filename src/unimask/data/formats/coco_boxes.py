"""COCO boxes: the boxes of a JSON of COCO instances, as they stand there; masks are not looked at."""

from pathlib import Path

import torch

from unimask.data.formats.coco_file import (
    CocoImage,
    Record,
    annotations_of_images,
    load_json,
    picture_folders,
    read_categories,
    read_coco_picture,
    read_images,
    records,
    used_categories,
)
from unimask.errors import DataError
from unimask.ops.boxes import clip_boxes
from unimask.structures import Categories, Detections, Sample


class CocoBoxes:
    """The pictures of one COCO JSON with the boxes of their things; every picture of the file is a sample.

    Boxes keep the order of the file; what lies outside of the picture is cut off. Areas are those that the
    file states, of masks where it has some. Objects marked `iscrowd`, or `difficult` as in PASCAL VOC, are
    crowd: nothing is learned from them, and finding them is neither right nor wrong.

    Raises:
        DataError: the file, one of its entries or a picture cannot be used; entries are named by their id.
    """

    def __init__(self, path: str | Path, content: Record | None = None) -> None:
        self._path = Path(path)
        content = load_json(self._path) if content is None else content
        entries = records(self._path, content, "annotations")
        self._categories = read_categories(self._path, content, used=used_categories(entries))
        self._images = read_images(self._path, content, picture_folders(self._path))
        grouped = annotations_of_images(self._path, entries, self._images, self._categories)
        self._detections = [self._read(image, grouped[image.id]) for image in self._images]

    @property
    def categories(self) -> Categories:
        """The categories of the file, in its order."""
        return self._categories

    @property
    def image_ids(self) -> tuple[str, ...]:
        """The id of every sample, without reading it."""
        return tuple(image.path.stem for image in self._images)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        image = self._images[index]
        pixels = read_coco_picture(self._path, image)
        return Sample(image=pixels, truth=self._detections[index], image_id=image.path.stem)

    def _read(self, image: CocoImage, entries: list[tuple[Record, int]]) -> Detections:
        rows = [_box(self._path, entry, image) for entry, _ in entries]
        return Detections(
            boxes=torch.tensor([row[:4] for row in rows], dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor([label for _, label in entries], dtype=torch.int64),
            scores=torch.ones(len(rows)),
            areas=torch.tensor([row[4] for row in rows], dtype=torch.float32),
            is_crowd=torch.tensor(
                [bool(entry.get("iscrowd", 0) or entry.get("difficult", 0)) for entry, _ in entries],
                dtype=torch.bool,
            ),
        )


def _box(path: Path, entry: Record, image: CocoImage) -> tuple[float, ...]:
    """left, top, right, bottom, area."""
    what, given = f"annotation {entry['id']}", entry.get("bbox")
    numbers = given if isinstance(given, list) and all(isinstance(n, int | float) for n in given) else []
    if len(numbers) != 4 or not all(abs(number) < float("inf") for number in numbers):
        raise DataError(path, f"{what} has bbox {given!r}; expected [x, y, width, height] in pixels")
    x, y, width, height = numbers
    if width <= 0 or height <= 0:
        raise DataError(path, f"{what} has a box of {width} x {height} pixels; correct or remove it")
    corners = torch.tensor([x, y, x + width, y + height], dtype=torch.float64)
    left, top, right, bottom = clip_boxes(corners, image.size).tolist()
    if right <= left or bottom <= top:
        raise DataError(
            path,
            f"{what} lies outside of its picture ({image.size[1]} x {image.size[0]} pixels); was it drawn on "
            "a picture of another size? Export it again in pixels of this one, or remove it",
        )
    area = entry.get("area")
    stated = float(area) if isinstance(area, int | float) and area > 0 else (right - left) * (bottom - top)
    return left, top, right, bottom, stated
