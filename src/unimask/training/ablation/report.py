"""The report of an ablation: a table, a plot (SVG), and all numbers (JSON)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from unimask.config.images import TrainingConfig
from unimask.files import write_json, write_text
from unimask.machine import describe_machine
from unimask.results.figure import as_svg, beside
from unimask.training.plot import COLORS, Curve, bars, panel

MEGABYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """The results of one row, as far as it has come."""

    name: str
    title: str
    completed: bool
    failure: str  # why it has ended early; empty where it has not
    curve: tuple[tuple[int, float], ...]  # (step, primary metric) of each evaluation
    values: Mapping[str, float | None]  # all metrics of the last evaluation
    seconds_per_step: float  # the median over the lines of the log, without evaluations; 0 where unknown
    memory: int  # bytes that training took on top of what the process had before; 0 where unknown
    peak_memory: int  # bytes of the whole process (of tensors, on a CUDA device)


def write_report(output: Path, results: Sequence[RowResult], metric: str, training: TrainingConfig) -> None:
    """Write `table.md`, `plot.svg` and `results.json` in a folder."""
    write_text(output / "table.md", table(results, metric, training))
    write_text(output / "plot.svg", plot(results, metric, training.steps))
    content = {
        "metric": metric,
        "steps": training.steps,
        "batch_size": training.batch_size,
        "rows": [asdict(result) for result in results],
        **describe_machine(torch.device("cpu")),
    }
    write_json(output / "results.json", content)


def table(results: Sequence[RowResult], metric: str, training: TrainingConfig) -> str:
    """Return the rows in markdown: the metric on the way, seconds a step, memory; failures below."""
    steps = sorted({step for result in results for step, _ in result.curve})
    head = ["row", *(f"{metric} after {step}" for step in steps), "seconds a step", "memory (MB)"]
    lines = [_cells(head), "|" + "---|" + "---:|" * (len(head) - 1)]
    for result in results:
        known = dict(result.curve)
        values = [f"{known[step]:.3f}" if step in known else "" for step in steps]
        speed = f"{result.seconds_per_step:.3f}" if result.seconds_per_step else ""
        memory = f"{result.memory / MEGABYTE:.0f}" if result.memory else ""
        state = "" if result.completed else " (failed)" if result.failure else " (not finished)"
        lines.append(_cells([result.title + state, *values, speed, memory]))
    lines += [
        "",
        f"{training.steps} steps with {training.batch_size} images each, seed {training.seed}, one run per "
        "row. Memory is the peak in training less what the process had before.",
    ]
    failed = [result for result in results if result.failure]
    lines += [f"\n{result.title} failed: {result.failure}" for result in failed]
    return "\n".join(lines) + "\n"


def _cells(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "/") for text in texts) + " |"


def plot(results: Sequence[RowResult], metric: str, steps: int) -> str:
    """Return the metric over the steps, a curve per row, and bars of time and memory, as SVG."""
    colors = [COLORS[index % len(COLORS)] for index in range(len(results))]
    curves = [Curve(result.curve, color, dots=True) for result, color in zip(results, colors, strict=True)]
    titles = [result.title for result in results]
    seconds = [result.seconds_per_step for result in results]
    memory = [result.memory / MEGABYTE for result in results]
    parts = [
        panel(f"{metric} on val", curves, steps),
        bars("seconds a step", titles, seconds, colors, "{:.3f}"),
        bars("memory of training (MB)", titles, memory, colors, "{:.0f}"),
    ]
    return as_svg(beside(parts, columns=1))
