"""Tables of what was measured, as Markdown and as plain values."""

import math
from dataclasses import dataclass

Cell = str | int | float


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with a title and a sentence about it; each row has a cell for each column."""

    title: str
    about: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def shown(cell: Cell) -> str:
    """Return a number with three significant digits, whole from 100 on; a dash where there is none."""
    if isinstance(cell, str | int):
        return str(cell)
    if math.isnan(cell):
        return "-"
    if cell == 0:
        return "0"
    return f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:.3g}"


def share(part: int | float, whole: int | float) -> str:
    """Return a part by the whole, with two digits; a dash where there is no such number."""
    return "-" if whole == 0 or math.isnan(part / whole) else f"{part / whole:.2f}"


def to_markdown(table: Table, level: int = 3) -> str:
    """Return the table under a heading of its title; text to the left, numbers to the right."""
    rows = [[shown(cell).replace("|", "\\|") for cell in row] for row in table.rows]
    numbers = [
        bool(table.rows) and all(isinstance(row[index], int | float) for row in table.rows)
        for index in range(len(table.columns))
    ]
    lines = [
        " | ".join(table.columns),
        " | ".join("--:" if number else "---" for number in numbers),
        *(" | ".join(row) for row in rows),
    ]
    heading = f"{'#' * level} {table.title}"
    return "\n".join([heading, "", table.about, "", *(f"| {line} |" for line in lines), ""])


def to_plain(table: Table) -> dict[str, object]:
    """Return the table as plain values, ready for JSON; where there is no number stands null."""
    rows = [
        [None if isinstance(cell, float) and math.isnan(cell) else cell for cell in row] for row in table.rows
    ]
    return {"title": table.title, "about": table.about, "columns": list(table.columns), "rows": rows}
