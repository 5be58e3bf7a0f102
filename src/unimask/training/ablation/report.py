"""What an ablation found: a table, a plot (SVG), and all numbers (JSON)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

import torch

from unimask.config.images import TrainingConfig
from unimask.files import write_text
from unimask.machine import describe_machine

MEGABYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """One row: what it measured, as far as it has come."""

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
    """`table.md`, `plot.svg` and `results.json` in a folder."""
    write_text(output / "table.md", table(results, metric, training))
    write_text(output / "plot.svg", plot(results, metric, training.steps))
    content = {
        "metric": metric,
        "steps": training.steps,
        "batch_size": training.batch_size,
        "rows": [asdict(result) for result in results],
        **describe_machine(torch.device("cpu")),
    }
    write_text(output / "results.json", json.dumps(content, indent=1) + "\n")


def table(results: Sequence[RowResult], metric: str, training: TrainingConfig) -> str:
    """The rows in markdown: the metric on the way, seconds a step, memory; failures below."""
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
        f"{training.steps} steps with {training.batch_size} pictures each, seed {training.seed}, one run per "
        "row. Memory is the peak in training less what the process had before.",
    ]
    failed = [result for result in results if result.failure]
    lines += [f"\n{result.title} failed: {result.failure}" for result in failed]
    return "\n".join(lines) + "\n"


def _cells(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "/") for text in texts) + " |"


WIDTH, LEFT, RIGHT, TOP, PANEL, LINE = 760, 64, 16, 34, 240, 18
INK, FAINT = "#24292f", "#d0d7de"
COLORS = ("#6e7781", "#0969da", "#1a7f37", "#9a6700", "#bc4c00", "#cf222e", "#8250df", "#bf3989", "#24292f")


def plot(results: Sequence[RowResult], metric: str, steps: int) -> str:
    """The metric over the steps, a line per row, and bars of time and memory."""
    colors = {result.name: COLORS[index % len(COLORS)] for index, result in enumerate(results)}
    parts = _curves(results, colors, metric, steps)
    top = TOP + PANEL + 56
    for title, values, form in (
        ("seconds a step", [result.seconds_per_step for result in results], "{:.3f}"),
        ("memory of training (MB)", [result.memory / MEGABYTE for result in results], "{:.0f}"),
    ):
        parts += _bars(results, values, colors, top, title, form)
        top += 30 + LINE * len(results) + 16
    style = f'font-family="sans-serif" font-size="12" fill="{INK}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" {style}>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>", ""])


def _curves(results: Sequence[RowResult], colors: Mapping[str, str], metric: str, steps: int) -> list[str]:
    highest = max((value for result in results for _, value in result.curve), default=0.0) or 1.0
    bottom, width = TOP + PANEL, WIDTH - LEFT - RIGHT
    parts = [f'<text x="{LEFT}" y="{TOP - 12}" font-weight="600">{escape(metric)} on val</text>']
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = LEFT + width * share, bottom - PANEL * share
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{LEFT + width}" y2="{y:.1f}" stroke="{FAINT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{share * highest:.3g}</text>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{share * steps:.0f}</text>')
    parts.append(f'<text x="{LEFT + width / 2}" y="{bottom + 34}" text-anchor="middle">steps</text>')
    for result in results:
        places = [
            (LEFT + width * step / steps, bottom - PANEL * value / highest) for step, value in result.curve
        ]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        color = colors[result.name]
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in places]
    return parts


def _bars(
    results: Sequence[RowResult],
    values: Sequence[float],
    colors: Mapping[str, str],
    top: int,
    title: str,
    form: str,
) -> list[str]:
    highest, start = max(values, default=0.0) or 1.0, 340
    parts = [f'<text x="{LEFT}" y="{top}" font-weight="600">{title}</text>']
    for index, (result, value) in enumerate(zip(results, values, strict=True)):
        y, length = top + 12 + LINE * index, (WIDTH - RIGHT - 60 - start) * value / highest
        parts.append(f'<text x="{start - 8}" y="{y + 11}" text-anchor="end">{escape(result.title)}</text>')
        parts.append(
            f'<rect x="{start}" y="{y}" width="{length:.1f}" height="13" fill="{colors[result.name]}"/>'
        )
        parts.append(f'<text x="{start + length + 6:.1f}" y="{y + 11}">{form.format(value)}</text>')
    return parts
