"""A picture becomes segments: time of each stage, peak memory, and whether both say the same."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from benchmarks.models import KINDS, random_model
from benchmarks.settings import Outcome, Settings, progress, reason
from unimask.benchmark.measure import COLUMNS, Conditions, example_picture, measure, plain_side, to_table
from unimask.benchmark.sides import Side, UnimaskSide
from unimask.benchmark.tables import Cell, Table
from unimask.benchmark.timing import Stopwatch
from unimask.benchmark.transformers_side import side_like
from unimask.machine import find_device
from unimask.structures import Size

SIZES = ((640, 640), (800, 1088))
QUICK_SIZES = ((96, 128),)
REDUCED = "bf16-mixed"


def run(settings: Settings) -> Outcome:
    return of_models(KINDS, QUICK_SIZES if settings.quick else SIZES, settings)


def of_models(kinds: Sequence[str], sizes: Sequence[Size], settings: Settings) -> Outcome:
    """What each kind of model takes for a picture of each size."""
    tables, details = [], {}
    for kind in kinds:
        with random_model(kind, sizes[0]) as folders:
            sides: list[Side] = [
                side_like(folders.model_file, folders.theirs, "panoptic"),
                UnimaskSide(folder=folders.ours, task="panoptic"),
                UnimaskSide(folder=folders.ours, task="panoptic", precision=REDUCED),
            ]
            if settings.device != "cpu":
                sides.insert(1, side_like(folders.model_file, folders.theirs, "panoptic", REDUCED))
            for size in sizes:
                rounds = 1 if settings.quick else 3 if settings.device == "cpu" else 30
                conditions = Conditions(
                    size=size,
                    device=settings.device,
                    threads=settings.threads,
                    rounds=rounds,
                    warm_up=0 if settings.device == "cpu" else 5,  # each side has run once before
                    processes=3 if settings.device == "cpu" and not settings.quick else 0,
                    clock=settings.clock,
                )
                title = f"Inference, {kind}, {size[0]} x {size[1]}"
                progress(title)
                working, failed = _try(sides, conditions)
                if not working:
                    failed_table = Table(title=title, about="", columns=COLUMNS, rows=_failed_rows(failed))
                    tables.append(failed_table)
                    continue
                measured = measure(working, conditions)
                table = to_table(title, measured)
                tables.append(replace(table, rows=(*table.rows, *_failed_rows(failed))))
                details[title] = {name: plain_side(measured, name) for name in measured.sides}
    return Outcome(tables=tuple(tables), details=details)


def _try(sides: Sequence[Side], conditions: Conditions) -> tuple[list[Side], dict[str, str]]:
    """The sides that can segment a picture of the size, and why the others cannot."""
    working, failed = [], {}
    for side in sides:
        try:
            device = find_device(conditions.device)
            side.load(conditions.device).run(example_picture(conditions.size), Stopwatch(device))
            working.append(side)
        except Exception as error:  # the others are measured nevertheless
            failed[side.name] = reason(error)
    return working, failed


def _failed_rows(failed: Mapping[str, str]) -> tuple[tuple[Cell, ...], ...]:
    """A row for each side that failed."""
    return tuple((name, text, *[""] * (len(COLUMNS) - 2)) for name, text in failed.items())
