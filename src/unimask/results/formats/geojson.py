"""GeoJSON: polygons for maps, and annotations for QuPath."""

from collections.abc import Sequence

import numpy as np

from unimask.errors import ConfigError
from unimask.ops.outlines import Ring, signed_area
from unimask.results.found import Found, Polygons, Record
from unimask.structures import Categories

Number = int | float
Transform = tuple[Number, Number, Number, Number, Number, Number]
"""a, b, c, d, e, f: a corner at (column, row) lies at x = a column + b row + c, y = d column + e row + f.

The order of `affine` and rasterio (`dataset.transform[:6]`); GDAL's is c, a, b, f, d, e.
"""

PIXELS: Transform = (1, 0, 0, 0, 1, 0)


def as_geojson(
    found: Sequence[Found],
    polygons: Sequence[Polygons],
    categories: Categories,
    transform: Transform = PIXELS,
    crs: str = "",
) -> Record:
    """Return a FeatureCollection: a (Multi)Polygon per segment, with its id, category, score and pixels.

    Polygons are moved by `transform`; outer rings run counterclockwise and are closed, as RFC 7946 wants it.
    That has longitude and latitude only; where `transform` leads to other coordinates, name them with `crs`
    (such as `urn:ogc:def:crs:EPSG::32633`), which is written as the older standard had it.

    `objectType`, `classification` and `measurements` are for QuPath, which imports features in pixels as
    annotations, classified and coloured.

    Raises:
        ConfigError: the transform maps the image onto a line or a point.
    """
    a, b, c, d, e, f = transform
    if a * e - b * d == 0:
        raise ConfigError("transform", f"{transform} leaves no area; expected a, b, c, d, e, f")
    linear, shift = np.array([[a, d], [b, e]], dtype=np.float64), np.array([c, f], dtype=np.float64)
    colors = dict(zip(categories.names, categories.colors, strict=True))
    features = []
    for one, outline in zip(found, polygons, strict=True):
        parts = [_closed([ring @ linear + shift for ring in part]) for part in outline]
        geometry: Record = {"type": "MultiPolygon", "coordinates": parts}
        if len(parts) == 1:
            geometry = {"type": "Polygon", "coordinates": parts[0]}
        properties = {
            "category": one.category,
            "category_id": one.category_id,
            "score": one.score,
            "pixels": one.area,
            "objectType": "annotation",
            "classification": {"name": one.category, "color": list(colors[one.category])},
            "measurements": {"score": one.score},
        }
        features.append({"type": "Feature", "id": one.id, "geometry": geometry, "properties": properties})
    collection: Record = {"type": "FeatureCollection", "features": features}
    if crs:
        collection["crs"] = {"type": "name", "properties": {"name": crs}}
    return collection


def _closed(part: Sequence[Ring]) -> list[list[list[float]]]:
    """Return the rings with the first corner again at the end, the outer one counterclockwise (y is up)."""
    turned = [ring[::-1] for ring in part] if signed_area(part[0]) < 0 else list(part)
    return [[*ring.tolist(), ring[0].tolist()] for ring in turned]
