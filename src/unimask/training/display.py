"""Tables, curves, images and a page in the folder of a run, all made from its log.

A drawing that fails is reported and never ends a training.
"""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from PIL import Image

from unimask.errors import first_line
from unimask.files import remove, write_text
from unimask.results.album import save_image, save_table
from unimask.results.figure import as_image, beside
from unimask.training.curves import categories_table, curves, results_table
from unimask.training.job import Drawing
from unimask.training.report import report
from unimask.training.run_folder import RunFolder


class Display:
    """Writes tables, curves, images and the page; each file is complete when it appears."""

    def __init__(self, folder: RunFolder, step: int, message: Callable[[str], None]) -> None:
        """Remove the validation images of steps after `step`, which come again."""
        self._folder, self._message = folder, message
        for path in (folder.path / "validation").glob("step_*.png"):
            if path.stem.removeprefix("step_").isdigit() and int(path.stem.removeprefix("step_")) > step:
                remove(path)

    def draw(self, step: int, make: Callable[[], Drawing]) -> Mapping[str, Image.Image]:
        """Write the images and tables of an evaluation, and return the images; none where drawing fails."""
        images: Mapping[str, Image.Image] = {}
        with self._reported("the images of the evaluation"):
            drawing = make()
            for name, image in drawing.images.items():
                save_image(self._folder.path / _image_path(name, step), image)
            for name, table in drawing.tables.items():
                save_table(self._folder.path / f"{name}.json", {"step": step, **table})
            images = drawing.images
        return images

    def refresh(self) -> None:
        """Write `results.csv`, `categories.csv`, `curves.png` and `report.html` anew."""
        with self._reported("the tables and curves"):
            lines = self._folder.read_metrics()
            write_text(self._folder.path / "results.csv", _as_csv(results_table(lines)))
            categories = categories_table(lines)
            if categories:
                write_text(self._folder.path / "categories.csv", _as_csv(categories))
            task = str(self._folder.description().get("task", ""))
            panels = curves(lines, task)
            if panels:  # none before the first line of the log
                save_image(self._folder.path / "curves.png", as_image(beside(panels, columns=2)))
        with self._reported("report.html"):
            write_text(self._folder.path / "report.html", report(self._folder))

    @contextmanager
    def _reported(self, what: str) -> Iterator[None]:
        """Report an error inside, and go on."""
        try:
            yield
        except Exception as error:
            self._message(f"{what} could not be written ({type(error).__name__}: {first_line(error)})")


def _image_path(name: str, step: int) -> str:
    return f"validation/step_{step}.png" if name == "validation" else f"{name}.png"


def _as_csv(rows: Sequence[Mapping[str, object]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
