"""A log as tables and as curves: rows of steps and categories, panels of losses, measures and speed."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unimask.inference.measures import MAIN_MEASURES
from unimask.results.figure import Part
from unimask.training.plot import COLORS, Curve, panel

LogLine = Mapping[str, Any]  # of the log
PANEL_WIDTH = 400


def results_table(lines: Iterable[LogLine]) -> list[dict[str, Any]]:
    """Return a row for each step with a line in the log or an evaluation, which share it."""
    rows: dict[int, dict[str, Any]] = {}
    for line in lines:
        row = rows.setdefault(line["step"], {"step": line["step"]})
        if line["kind"] == "step":
            row |= {name: value for name, value in line.items() if name not in ("kind", "step")}
        elif line["kind"] == "evaluation":
            row |= {"evaluation_seconds": line["seconds"], **line["values"]}
    return [rows[step] for step in sorted(rows)]


def categories_table(lines: Iterable[LogLine]) -> list[dict[str, object]]:
    """Return a row for each category in each evaluation."""
    return [
        {"step": line["step"], "category": name, **numbers}
        for line in lines
        if line["kind"] == "evaluation"
        for name, numbers in line.get("per_category", {}).items()
    ]


def curves(lines: Sequence[LogLine], task: str, width: int = PANEL_WIDTH) -> list[Part]:
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


def _step_columns(lines: Iterable[LogLine]) -> list[str]:
    return list(dict.fromkeys(name for line in lines if line["kind"] == "step" for name in line))


def loss_terms(lines: Iterable[LogLine]) -> list[str]:
    """Return the names of the terms of the loss in a log."""
    others = {"kind", "step", "loss", "gradient_norm", "learning_rate", "skipped_steps", "seconds"}
    return [name for name in _step_columns(lines) if name not in others and not name.endswith("_per_second")]
