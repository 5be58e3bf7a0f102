"""napari: layers of labels, or of rectangles, with a table of features."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int16
from numpy import ndarray

from unimask.results.formats.table import Table

Layer = tuple[ndarray, dict[str, object], str]
"""Data, keyword arguments and type of a layer, as napari passes layers between its plugins.

Source: napari's plugin guide, `LayerData`; `napari.layers.Layer.create(*layer)` makes the layer.
"""

HALF = 0.5  # napari's origin is the centre of the first pixel, ours its corner


def label_layers(
    id_maps: Int16[ndarray, "layers height width"], table: Table, name: str, metadata: dict[str, object]
) -> list[Layer]:
    """Return a `labels` layer for each layer of ids, in which segments do not overlap.

    `features` has a row for each segment of the layer; its column `index` is the label.
    """
    layers: list[Layer] = []
    for number, ids in enumerate(id_maps):
        inside = np.isin(table["segment"], np.unique(ids))
        features = {"index": np.array(table["segment"], dtype=np.int64)[inside]}
        features |= _columns(table, inside)
        suffix = f" {number + 1}" if len(id_maps) > 1 else ""
        about: dict[str, object] = {"name": name + suffix, "features": features, "metadata": metadata}
        layers.append((ids.astype(np.int32), about, "labels"))
    return layers


def box_layer(
    boxes: Float[ndarray, "boxes 4"],
    colors: Sequence[tuple[int, int, int]],
    table: Table,
    name: str,
    metadata: dict[str, object],
) -> Layer:
    """Return a `shapes` layer of rectangles, each with its category beside it.

    `boxes` are (left, top, right, bottom) in pixels, and `colors` (0 to 255) those of their categories.
    """
    left, top, right, bottom = boxes.T - HALF
    corners = np.stack([top, left, top, right, bottom, right, bottom, left], axis=1).reshape(-1, 4, 2)
    about: dict[str, object] = {
        "name": name,
        "features": _columns(table, np.ones(len(boxes), dtype=bool)),
        "metadata": metadata,
        "shape_type": "rectangle",
        "face_color": "transparent",
        "text": {"string": "{category} {score:.2f}", "anchor": "upper_left"},
    }
    if colors:  # napari warns of no colours
        about["edge_color"] = np.array(colors, dtype=np.float32) / 255
    return corners, about, "shapes"


def _columns(table: Table, which: ndarray) -> dict[str, ndarray]:
    """Return the columns of a table for some of its rows, without the name of the image."""
    return {key: np.array(values)[which] for key, values in table.items() if key != "image"}
