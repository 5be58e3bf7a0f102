"""Draw a run's curve: `python docs/plot_training.py runs/x/metrics.jsonl docs/results/x.svg`.

The upper panel shows the weighted loss on training pictures, the lower one a measure on val pictures.
"""

import argparse
import json
from pathlib import Path

WIDTH, PANEL, LEFT, TOP, GAP = 720, 190, 64, 34, 60
INK, FAINT, LOSS, MEASURE = "#24292f", "#d0d7de", "#0969da", "#bf3989"


def _panel(
    points: list[tuple[float, float]], top: int, title: str, color: str, last: float, dots: bool
) -> list[str]:
    """One set of axes from 0 to the largest value, with a line through the points."""
    highest = max(value for _, value in points)
    right, bottom = WIDTH - 16, top + PANEL

    def place(step: float, value: float) -> tuple[float, float]:
        return LEFT + (right - LEFT) * step / last, bottom - PANEL * value / highest

    parts = [f'<text x="{LEFT}" y="{top - 10}" font-weight="600">{title}</text>']
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        _, y = place(0, share * highest)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="{FAINT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{share * highest:.3g}</text>')
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, _ = place(share * last, 0)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{share * last:.0f}</text>')
    line = " ".join("{:.1f},{:.1f}".format(*place(step, value)) for step, value in points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
    for step, value in points if dots else ():
        x, y = place(step, value)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>')
    return parts


def draw(records: list[dict[str, object]], losses: list[tuple[float, float]], name: str) -> str:
    """The curve of a run as SVG."""
    measured = [(float(r["step"]), float(r[name])) for r in records if name in r]  # type: ignore[arg-type]
    last = max(step for step, _ in losses)
    parts = _panel(losses, TOP, "training loss (weighted sum over terms and layers)", LOSS, last, dots=False)
    if measured:
        parts += _panel(measured, TOP + PANEL + GAP, f"{name} on val", MEASURE, last, dots=True)
    height = TOP + (2 if measured else 1) * (PANEL + GAP)
    style = f'font-family="sans-serif" font-size="12" fill="{INK}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" {style}>'
    steps = f'<text x="{WIDTH / 2}" y="{height - 18}" text-anchor="middle">steps</text>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, steps, "</svg>", ""])


def main() -> None:
    """Read the log, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--measure", default="PQ")
    arguments = parser.parse_args()
    records = [json.loads(line) for line in arguments.log.read_text().splitlines()]
    flat = [{**r, **r["values"]} if isinstance(r.get("values"), dict) else r for r in records]
    losses = [(float(r["step"]), float(r["loss"])) for r in flat if "loss" in r]
    arguments.picture.write_text(draw(flat, losses, arguments.measure))


if __name__ == "__main__":
    main()
