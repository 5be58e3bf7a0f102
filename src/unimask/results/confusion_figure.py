"""The confusion matrix as a figure: true categories by predicted ones, and outcomes by size."""

import numpy as np

from unimask.metrics.confusion import Confusion
from unimask.results.drawing import short_name
from unimask.results.figure import LIGHT, Element, Number, Part, Rectangle, Text, beside, text_width

MOST_CATEGORIES = 22  # in the table: those with the most errors
WIDTH = 760
_TOP = 46  # of the title and the names of the axes
_RIGHT, _WRONG = (26, 127, 55), (207, 34, 46)


def confusion_figure(confusion: Confusion, title: str) -> Part:
    """Return the matrix, each row as shares of its true category, and below it the outcomes by size."""
    parts = [_table(confusion, title)]
    if confusion.by_size:
        parts.append(_by_size(confusion))
    return beside(parts, columns=1)


def _shown(confusion: Confusion) -> tuple[list[int], bool]:
    """Return the categories that occur, at most those with the most errors, and whether some are left out."""
    counts = np.array(confusion.matrix, dtype=np.int64)
    both = counts.sum(axis=1) + counts.sum(axis=0)
    errors = both - 2 * counts.diagonal()
    occurring = np.flatnonzero(both[:-1])
    worst = occurring[np.argsort(-errors[occurring], kind="stable")[:MOST_CATEGORIES]]
    return sorted(worst.tolist()), len(worst) < len(occurring)


def _table(confusion: Confusion, title: str) -> Part:
    kept, cut = _shown(confusion)
    of_pixels, nothing = confusion.unit == "pixels", len(confusion.names)
    names = [short_name(confusion.names[place]) for place in kept]
    columns = [*names, "void" if of_pixels else "missed"]
    rows = names if of_pixels else [*names, "nothing there"]
    left = round(max(map(text_width, rows), default=0)) + 34
    room = min(90.0, (WIDTH - left - 84) / len(columns))
    height = min(max(room, 20.0), 30.0)
    upright = any(text_width(column) > room - 4 for column in columns)
    top = _TOP + (round(max(map(text_width, columns))) + 14 if upright else 22)
    note = f"rows: true category, columns: found as; percent of the row; last: its number of {confusion.unit}"
    title += f": the {len(names)} categories with the most errors" if cut else ""
    elements: list[Element] = [Text((16, 18), title, bold=True), Text((16, 36), note)]
    for place, title_of_column in enumerate(columns):
        middle = left + (place + 0.5) * room
        x, anchor = (middle + 4, "start") if upright else (middle, "middle")
        elements.append(Text((x, top - 6), title_of_column, anchor, upright=upright))
    for row, (name, category) in enumerate(zip(rows, [*kept, nothing], strict=False)):
        counts, y = confusion.matrix[category], top + row * height
        elements.append(Text((left - 8, y + height / 2 + 4), name, "end"))
        for column, found_as in enumerate([*kept, nothing]):
            if not category == found_as == nothing:
                cell = (left + column * room, y, room - 1, height - 1)
                elements += _cell(cell, counts[found_as], sum(counts), category == found_as)
        end = left + len(columns) * room + 6
        elements.append(Text((end, y + height / 2 + 4), _short(sum(counts))))
    return Part(elements, WIDTH, round(top + len(rows) * height) + 20)


def _cell(cell: tuple[Number, Number, Number, Number], count: int, total: int, right: bool) -> list[Element]:
    left, top, width, height = cell
    if not count:
        return [Rectangle(*cell, LIGHT)]
    share = count / total
    strength = 0.12 + 0.88 * share**0.7
    elements: list[Element] = [Rectangle(*cell, _mixed(_RIGHT if right else _WRONG, strength))]
    if width >= 20:
        text = f"{100 * share:.0f}" if share >= 0.005 else "<1"
        ink = "#ffffff" if strength > 0.55 else "#1f2328"
        elements.append(Text((left + width / 2, top + height / 2 + 4), text, "middle", ink))
    return elements


def _short(count: int) -> str:
    return f"{count:,}" if count < 1_000_000 else f"{count / 1e6:,.1f} million"


def _mixed(color: tuple[int, int, int], strength: float) -> str:
    parts = [round(255 + strength * (part - 255)) for part in color]
    return "#{:02x}{:02x}{:02x}".format(*parts)


_OUTCOMES = {
    "right": ("right", "#1a7f37"),
    "confused": ("found as another category", "#bc4c00"),
    "missed": ("missed", "#8250df"),
    "false": ("found where nothing is", "#cf222e"),
}
_SIZES = {"small": "below 32 x 32 pixels", "medium": "below 96 x 96", "large": "96 x 96 or more"}
_START, _END = 210.0, 84.0  # of the bars, from both sides


def _by_size(confusion: Confusion) -> Part:
    """Return a bar for each size, in the shares of its outcomes."""
    elements: list[Element] = [Text((16, 18), f"{confusion.unit} by size", bold=True)]
    x = 16.0
    for name, color in _OUTCOMES.values():
        elements += [Rectangle(x, 32, 12, 4, color), Text((x + 16, 38), name)]
        x += 40 + text_width(name)
    y = 52.0
    for size, outcomes in confusion.by_size.items():
        total = sum(outcomes.values())
        elements.append(Text((16, y + 15), f"{size} ({_SIZES[size]})"))
        left = _START
        for outcome, (_, color) in _OUTCOMES.items():
            text = f"{outcomes[outcome]:,}"
            width = (WIDTH - _START - _END) * outcomes[outcome] / max(1, total)
            elements.append(Rectangle(left, y, width, 22, color))
            if width > text_width(text) + 6:
                elements.append(Text((left + width / 2, y + 15), text, "middle", "#ffffff"))
            left += width
        elements.append(Text((WIDTH - _END + 6, y + 15), f"{total:,}"))
        y += 28
    return Part(elements, WIDTH, round(y) + 16)
