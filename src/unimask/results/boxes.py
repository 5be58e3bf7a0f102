"""The boxes that were found in one picture, in the forms that people and files want them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from unimask.results.box_drawing import overlay_boxes
from unimask.results.segments import category_records, write_together
from unimask.structures import Categories, Detections


@dataclass(frozen=True, kw_only=True)
class FoundBox:
    """One box of a result."""

    id: int  # its number, by falling score; 1, 2, ...
    category_id: int  # as annotation files number categories
    category: str
    score: float  # 0..1
    area: float  # of the box, in pixels
    bbox: tuple[float, float, float, float]  # x, y, width, height in pixels; it may reach over the border


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxResult:
    """What a model of boxes found in one picture.

    `prediction` is the raw result on the CPU, by falling score. `name` is the stem of the picture's file.
    """

    name: str
    image: UInt8[Tensor, "3 height width"]
    prediction: Detections
    categories: Categories

    @property
    def height(self) -> int:
        """Rows of the picture."""
        return self.image.shape[1]

    @property
    def width(self) -> int:
        """Columns of the picture."""
        return self.image.shape[2]

    @cached_property
    def boxes(self) -> tuple[FoundBox, ...]:
        """The boxes, by falling score."""
        found = self.prediction
        rows = zip(found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)
        return tuple(
            FoundBox(
                id=index,
                category_id=self.categories.file_ids[label],
                category=self.categories.names[label],
                score=round(score, 6),
                area=round((right - left) * (bottom - top), 3),
                bbox=(round(left, 3), round(top, 3), round(right - left, 3), round(bottom - top, 3)),
            )
            for index, ((left, top, right, bottom), label, score) in enumerate(rows, start=1)
        )

    def plot(self) -> Image.Image:
        """The picture with its boxes drawn on it and named."""
        return overlay_boxes(self.image, self.prediction, self.categories)

    def to_json(self) -> dict[str, object]:
        """What `save` writes into `NAME.json`: task, height, width, categories and boxes."""
        return {
            "task": "detection",
            "height": self.height,
            "width": self.width,
            "categories": category_records(self.categories),
            "boxes": [{"id": box.id, "category": box.category, **self._record(box)} for box in self.boxes],
        }

    def to_coco(self, image_id: int | str = 0) -> list[dict[str, object]]:
        """COCO results (`image_id`, `category_id`, `bbox`, `area`, `score`), ready for `COCO.loadRes`."""
        return [{"image_id": image_id, **self._record(box)} for box in self.boxes]

    @staticmethod
    def _record(box: FoundBox) -> dict[str, object]:
        return {
            "category_id": box.category_id,
            "bbox": list(box.bbox),
            "area": box.area,
            "score": box.score,
        }

    def save(self, folder: str | Path, name: str = "") -> tuple[Path, ...]:
        """Write NAME.overlay.png and NAME.json; their paths come out.

        Nothing is half-written. An earlier result of the same name is replaced, its panoptic PNG removed.
        Without a name the picture's is taken.

        Raises:
            DataError: the folder cannot be made or written to, or the name is none.
        """
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n"
        writers: dict[str, Callable[[Path], object]] = {
            "overlay.png": lambda path: self.plot().save(path, format="PNG"),
            "json": lambda path: path.write_text(text, encoding="utf-8"),
        }
        return write_together(Path(folder), name or self.name, writers, ("segments.png",))
