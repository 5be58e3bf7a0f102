"""The tables that commands print: results, measures, comparisons, checks and plans."""

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Column, Table

from unimask.cli import output
from unimask.files import json_text

if TYPE_CHECKING:  # results import torch, which takes seconds
    from unimask.benchmark.measure import Bench
    from unimask.data.check import DataCheck
    from unimask.data.looked import SplitCheck
    from unimask.exporting.parity import ParityReport
    from unimask.inference.measures import Evaluation
    from unimask.inference.stream import AnyResult
    from unimask.training.compare import RunComparison
    from unimask.training.plan import Plan

MOST_IMAGES = 40  # of a table by image; more are shown by category
MOST_CATEGORIES = 40  # in the table of a check
MOST_RANKED = 6  # best and worst categories of an evaluation, each
MOST_CONFUSED = 6
LONGEST_NAME = 24


@dataclass(frozen=True, kw_only=True)
class CategorySummary:
    """The segments of one category in one image."""

    category: str
    segments: int
    score: float  # mean
    share: float  # of the image


@dataclass(frozen=True, kw_only=True)
class ImageSummary:
    """The rows of one image in the table; small, so that thousands can be kept."""

    name: str
    size: str
    found: tuple[CategorySummary, ...]


def summarise(name: str, result: "AnyResult") -> ImageSummary:
    """Return the rows of an image, with categories by falling area; a video is counted over all frames."""
    from unimask.inference.video import VideoResult

    height, width = result.size
    size, found = f"{width} x {height}", []
    if isinstance(result, VideoResult):
        pixels = width * height * len(result.frames)
        found = [
            CategorySummary(
                category=category,
                segments=total.segments,
                score=total.score / total.segments,
                share=total.area / pixels,
            )
            for category, total in result.totals.items()
        ]
        return _summary(name, f"{size}, {len(result.frames)} frames", found)
    parts = result.segments
    for category in {part.category for part in parts}:
        members = [part for part in parts if part.category == category]
        found.append(
            CategorySummary(
                category=category,
                segments=len(members),
                score=sum(member.score for member in members) / len(members),
                share=sum(member.area for member in members) / (width * height),
            )
        )
    return _summary(name, size, found)


def _summary(name: str, size: str, found: list[CategorySummary]) -> ImageSummary:
    ordered = sorted(found, key=lambda one: (-one.share, one.category))
    return ImageSummary(name=name, size=size, found=tuple(ordered))


def show_images(images: Sequence[ImageSummary]) -> None:
    """Print the table of results: by image, or by category if there are many images."""
    output.screen.print(_by_image(images) if len(images) <= MOST_IMAGES else _by_category(images))


def _by_image(images: Sequence[ImageSummary]) -> Table:
    table = _table(("image", "size", "category"), ("segments", "score", "area"))
    for image in images:
        name, size = shorten(image.name), image.size
        for one in image.found:
            table.add_row(name, size, one.category, str(one.segments), f"{one.score:.2f}", f"{one.share:.1%}")
            name = size = ""
        if not image.found:
            table.add_row(name, size, "(nothing found)", "0", "", "")
    return table


def _by_category(images: Sequence[ImageSummary]) -> Table:
    table = _table(("category",), ("images", "segments", "score"))
    found = [one for image in images for one in image.found]
    for category in sorted({one.category for one in found}):
        members = [one for one in found if one.category == category]
        segments = sum(one.segments for one in members)
        score = sum(one.score * one.segments for one in members) / segments
        table.add_row(category, str(len(members)), str(segments), f"{score:.2f}")
    empty = sum(not image.found for image in images)
    if empty:
        table.add_row("(nothing found)", str(empty), "0", "")
    return table


def shorten(name: str) -> str:
    """Shorten a long name in its middle, because the names of a series differ at their ends."""
    return name if len(name) <= LONGEST_NAME else f"{name[:11]}…{name[-12:]}"


def show_values(values: Mapping[str, float | None], title: str) -> None:
    """Print a table of measures."""
    output.show_line(title)
    table = _table(("measure",), ("value",))
    for name, value in values.items():
        table.add_row(name, "not measured: no ground truth" if value is None else _number(value))
    output.screen.print(table)


def show_evaluation(evaluation: "Evaluation", data: str, pictures: Path | None = None) -> None:
    """Print the main measures, best and worst categories, the most frequent errors, and where more is."""
    show_values(evaluation.main, f"{evaluation.task}, {evaluation.images} images of {data}")
    limited, unlimited = evaluation.values.get("AP"), evaluation.values.get("AP_all")
    if limited is not None and unlimited is not None and abs(unlimited - limited) >= 0.0005:
        output.show_line(
            f"AP counts the 100 best of an image, as COCO does; of more it is {unlimited:.4f} (AP_all)"
        )
    ranked = evaluation.ranked_categories()
    if len(ranked) > 1:
        _show_categories(ranked)
    confused = evaluation.confusion.most_confused(MOST_CONFUSED)
    if confused:
        unit = evaluation.confusion.unit
        table = _table(("true", "found as"), (unit,))
        for true, found, count in confused:
            as_what = found or ("(void)" if unit == "pixels" else "(missed)")
            table.add_row(true or "(nothing there)", as_what, f"{count:,}")
        output.show_line("most often wrong")
        output.screen.print(table)
    where = "--pictures FOLDER" if pictures is None else str(pictures)
    output.show_line(f"all measures and counts: --json, or --output FILE; the images: {where}")


def show_comparison(found: "RunComparison") -> None:
    """Print what differs between runs, a column for each, and their results."""
    tables: dict[str, tuple[Mapping[str, tuple[object, ...]], Callable[[object], str]]] = {
        "settings": (found.settings, lambda value: json_text(value, None)),
        "data": (found.data, str),
        "results": (found.results, _result),
    }
    for title, (rows, text) in tables.items():
        if not rows:
            output.show_line(f"{title}: no difference")
            continue
        table = _table((), tuple(run.name for run in found.runs))
        for column in table.columns:
            column.overflow = "fold"  # long paths differ at their ends
        table.columns.insert(0, Column(title, no_wrap=True))
        for name, values in rows.items():
            table.add_row(name, *("-" if value is None else text(value) for value in values))
        output.screen.print(table)
    for path in found.skipped:
        output.errors.print(f"{path}: no run, left out")


def _result(value: object) -> str:
    """Format a float up to 1 with four decimals, other numbers with five significant digits."""
    return _number(value) if isinstance(value, float) and abs(value) <= 1 else f"{value:,.5g}"


def _show_categories(ranked: Mapping[str, Mapping[str, float]]) -> None:
    """Print all categories, or only the best and the worst if there are many."""
    measures = list(dict.fromkeys(name for numbers in ranked.values() for name in numbers))
    names, cut = list(ranked), len(ranked) > 2 * MOST_RANKED
    shown = [*names[:MOST_RANKED], "", *names[-MOST_RANKED:]] if cut else names
    output.show_line(
        f"the best and the worst of {len(names)} categories" if cut else "categories, the best first"
    )
    table = _table(("category",), tuple(measures))
    for name in shown:
        numbers = ranked.get(name, {})
        table.add_row(name or "...", *(_number(numbers[one]) if one in numbers else "" for one in measures))
    output.screen.print(table)


def show_check(said: "DataCheck") -> None:
    """Print the contents of each split, then warnings and errors."""
    splits = said.splits
    table = _table((said.task,), tuple(splits))
    rows: dict[str, Callable[[SplitCheck], str]] = {
        "images": lambda one: f"{one.images:,}",
        "without objects": lambda one: f"{one.without_objects:,}",
        "void": lambda one: f"{one.void_share:.1%}",
        "crowd regions": lambda one: f"{one.crowd:,}",
        "most objects in a view": lambda one: f"{one.most_objects:,}",
        "shorter side as the model sees it (10, 50, 90 %)": lambda one: " ".join(
            f"{side:g}" for side in one.sizes.values()
        ),
    }
    for name, text in rows.items():
        table.add_row(name, *(text(one) for one in splits.values()))
    output.screen.print(table)
    table = _table(
        ("category",), tuple(f"{name}: {what}" for name in splits for what in ("objects", "images"))
    )
    names = list(dict.fromkeys(name for one in splits.values() for name in one.objects))
    names.sort(key=lambda name: not any(one.objects.get(name) for one in splits.values()))  # those that occur
    for name in names[:MOST_CATEGORIES]:
        counts = ((one.objects.get(name, 0), one.images_of.get(name, 0)) for one in splits.values())
        table.add_row(name, *(f"{count:,}" for pair in counts for count in pair))
    if len(names) > MOST_CATEGORIES:
        table.add_row(
            f"and {len(names) - MOST_CATEGORIES} more: --json", *("" for _ in range(2 * len(splits)))
        )
    output.screen.print(table)
    for sentence in said.warnings:
        output.show_warning(sentence)
    for sentence in said.errors:
        output.show_error(sentence)
    if not said.warnings and not said.errors:
        output.show_line("nothing is wrong with it")


def show_plan(plan: "Plan", data: str, command: Sequence[str]) -> None:
    """Print the chosen options, to be copied, and the reasons; then differences from the initial model."""
    if plan.lines:
        output.errors.print(
            f"chosen for {data} and this machine (docs/guide/choice.md); this command does the same again:"
        )
        lines = [shlex.join(command), *(f"  {shlex.join(line.flags)}" for line in plan.lines if line.flags)]
        output.errors.print(" \\\n".join(lines))
        for line, title in zip(plan.lines, ("task", "size", "steps", "batch", "weights"), strict=True):
            output.errors.print(f"{title}: {line.because}")
    for note in plan.notes:
        output.errors.print(f"note: {note}")


def show_bench(found: "Bench") -> None:
    """Print the measurements, with a column for each side (library and precision)."""
    from unimask.benchmark.measure import COLUMNS, about, rows_of
    from unimask.benchmark.tables import shown

    height, width = found.conditions.size
    device, threads = found.conditions.device, found.conditions.threads
    output.show_line(f"{found.weights}, {found.task}, {height}x{width}, {device}, {threads} threads")
    rows = rows_of(found.measured)
    table = _table((COLUMNS[0],), tuple(str(row[0]) for row in rows))
    for place, name in enumerate(COLUMNS[1:], start=1):
        cells = [shown(row[place]) for row in rows]
        if any(cells):
            table.add_row(name, *cells)
    output.screen.print(table)
    output.screen.print(about(found.measured))


def show_parity(report: "ParityReport", path: str) -> None:
    """Print the report on an exported model."""
    from unimask.exporting.parity import Agreement

    output.show_line(f"{path}: {report.format}, {report.megabytes:.1f} MB")
    table = _table(("output",), ("largest difference", "largest value"))
    for one in report.differences:
        table.add_row(one.output, f"{one.difference:.1e}", f"{one.largest:.1f}")
    output.screen.print(table)
    table = _table(("task", "images"), ("same pixels", "same segments or boxes", "corners differ by"))
    for found in report.agreement:
        cells = (
            (f"{found.pixels:.2%}", f"{found.segments:.2%}", "")
            if isinstance(found, Agreement)
            else ("", f"{found.boxes:.2%}", f"{found.corner:.2f} pixels")
        )
        table.add_row(found.task, str(found.images), *cells)
    output.screen.print(table)
    batch, height, width = report.latency.input
    output.show_line(
        f"one pass of {batch} x {height} x {width}, {report.latency.threads} threads: model "
        f"{report.latency.model * 1000:.0f} ms, exported {report.latency.exported * 1000:.0f} ms "
        f"(load of the machine before: {report.latency.load:.0%})"
    )


def show_settings(values: Mapping[str, object], path: str = "") -> None:
    """Print every setting on its own line, as --set takes it."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            show_settings(value, f"{path}{name}.")
        else:
            output.show_line(f"{path}{name}={json_text(value, None, ascii_only=True)}")


def show_presets(descriptions: Mapping[str, str]) -> None:
    """Print the table of the named experiments."""
    table = Table()
    table.add_column("preset", no_wrap=True)
    table.add_column("what it is")
    for name, text in descriptions.items():
        table.add_row(name, text)
    output.screen.print(table)


def _number(value: float) -> str:
    """Format a number with four decimals, but a whole number above 1 without."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4f}" if abs(value) <= 1 or value != int(value) else str(int(value))


def _table(words: tuple[str, ...], numbers: tuple[str, ...]) -> Table:
    table = Table()
    for name in words:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right")
    return table
