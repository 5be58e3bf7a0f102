"""The report of an ablation: a table, a plot (SVG), and all numbers (JSON)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev

import torch

from unimask.config.training import TrainingConfig
from unimask.files import write_json, write_text
from unimask.machine import describe_machine
from unimask.presets.ablation import WHOLE
from unimask.results.figure import as_svg, beside
from unimask.training.plot import COLORS, Curve, bars, panel

MEGABYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """The results of one training of a row, as far as it has come."""

    name: str
    title: str
    seed: int
    completed: bool
    failure: str  # why it ended early; empty where it did not
    curve: tuple[tuple[int, float], ...]  # (step, primary metric) of each evaluation
    values: Mapping[str, float | None]  # all metrics of the last evaluation
    seconds_per_step: float  # the median over the lines of the log, without evaluations; 0 where unknown
    memory: int  # bytes of the training, without those of the process before; 0 where unknown
    peak_memory: int  # bytes of the whole process (of tensors, on a CUDA device)


def write_report(
    output: Path,
    results: Sequence[RowResult],
    metric: str,
    training: TrainingConfig,
    paper: Mapping[str, float] | None = None,
) -> None:
    """Write `table.md`, `plot.svg` and `results.json` in a folder; `paper` as in `table`."""
    write_text(output / "table.md", table(results, metric, training, paper))
    write_text(output / "plot.svg", plot(results, metric, training.steps))
    content = {
        "metric": metric,
        "steps": training.steps,
        "batch_size": training.batch_size,
        "rows": [asdict(result) for result in results],
        **describe_machine(torch.device("cpu")),
    }
    write_json(output / "results.json", content)


def table(
    results: Sequence[RowResult],
    metric: str,
    training: TrainingConfig,
    paper: Mapping[str, float] | None = None,
) -> str:
    """Return the rows in markdown: the metric over the steps, seconds a step, memory; failures below.

    Where a row has been trained with several seeds, its numbers are means, with the standard deviation. With
    `paper`, which holds by a row's name what the model of the paper loses there (points), two more columns
    have the difference from the whole model at the end.
    """
    rows = _by_row(results)
    whole = [result for result in results if result.name == WHOLE.name]
    steps = sorted({step for result in results for step, _ in result.curve})
    head = ["row", *(f"{metric} after {step}" for step in steps)]
    head += ["points lost", "in the paper"] if paper is not None else []
    head += ["seconds a step", "memory (MB)"]
    lines = [_cells(head), "|" + "---|" + "---:|" * (len(head) - 1)]
    for row in rows:
        values = [
            _spread([dict(one.curve)[step] for one in row if step in dict(one.curve)]) for step in steps
        ]
        lost = _lost(whole, row, steps, paper) if paper is not None else []
        speed = _mean([one.seconds_per_step for one in row if one.seconds_per_step], ".3f")
        memory = _mean([one.memory / MEGABYTE for one in row if one.memory], ".0f")
        lines.append(_cells([row[0].title + _state(row), *values, *lost, speed, memory]))
    seeds = sorted({result.seed for result in results})
    of = "one run per row" if len(seeds) < 2 else "mean and standard deviation of the runs of a row"
    which = "seed" if len(seeds) < 2 else "seeds"
    named = ", ".join(str(seed) for seed in seeds or [training.seed])
    lines += [
        "",
        f"{training.steps} steps with {training.batch_size} images each, {which} {named}, {of}. "
        "Memory is the peak in training less what the process had before.",
    ]
    failed = [result for result in results if result.failure]
    lines += [f"\n{result.title} failed: {result.failure}" for result in failed]
    return "\n".join(lines) + "\n"


def _by_row(results: Sequence[RowResult]) -> list[list[RowResult]]:
    """Return the trainings of each row."""
    rows: dict[str, list[RowResult]] = {}
    for result in results:
        rows.setdefault(result.name, []).append(result)
    return list(rows.values())


def _state(row: Sequence[RowResult]) -> str:
    if all(result.completed for result in row):
        return ""
    return " (failed)" if any(result.failure for result in row) else " (not finished)"


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return _mean(values, ".3f")
    return f"{mean(values):.3f} ± {stdev(values):.3f}"


def _mean(values: Sequence[float], number: str) -> str:
    return f"{mean(values):{number}}" if values else ""


def _lost(
    whole: Sequence[RowResult], row: Sequence[RowResult], steps: Sequence[int], paper: Mapping[str, float]
) -> list[str]:
    """Return the difference from the whole model in points, for each seed, and that of the paper."""
    published = f"{paper[row[0].name]:+.1f}" if row[0].name in paper else ""
    ends = {one.seed: dict(one.curve)[steps[-1]] for one in whole if steps and steps[-1] in dict(one.curve)}
    lost = [
        100 * (dict(one.curve)[steps[-1]] - ends[one.seed])
        for one in row
        if one.seed in ends and steps[-1] in dict(one.curve)
    ]
    if not lost or row[0].name == WHOLE.name:
        return ["", published]
    return [f"{mean(lost):+.1f}" + (f" ± {stdev(lost):.1f}" if len(lost) > 1 else ""), published]


def _cells(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "/") for text in texts) + " |"


def plot(results: Sequence[RowResult], metric: str, steps: int) -> str:
    """Return the metric over the steps, a curve per training in its row's color, and bars of means (SVG)."""
    rows = _by_row(results)
    colors = [COLORS[index % len(COLORS)] for index in range(len(rows))]
    curves = [
        Curve(one.curve, color, dots=True) for row, color in zip(rows, colors, strict=True) for one in row
    ]
    titles = [row[0].title for row in rows]
    seconds = [mean(one.seconds_per_step for one in row) for row in rows]
    memory = [mean(one.memory / MEGABYTE for one in row) for row in rows]
    parts = [
        panel(f"{metric} on val", curves, steps),
        bars("seconds a step", titles, seconds, colors, "{:.3f}"),
        bars("memory of training (MB)", titles, memory, colors, "{:.0f}"),
    ]
    return as_svg(beside(parts, columns=1))
