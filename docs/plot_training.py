"""Draw a run's curve: `python docs/plot_training.py runs/x/metrics.jsonl docs/results/x.svg`.

The upper panel shows the weighted loss on training images, the lower one a measure on val images.
"""

import argparse
import json
from pathlib import Path

from unimask.results.figure import as_svg, beside
from unimask.training.plot import COLORS, Curve, panel


def draw(records: list[dict[str, object]], measure: str) -> str:
    """Return the curves of the lines of a log as SVG."""

    def curve(name: str) -> list[tuple[float, float]]:
        return [(float(r["step"]), float(r[name])) for r in records if name in r]  # type: ignore[arg-type]

    losses, measured = curve("loss"), curve(measure)
    last = losses[-1][0]
    title = "training loss (weighted sum over terms and layers)"
    panels = [panel(title, [Curve(losses, COLORS[1], dots=False)], last)]
    if measured:
        panels.append(panel(f"{measure} on val", [Curve(measured, COLORS[7], dots=True)], last))
    return as_svg(beside(panels, columns=1))


def main() -> None:
    """Read the log, write the drawing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path)
    parser.add_argument("drawing", type=Path)
    parser.add_argument("--measure", default="PQ")
    arguments = parser.parse_args()
    records = [json.loads(line) for line in arguments.log.read_text().splitlines()]
    flat = [{**r, **r["values"]} if isinstance(r.get("values"), dict) else r for r in records]
    arguments.drawing.write_text(draw(flat, arguments.measure))


if __name__ == "__main__":
    main()
