"""The boxes that were found in one image, in the forms that people and files want them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from unimask.results.box_drawing import overlay_boxes
from unimask.results.found import Found, document, found_in, save_result
from unimask.structures import Categories, Detections


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxResult:
    """What a model of boxes found in one image.

    `prediction` is the raw result on the CPU, by falling score. `name` is the stem of the image's file.
    """

    name: str
    image: UInt8[Tensor, "3 height width"]
    prediction: Detections
    categories: Categories

    @property
    def height(self) -> int:
        """Rows of the image."""
        return self.image.shape[1]

    @property
    def width(self) -> int:
        """Columns of the image."""
        return self.image.shape[2]

    @cached_property
    def boxes(self) -> tuple[Found, ...]:
        """The boxes, by falling score."""
        found = self.prediction
        rows = zip(found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)
        return tuple(
            found_in(
                self.categories,
                number,
                label,
                score,
                round((right - left) * (bottom - top), 3),
                (round(left, 3), round(top, 3), round(right - left, 3), round(bottom - top, 3)),
            )
            for number, ((left, top, right, bottom), label, score) in enumerate(rows, start=1)
        )

    def plot(self) -> Image.Image:
        """Return the image with its boxes drawn on it and named."""
        return overlay_boxes(self.image, self.prediction, self.categories)

    def to_json(self) -> dict[str, object]:
        """Return what `save` writes into `NAME.json`: task, height, width, categories and boxes."""
        records = [box.to_json() for box in self.boxes]
        return document("detection", (self.height, self.width), self.categories, boxes=records)

    def to_coco(self, image_id: int | str = 0) -> list[dict[str, object]]:
        """Return COCO results (`image_id`, `category_id`, `bbox`, `area`, `score`), for `COCO.loadRes`."""
        return [{"image_id": image_id, **box.to_coco()} for box in self.boxes]

    def save(self, folder: str | Path, name: str = "") -> tuple[Path, ...]:
        """Write NAME.overlay.png and NAME.json; return their paths.

        Nothing is half-written. An earlier result of the same name is replaced, its panoptic PNG removed.
        Without a name the image's is taken.

        Raises:
            DataError: the folder cannot be made or written to, or the name is none.
        """
        images = {"overlay.png": lambda path: self.plot().save(path, format="PNG")}
        return save_result(folder, name or self.name, self.to_json(), images)
