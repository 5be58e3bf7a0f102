"""Several runs beside each other: what differs in settings and data, their results and their curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimask.errors import DataError, some_of
from unimask.files import write_text
from unimask.inference.measures import MAIN_MEASURES
from unimask.results.album import save_image
from unimask.results.figure import Part, as_image, as_svg, beside
from unimask.training.curves import LogLine, results_table
from unimask.training.plot import COLORS, Curve, panel
from unimask.training.run_folder import RunFolder, flatten

PANEL_WIDTH = 600
_OF_THE_BEST = " (best evaluation)"
Value = object  # of a setting or a result: plain, ready for JSON


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """A run as far as it has come."""

    name: str  # as short as possible, and unique
    folder: str
    task: str
    data: Mapping[str, Value]  # path, images to learn from, categories
    settings: Mapping[str, Value]
    results: Mapping[str, Value]  # the best evaluation, the loss, steps, time; None where it is not known
    curves: Mapping[str, Sequence[tuple[int, float]]]  # of the loss, and of the main measure under its name


@dataclass(frozen=True, kw_only=True)
class RunComparison:
    """Runs, and what differs between them: each name with a value for each run."""

    runs: tuple[ComparedRun, ...]
    settings: Mapping[str, tuple[Value, ...]]
    data: Mapping[str, tuple[Value, ...]]
    results: Mapping[str, tuple[Value, ...]]  # all of them, equal or not
    skipped: tuple[str, ...]  # paths that are no runs

    def to_json(self) -> dict[str, object]:
        """Return what differs as plain values, with a value for each run by its name."""
        names = [run.name for run in self.runs]
        tables = {"settings": self.settings, "data": self.data, "results": self.results}
        by_run = {
            title: {key: dict(zip(names, values, strict=True)) for key, values in table.items()}
            for title, table in tables.items()
        }
        return {"runs": {run.name: run.folder for run in self.runs}, **by_run}


def compare(folders: Sequence[str | Path]) -> RunComparison:
    """Return what differs between the runs in some folders; paths that are no runs are left out and listed.

    A folder that is no run but has runs in it stands for all of these.

    Raises:
        DataError: none of them is a run, or a file of a run cannot be read.
    """
    paths = list(dict.fromkeys(run for folder in folders for run in _runs_of(Path(folder))))
    known = [path for path in paths if _is_run(path)]
    if not known:
        raise DataError(some_of(paths), "no run is there; name folders that `unimask train` has written")
    runs = tuple(_read(path, name) for path, name in zip(known, _names(known), strict=True))
    return RunComparison(
        runs=runs,
        settings=_different([run.settings for run in runs]),
        data=_different([{"task": run.task, **run.data} for run in runs]),
        results=_measures_first(_all([run.results for run in runs])),
        skipped=tuple(str(path) for path in paths if path not in known),
    )


def _is_run(path: Path) -> bool:
    return (path / "experiment.json").is_file()


def _runs_of(path: Path) -> list[Path]:
    """Return the runs that a path stands for; itself where there are none."""
    below = [] if _is_run(path) or not path.is_dir() else sorted(filter(_is_run, path.iterdir()))
    return below or [path]


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the last parts of the paths, as few as tell them apart."""
    parts = [path.absolute().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-count:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _read(path: Path, name: str) -> ComparedRun:
    folder = RunFolder(path)
    description = folder.description()
    lines, task = folder.read_metrics(), str(description.get("task", ""))
    rows = results_table(lines)
    primary = MAIN_MEASURES.get(task, ("BLEU",))[0]  # type: ignore[call-overload]
    categories = [str(one.get("name", "")) for one in description.get("categories", [])]
    return ComparedRun(
        name=name,
        folder=str(path),
        task=task,
        data={
            "data": description.get("data", ""),
            "images to learn from": description.get("images"),
            "categories": f"{len(categories)}: {some_of(categories)}" if categories else "",
        },
        settings=flatten(description.get("experiment", {})),
        results=_results(lines, rows, task),
        curves={"loss": _points(rows, "loss"), primary: _points(rows, primary)},
    )


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(row["step"], float(row[name])) for row in rows if row.get(name) is not None]


def _results(lines: Sequence[LogLine], rows: Sequence[Mapping[str, Any]], task: str) -> dict[str, Value]:
    measures = MAIN_MEASURES.get(task, ("BLEU",))  # type: ignore[call-overload]
    evaluated = [
        line for line in lines if line["kind"] == "evaluation" and line["values"].get(measures[0]) is not None
    ]
    best = max(evaluated, key=lambda line: (line["values"][measures[0]], -line["step"]), default=None)
    steps = [row for row in rows if row.get("loss") is not None]
    last: Mapping[str, Any] = steps[-1] if steps else {}
    speeds = {
        name.replace("_per_second", " per second"): last[name]
        for name in last
        if name.endswith("_per_second")
    }
    values: Mapping[str, Value] = best["values"] if best else {}
    return {
        **{f"{name}{_OF_THE_BEST}": values.get(name) for name in measures},
        f"step{_OF_THE_BEST}": best["step"] if best else None,
        "steps done": max((row["step"] for row in rows), default=0),
        "last loss": last.get("loss"),
        **speeds,
        "seconds": last.get("seconds"),
    }


def _all(tables: Sequence[Mapping[str, Value]]) -> dict[str, tuple[Value, ...]]:
    names = dict.fromkeys(name for table in tables for name in table)
    return {name: tuple(table.get(name) for table in tables) for name in names}


def _measures_first(table: Mapping[str, tuple[Value, ...]]) -> dict[str, tuple[Value, ...]]:
    """Return the table with what is of the best evaluation first: runs of other tasks have other measures."""
    names = sorted(table, key=lambda name: (not name.endswith(_OF_THE_BEST), name == f"step{_OF_THE_BEST}"))
    return {name: table[name] for name in names}


def _different(tables: Sequence[Mapping[str, Value]]) -> dict[str, tuple[Value, ...]]:
    return {
        name: values for name, values in _all(tables).items() if any(value != values[0] for value in values)
    }


def save_curves(comparison: RunComparison, path: Path) -> None:
    """Write the curves of the runs as SVG or, under any other name, as PNG.

    Raises:
        DataError: the file cannot be written.
    """
    figure = comparison_figure(comparison.runs)
    if path.suffix.lower() != ".svg":
        save_image(path, as_image(figure))
        return
    try:
        write_text(path, as_svg(figure))
    except OSError as error:
        raise DataError(path, f"cannot be written ({error.strerror or error})") from None


def comparison_figure(runs: Sequence[ComparedRun]) -> Part:
    """Return panels of the main measures on val and of the loss, a curve for each run."""
    names = dict.fromkeys(name for run in runs for name in run.curves if name != "loss")
    steps = (
        max((step for run in runs for points in run.curves.values() for step, _ in points), default=0) or 1
    )
    parts = []
    for name in (*names, "loss"):
        drawn = [
            Curve(run.curves[name], COLORS[1 + place % (len(COLORS) - 1)], name != "loss", run.name)
            for place, run in enumerate(runs)
            if run.curves.get(name)
        ]
        if drawn:
            title = "loss, weighted sum over terms and layers" if name == "loss" else f"{name} on val"
            parts.append(panel(title, drawn, steps, PANEL_WIDTH))
    return beside(parts, columns=2)
