"""A folder of the images of an evaluation: truth beside prediction, the worst ones, the confusion matrix."""

from dataclasses import asdict
from pathlib import Path

from PIL import Image

from unimask.errors import DataError
from unimask.files import complete_file, write_json
from unimask.metrics.confusion import Confusion
from unimask.results.confusion_figure import confusion_figure
from unimask.results.figure import as_image
from unimask.results.gallery import Gallery, gallery_sheet, prediction_note, shrink, shrink_truth
from unimask.results.sheets import draw_sheet, draw_truth
from unimask.structures import Categories, Sample, Truth

SIDE = 1024  # pixels of the longer side of an image


class Album:
    """Writes the images of an evaluation into a folder while it runs, and the sheets at its end."""

    def __init__(self, folder: Path, categories: Categories, quality: str) -> None:
        self.folder, self.categories, self.quality = folder, categories, quality
        self._gallery = Gallery(())
        self._names: set[str] = set()

    def add(self, index: int, sample: Sample, found: Truth, quality: float) -> None:
        """Write `images/NAME.png`: the image with its truth on the left, with the prediction on the right.

        Raises:
            DataError: the folder cannot be written to.
        """
        small, small_found = shrink(sample, SIDE), shrink_truth(found, sample, SIDE)
        cells = [
            (f"{sample.image_id} (truth)", draw_truth(small.image, small.truth, self.categories)),
            (
                prediction_note(quality, self.quality),
                draw_truth(small.image, small_found, self.categories),
            ),
        ]
        width = max(240, small.image.shape[1], small.image.shape[2])
        save_image(
            self.folder / "images" / f"{self._name(sample.image_id)}.png",
            draw_sheet(cells, columns=2, width=width),
        )
        self._gallery.add(index, sample, found, quality)

    def _name(self, image_id: str) -> str:
        """Return a name for the file of an image that no other one has."""
        plain = "".join(letter if letter.isalnum() or letter in "-_. " else "_" for letter in image_id)
        name, number = plain.strip(". ")[-150:] or "image", 2
        while name.casefold() in self._names:
            name, number = f"{plain}_{number}", number + 1
        self._names.add(name.casefold())
        return name

    def finish(self, confusion: Confusion) -> None:
        """Write `worst.png`, `confusion.png` and `confusion.json`.

        Raises:
            DataError: the folder cannot be written to.
        """
        save_image(
            self.folder / "worst.png", gallery_sheet(self._gallery.worst(), self.categories, self.quality)
        )
        save_image(
            self.folder / "confusion.png", as_image(confusion_figure(confusion, "What was found as what"))
        )
        save_table(self.folder / "confusion.json", asdict(confusion))


def save_image(path: Path, image: Image.Image) -> None:
    """Write a PNG; it is complete when it appears.

    Raises:
        DataError: it cannot be written.
    """
    try:
        with complete_file(path) as temporary:
            image.save(temporary, format="PNG")
    except OSError as error:
        raise DataError(path, f"cannot be written ({error.strerror or error})") from None


def save_table(path: Path, table: object) -> None:
    """Write JSON; it is complete when it appears.

    Raises:
        DataError: it cannot be written.
    """
    try:
        write_json(path, table, rows=True)
    except OSError as error:
        raise DataError(path, f"cannot be written ({error.strerror or error})") from None
