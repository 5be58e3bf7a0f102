"""What people look at in the folder of a run: tables, curves, images and a page, all made from its log.

A drawing that fails is reported and never ends a training.
"""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from PIL import Image

from unimask.errors import first_line
from unimask.files import remove, write_text
from unimask.inference.evaluation import MAIN_MEASURES
from unimask.results.album import save_image, save_table
from unimask.results.figure import Part, as_image, beside
from unimask.training.job import Drawing
from unimask.training.plot import COLORS, Curve, panel
from unimask.training.run_folder import RunFolder

Line = Mapping[str, Any]  # of the log
PANEL_WIDTH = 400


class Display:
    """Writes what people look at; each file is complete when it appears."""

    def __init__(self, folder: RunFolder, step: int, message: Callable[[str], None]) -> None:
        """Remove the validation images of steps after `step`, which come again."""
        self._folder, self._message = folder, message
        for path in (folder.path / "validation").glob("step_*.png"):
            if path.stem.removeprefix("step_").isdigit() and int(path.stem.removeprefix("step_")) > step:
                remove(path)

    def draw(self, step: int, make: Callable[[], Drawing]) -> Mapping[str, Image.Image]:
        """Write the images and tables of an evaluation, and return the images; none where drawing fails."""
        pictures: Mapping[str, Image.Image] = {}
        with self._reported("the images of the evaluation"):
            drawing = make()
            for name, picture in drawing.pictures.items():
                save_image(self._folder.path / _picture_path(name, step), picture)
            for name, table in drawing.tables.items():
                save_table(self._folder.path / f"{name}.json", {"step": step, **table})
            pictures = drawing.pictures
        return pictures

    def refresh(self) -> None:
        """Write `results.csv`, `categories.csv` and `curves.png` anew."""
        with self._reported("the tables and curves"):
            lines = self._folder.read_metrics()
            write_text(self._folder.path / "results.csv", _as_csv(results_table(lines)))
            categories = categories_table(lines)
            if categories:
                write_text(self._folder.path / "categories.csv", _as_csv(categories))
            task = str(self._folder.description().get("task", ""))
            save_image(self._folder.path / "curves.png", as_image(beside(curves(lines, task), columns=2)))

    @contextmanager
    def _reported(self, what: str) -> Iterator[None]:
        """Report what fails inside, and go on."""
        try:
            yield
        except Exception as error:
            self._message(f"{what} could not be written ({type(error).__name__}: {first_line(error)})")


def _picture_path(name: str, step: int) -> str:
    return f"validation/step_{step}.png" if name == "validation" else f"{name}.png"


def results_table(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """Return a row for each step with a line in the log or an evaluation, which share it."""
    rows: dict[int, dict[str, Any]] = {}
    for line in lines:
        row = rows.setdefault(line["step"], {"step": line["step"]})
        if line["kind"] == "step":
            row |= {name: value for name, value in line.items() if name not in ("kind", "step")}
        elif line["kind"] == "evaluation":
            row |= {"evaluation_seconds": line["seconds"], **line["values"]}
    return [rows[step] for step in sorted(rows)]


def categories_table(lines: Iterable[Line]) -> list[dict[str, object]]:
    """Return a row for each category in each evaluation."""
    return [
        {"step": line["step"], "category": name, **numbers}
        for line in lines
        if line["kind"] == "evaluation"
        for name, numbers in line.get("per_category", {}).items()
    ]


def _as_csv(rows: Sequence[Mapping[str, object]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def curves(lines: Sequence[Line], task: str, width: int = PANEL_WIDTH) -> list[Part]:
    """Return panels of the loss, its terms, the main measures, the learning rate, gradients and the speed."""
    rows = results_table(lines)
    steps = max([line["step"] for line in lines], default=0) or 1
    measures = MAIN_MEASURES.get(task, ("BLEU",))  # type: ignore[call-overload]

    def curve(name: str, place: int, *, named: bool = False, dots: bool = False) -> Curve:
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        return Curve(points, COLORS[1 + place % (len(COLORS) - 1)], dots, name if named else "")

    def several(names: Sequence[str], *, dots: bool = False) -> list[Curve]:
        return [curve(name, place, named=True, dots=dots) for place, name in enumerate(names)]

    speed = [name for name in _step_columns(lines) if name.endswith("_per_second")]
    panels = {
        "loss, weighted sum over terms and layers": [curve("loss", 0)],
        "terms of the last layer, not weighted": several(loss_terms(lines)),
        "measures on val": several(measures, dots=True),
        "learning rate": [curve("learning_rate", 0)],
        "norm of the gradient before clipping": [curve("gradient_norm", 0)],
        f"{(speed or [''])[0].removesuffix('_per_second')} per second": [curve(name, 0) for name in speed],
    }
    shown = {title: drawn for title, drawn in panels.items() if any(one.points for one in drawn)}
    return [panel(title, drawn, steps, width) for title, drawn in shown.items()]


def _step_columns(lines: Iterable[Line]) -> list[str]:
    return list(dict.fromkeys(name for line in lines if line["kind"] == "step" for name in line))


def loss_terms(lines: Iterable[Line]) -> list[str]:
    """Return the names of the terms of the loss in a log."""
    others = {"kind", "step", "loss", "gradient_norm", "learning_rate", "skipped_steps", "seconds"}
    return [name for name in _step_columns(lines) if name not in others and not name.endswith("_per_second")]
