"""Tables: a row per segment with what was measured, as CSV and for pandas."""

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence

from jaxtyping import Float
from numpy import ndarray

from unimask.results.found import Found
from unimask.results.measures import MEASURES

Value = str | int | float
Table = dict[str, list[Value]]
"""Columns of equal length, by name."""

LENGTHS = ("centroid_x", "centroid_y", "left", "top", "right", "bottom", "perimeter")
INTENSITIES = ("mean_intensity", "mean_red", "mean_green", "mean_blue")


def table_of(
    name: str,
    found: Sequence[Found],
    measured: Float[ndarray, "measures segments"],
    pixel_size: float | None = None,
) -> Table:
    """Return the columns of a table with a row per segment.

    `image` is the name of the image's results, `segment` the number in its id map, `count` how many segments
    of the category the image has. Area, centroid, box (left, top, right, bottom) and perimeter are in pixels,
    see `measures.Measures.table`; with the micrometres that a pixel is wide (`pixel_size`) they stand there
    in micrometres too: `area_um2`, `centroid_x_um` and so on.
    """
    counts = Counter(one.category for one in found)
    lengths = dict(zip(MEASURES, measured.round(6).tolist(), strict=True))
    lengths["area"] = [one.area for one in found]
    for low, high, place in (("left", "right", 0), ("top", "bottom", 1)):
        lengths[low] = [one.bbox[place] for one in found]
        lengths[high] = [round(one.bbox[place] + one.bbox[place + 2], 3) for one in found]
    columns: Table = {
        "image": [name] * len(found),
        "segment": [one.id for one in found],
        "category": [one.category for one in found],
        "score": [one.score for one in found],
        "count": [counts[one.category] for one in found],
    }
    columns |= {key: list(lengths[key]) for key in ("area", *LENGTHS, *INTENSITIES)}
    if pixel_size is not None:
        columns["area_um2"] = [round(value * pixel_size**2, 6) for value in lengths["area"]]
        for key in LENGTHS:
            columns[f"{key}_um"] = [round(value * pixel_size, 6) for value in lengths[key]]
    return columns


def as_csv(table: Table) -> str:
    """Return the table as CSV with a line of names first; what could not be measured is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    writer.writerows([_cell(value) for value in row] for row in zip(*table.values(), strict=True))
    return text.getvalue()


def _cell(value: Value) -> Value:
    return "" if isinstance(value, float) and math.isnan(value) else value
