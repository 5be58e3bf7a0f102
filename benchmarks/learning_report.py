"""What two sides learnt: a table, curves, and how far apart they are beside how far apart seeds are."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev

import torch

from unimask.files import write_text
from unimask.machine import describe_machine
from unimask.results.figure import as_svg, beside
from unimask.training.plot import COLORS, Curve, panel

FIRST = 50  # steps, in which two runs that start alike have had no time to drift apart
WINDOW = 20  # steps over which curves are averaged


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training of one side."""

    side: str
    seed: int
    losses: tuple[float, ...]  # of each step
    measured: tuple[tuple[int, float], ...]  # (step, measure)
    seconds_per_step: float  # processor time


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Mean relative difference of the losses of the same step, over some steps."""

    sides: float  # between the two sides with the same seed
    seeds: float | None  # between two seeds of one side


def distance(runs: Sequence[Run], first: int, last: int) -> Distance:
    """Return how far apart the runs are in steps [first, last)."""

    def between(pairs: Sequence[tuple[Run, Run]]) -> list[float]:
        return [
            abs(a - b) / ((a + b) / 2)
            for one, other in pairs
            for a, b in zip(one.losses[first:last], other.losses[first:last], strict=True)
        ]

    pairs = list(combinations(runs, 2))
    seeds = between([pair for pair in pairs if pair[0].side == pair[1].side])
    return Distance(
        sides=mean(between([pair for pair in pairs if pair[0].seed == pair[1].seed])),
        seeds=mean(seeds) if seeds else None,
    )


def _spread(values: Sequence[float], number: str = ".3f") -> str:
    text = f"{mean(values):{number}}"
    return f"{text} ± {stdev(values):{number}}" if len(values) > 1 else text


def table(runs: Sequence[Run], measure: str) -> str:
    """Return the sides in markdown, and below how far they are apart."""
    steps, last = len(runs[0].losses), min(100, len(runs[0].losses))
    sides = sorted({run.side for run in runs})
    points = [step for step, _ in runs[0].measured]
    head = ["side", f"loss of the last {last} steps", *(f"{measure} after {step}" for step in points)]
    head.append("processor seconds a step")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" + "---:|" * (len(head) - 1)]
    for side in sides:
        own = [run for run in runs if run.side == side]
        cells = [side, _spread([mean(run.losses[-last:]) for run in own])]
        cells += [_spread([dict(run.measured)[point] for run in own]) for point in points]
        cells.append(_spread([run.seconds_per_step for run in own]))
        lines.append("| " + " | ".join(cells) + " |")
    seeds = sorted({run.seed for run in runs})
    lines += ["", f"{steps} steps, seeds {', '.join(map(str, seeds))}: mean and standard deviation.", ""]
    for first, end in ((0, min(FIRST, steps)), (steps - last, steps)):
        apart = distance(runs, first, end)
        of_seeds = "" if apart.seeds is None else f"; two seeds of one side: {apart.seeds:.1%}"
        lines.append(f"- Losses of steps {first + 1} to {end}: sides differ by {apart.sides:.1%}{of_seeds}.")
    first = [f"{run.side} {run.losses[0]:.3f}" for run in runs if run.seed == seeds[0]]
    lines.append(f"- Loss of the first step, from the same weights: {', '.join(first)}.")
    return "\n".join(lines) + "\n"


def smoothed(losses: Sequence[float]) -> list[tuple[float, float]]:
    """Return (step, mean loss) of each window."""
    starts = range(0, len(losses), WINDOW)
    parts = [(start, losses[start : start + WINDOW]) for start in starts]
    return [(start + len(part) / 2, mean(part)) for start, part in parts]


def plot(runs: Sequence[Run], measure: str) -> str:
    """Return losses and measures over the steps as SVG: a line a run, a color a side."""
    sides = sorted({run.side for run in runs})
    color = {side: COLORS[1 + 4 * index] for index, side in enumerate(sides)}
    steps, named = len(runs[0].losses), set[str]()
    losses, measured = [], []
    for run in runs:
        name = "" if run.side in named else run.side  # once in the legend
        named.add(run.side)
        losses.append(Curve(smoothed(run.losses), color[run.side], dots=False, name=name))
        measured.append(Curve(run.measured, color[run.side], dots=True, name=name))
    parts = [
        panel("training loss, a line for each seed", losses, steps),
        panel(f"{measure} on val", measured, steps),
    ]
    return as_svg(beside(parts, columns=1))


def write(output: Path, name: str, runs: Sequence[Run], measure: str) -> None:
    """Write `NAME.json`, `NAME.md` and `NAME.svg` into a folder."""
    output.mkdir(parents=True, exist_ok=True)
    content = {"runs": [asdict(run) for run in runs], **describe_machine(torch.device("cpu"))}
    write_text(output / f"{name}.json", json.dumps(content, indent=1) + "\n")
    write_text(output / f"{name}.md", table(runs, measure))
    write_text(output / f"{name}.svg", plot(runs, measure))
