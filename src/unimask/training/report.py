"""The page about a run: `report.html`, one self-contained file, made from the files of the run."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from unimask.files import json_text, read_json
from unimask.inference.measures import MAIN_MEASURES
from unimask.metrics.confusion import Confusion
from unimask.results.confusion_figure import confusion_figure
from unimask.results.figure import as_svg
from unimask.training.curves import LogLine, curves
from unimask.training.progress import duration
from unimask.training.run_folder import RunFolder, flatten

MOST_SHEETS = 8  # of the validation images, over the steps
MOST_CONFUSED = 12
MOST_ROWS = 25  # of the table of categories; more are folded away
QUALITY = 82  # of images on the page


def report(folder: RunFolder) -> str:
    """Return the page about the run in a folder, as far as it has come.

    Raises:
        DataError: a file of the run cannot be read.
        OSError: an image cannot be read.
    """
    description, lines = folder.description(), folder.read_metrics()
    task = str(description.get("task", ""))
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    results = _json(folder.path / "results.json")
    sections = [
        _tiles(lines, evaluations, task),
        _curves(lines, task),
        _validation(folder.path / "validation"),
        _categories(evaluations),
        _confusion(folder.path / "confusion.json"),
        _worst(folder.path / "worst.png"),
        _translations(folder.path / "translations.json"),
        _skipped(lines),
        _settings(description, results),
    ]
    steps = flatten(description.get("experiment", {})).get("training.steps", 0)
    done = max([line["step"] for line in lines], default=0)
    return Template((files("unimask.training") / "report.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"{folder.path.absolute().name}: a training with unimask"),
        name=escape(folder.path.absolute().name),
        state=f"finished, {done:,} steps" if results else f"step {done:,} of {steps:,}",
        about=escape(_about(description, task)),
        sections="\n".join(filter(None, sections)),
        footer=escape(f"unimask {description.get('unimask', '')}, {folder.path.absolute()}"),
    )


def _json(path: Path) -> dict[str, Any]:
    found = read_json(path) if path.exists() else {}
    return found if isinstance(found, dict) else {}


def _about(description: Mapping[str, Any], task: str) -> str:
    categories = description.get("categories", [])
    data = Path(str(description.get("data", ""))).name
    if task not in MAIN_MEASURES:
        return f"translation on {data}, {description.get('images', 0):,} pairs to learn from"
    kind = "detection" if task == "detection" else f"{task} segmentation"
    learned = f"{description.get('images', 0):,} images to learn from"
    return f"{kind} on {data}, {learned}, {len(categories)} categories"


def _section(title: str, note: str, content: str) -> str:
    below = f'<p class="soft">{note}</p>' if note else ""
    return f"<section><h2>{title}</h2>{below}{content}</section>"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) <= 1 else f"{value:,.2f}"


def _tiles(lines: Sequence[LogLine], evaluations: Sequence[LogLine], task: str) -> str:
    tiles = []
    primary = MAIN_MEASURES.get(task, ("BLEU",))[0]  # type: ignore[call-overload]
    known = [(line["values"].get(primary), line["step"]) for line in evaluations]
    known = [(value, step) for value, step in known if value is not None]
    if known:
        value, step = max(known, key=lambda one: one[0])
        tiles.append((_number(value), f"best {primary}, after step {step:,}"))
        tiles.append((_number(known[-1][0]), f"last {primary}, after step {known[-1][1]:,}"))
    steps = [line for line in lines if line["kind"] == "step" and line.get("loss") is not None]
    if steps:
        first, last = steps[0], steps[-1]
        tiles.append((f"{last['loss']:.3g}", f"loss, at first {first['loss']:.3g}"))
        for name in last:
            if name.endswith("_per_second"):
                tiles.append((f"{last[name]:,.3g}", f"{name.removesuffix('_per_second')} per second"))
        tiles.append((duration(last["seconds"]), "time spent (h:mm:ss)"))
    shown = (
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name in tiles
    )
    return f'<div class="tiles">{"".join(shown)}</div>'


def _curves(lines: Sequence[LogLine], task: str) -> str:
    drawn = "\n".join(as_svg(part) for part in curves(lines, task))
    return _section("Curves", "", f'<div class="curves">{drawn}</div>') if drawn else ""


def _validation(folder: Path) -> str:
    numbers = [path.stem.removeprefix("step_") for path in folder.glob("step_*.png")]
    steps = sorted(int(number) for number in numbers if number.isdigit())
    if not steps:
        return ""
    places = {round(k * (len(steps) - 1) / max(1, MOST_SHEETS - 1)) for k in range(MOST_SHEETS)}
    chosen = [steps[place] for place in sorted(places)]
    sheets = [_sheet(folder / f"step_{step}.png", step, step == chosen[-1]) for step in chosen]
    chooser = ""
    if len(chosen) > 1:
        last = len(chosen) - 1
        chooser = (
            f'<div class="chooser"><input type="range" min="0" max="{last}" value="{last}" '
            f'aria-label="evaluation"><output>after step {chosen[-1]:,}</output></div>'
        )
    note = "The same images at each evaluation: truth on the left, prediction on the right."
    note += "" if len(chosen) > 1 else f" After step {steps[-1]:,}."
    return _section("Validation images", note, chooser + "".join(sheets))


def _sheet(path: Path, step: int, visible: bool) -> str:
    """Return a sheet of images as two halves, which a narrow page shows one below the other."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    middle = picture.width // 2
    halves = [
        picture.crop((0, 0, middle, picture.height)),
        picture.crop((middle, 0, picture.width, picture.height)),
    ]
    shown = halves if picture.width > 1000 else [picture]
    images = "".join(f'<img src="{_embedded(half)}" alt="truth beside prediction">' for half in shown)
    return f'<div class="sheet" data-step="{step:,}"{"" if visible else " hidden"}>{images}</div>'


def _embedded(picture: Image.Image) -> str:
    content = io.BytesIO()
    picture.save(content, format="WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(content.getvalue()).decode("ascii")


def _categories(evaluations: Sequence[LogLine]) -> str:
    found = evaluations[-1].get("per_category", {}) if evaluations else {}
    if not found:
        return ""
    before = evaluations[-2].get("per_category", {}) if len(evaluations) > 1 else {}
    measures = list(dict.fromkeys(name for numbers in found.values() for name in numbers))
    first = measures[0]
    head = "".join(f"<th>{escape(name)}</th>" for name in ("category", *measures))
    head += f"<th>{escape(first)}: change</th>" if before else ""
    rows = []
    for category, numbers in sorted(found.items(), key=lambda one: -one[1].get(first, -1.0)):
        cells = "".join(_bar(numbers.get(name)) for name in measures)
        if before:
            both = first in numbers and first in before.get(category, {})
            cells += f"<td>{_change(before[category][first], numbers[first])}</td>" if both else "<td></td>"
        rows.append(f"<tr><td>{escape(category)}</td>{cells}</tr>")
    after = f"After step {evaluations[-1]['step']:,}, the best first"
    note = f"{after}; every evaluation is in <code>categories.csv</code>."
    table = f'<div class="wide">{_table(head, rows[:MOST_ROWS])}</div>'
    if more := rows[MOST_ROWS:]:
        folded = f'<div class="wide">{_table(head, more)}</div>'
        table += f"<details><summary>{len(more)} more</summary>{folded}</details>"
    return _section("Categories", note, table)


def _change(before: float, now: float) -> str:
    return f"{now - before:+.4f}" if abs(now - before) >= 0.00005 else "0"


def _bar(value: float | None) -> str:
    """Return a cell with a bar behind its number."""
    if value is None:
        return "<td>-</td>"
    return f'<td class="bar" style="--share:{max(0.0, min(1.0, value)):.4f}">{_number(value)}</td>'


def _table(head: str, rows: Sequence[str]) -> str:
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _confusion(path: Path) -> str:
    known = _json(path)
    if not known:
        return ""
    confusion = Confusion(
        unit=known["unit"],
        names=tuple(known["names"]),
        matrix=tuple(map(tuple, known["matrix"])),
        by_size=known["by_size"],
    )
    totals = dict(zip((*confusion.names, ""), map(sum, confusion.matrix), strict=True))
    rows = []
    for true, found, count in confusion.most_confused(MOST_CONFUSED):
        share = f"{count / totals[true]:.1%}" if true else ""
        what = escape(true) if true else "nothing there"
        as_what = escape(found) if found else ("void" if confusion.unit == "pixels" else "missed")
        rows.append(f"<tr><td>{what}</td><td>{as_what}</td><td>{count:,}</td><td>{share}</td></tr>")
    head = f"<th>true</th><th>found as</th><th>{confusion.unit}</th><th>of the category</th>"
    table = _table(head, rows) if rows else ""
    figure = as_svg(confusion_figure(confusion, f"After step {known['step']:,}"))
    content = f'<div class="lists"><div class="wide">{figure}</div><div class="wide">{table}</div></div>'
    return _section("What was found as what", "", content)


def _worst(path: Path) -> str:
    if not path.exists():
        return ""
    note = "Of the latest evaluation, the worst one first: truth on the left, prediction on the right."
    return _section("Worst images", note, _sheet(path, 0, True))


def _translations(path: Path) -> str:
    known = _json(path)
    rows = [
        f"<tr>{_text(line['reference'])}{_text(line['translation'])}</tr>" for line in known.get("lines", [])
    ]
    table = _table('<th>reference</th><th style="text-align:left">translation</th>', rows)
    return _section("Translations", f"After step {known['step']:,}.", table) if rows else ""


def _text(text: str) -> str:
    return f'<td class="text">{escape(text)}</td>'


def _skipped(lines: Sequence[LogLine]) -> str:
    rows = [
        f"<tr><td>{line['step']:,}</td>{_text('; '.join(line['problems']))}</tr>"
        for line in lines
        if line["kind"] == "skipped"
    ]
    table = _table('<th>step</th><th style="text-align:left">what was not finite</th>', rows)
    return _section("Skipped steps", "", table) if rows else ""


def _settings(description: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    settings = flatten(description.get("experiment", {}))
    listed = "\n".join(f"{name}={json_text(value, None)}" for name, value in settings.items())
    machine = {name: results[name] for name in ("machine", "versions", "processes") if name in results}
    parts = [
        f"<pre>{escape(str(description.get('command', '')))}</pre>",
        f"<details><summary>All settings</summary><pre>{escape(listed)}</pre></details>",
    ]
    if machine:
        about = escape(json_text(machine))
        parts.append(f"<details><summary>Machine and versions</summary><pre>{about}</pre></details>")
    return _section("Command and settings", "", "".join(parts))
