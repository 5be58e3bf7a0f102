"""Deformable sampling as weighted sums of table rows: much faster on the CPU than sampling the maps.

A bilinear value is a weighted sum of four cells, so the result of one query and head is a single weighted sum
of levels x points x 4 rows of a table of cells, which `embedding_bag` computes. Every level has a border of
zeros in the table and coordinates are clamped to it, so points outside need no special case. The four cells
around a point lie at fixed distances in the table, so one index serves both cells of a row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor
from torch.nn import functional

from unimask.ops.private import private_operator
from unimask.structures import Size

QUERIES_AT_ONCE = 1024
"""How many queries of an image are computed at a time: few enough for the processor's cache."""

BEFORE, AFTER = 1, 2  # cells of zeros around a level


def bag_sampling(
    values: Float[Tensor, "batch cells heads channels"],
    sizes: tuple[Size, ...],
    locations: Float[Tensor, "batch queries heads levels points 2"],
    weights: Float[Tensor, "batch queries heads levels points"],
) -> Float[Tensor, "batch queries heads*channels"]:
    """Return what `ops.deformable.plain.deformable_sampling` does, up to rounding; differentiable.

    No tensor of the size of the sampled values is allocated; the backward pass computes the indices again.
    """
    result: Tensor = _BagSampling.apply(values, locations.contiguous(), weights.contiguous(), sizes)
    return result


class BagReader:
    """Samples the same values at several sets of locations: the table is filled once. Not differentiable.

    The values are `project(tokens)`: (batch, cells, heads, channels). With at most `QUERIES_AT_ONCE`
    queries per call, intermediate results stay in the processor's cache.
    """

    def __init__(
        self,
        tokens: Float[Tensor, "batch cells _channels"],
        project: Callable[[Tensor], Tensor],
        sizes: tuple[Size, ...],
        points: int,
        dtype: torch.dtype,  # of locations and weights
    ) -> None:
        _, _, heads, channels = project(tokens[:, :1]).shape
        self.table = _CellTable(sizes, heads, points, tokens.device, dtype)
        self.rows = [self.table.fill_projected(one, project, channels) for one in tokens]

    def __call__(
        self,
        locations: Float[Tensor, "batch queries heads levels points 2"],
        weights: Float[Tensor, "batch queries heads levels points"],
    ) -> Float[Tensor, "batch queries _"]:
        """Return what `ops.deformable.plain.deformable_sampling` does, up to rounding."""
        batch, queries = locations.shape[:2]
        places = locations.flatten(2, 4)
        shares = weights.flatten(2)
        sums = [
            _sum(self.table, rows, corners, _corner_weights(corners, share))
            for rows, place, share in zip(self.rows, places, shares, strict=True)
            for corners in (self.table.corners(place, gradients=False),)
        ]
        stacked = sums[0] if batch == 1 else torch.stack(sums)
        return stacked.view(batch, queries, self.table.heads * self.rows[0].shape[1])


@dataclass(frozen=True)
class _Corners:
    """The four cells around each point.

    `upper` and `lower` are the table rows of the two left cells. `right` and `down`, in [0, 1), are the
    distances in cells from the upper left cell to the point.
    """

    upper: Int32[Tensor, "queries slots"]
    lower: Int32[Tensor, "queries slots"]
    right: Float[Tensor, "queries slots"]
    down: Float[Tensor, "queries slots"]
    free: tuple[Tensor, Tensor]  # where x and y are not clamped to the border


class _CellTable:
    """The layout of the table with the cells of all levels; a slot is a (head, level, point) of a query."""

    def __init__(
        self,
        sizes: tuple[Size, ...],
        heads: int,
        points: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.sizes, self.heads, self.slots = sizes, heads, heads * len(sizes) * points
        self.entries = len(sizes) * points  # of a bag
        rows = [(height + BEFORE + AFTER) * (width + BEFORE + AFTER) for height, width in sizes]
        self.starts = torch.tensor([0, *rows]).cumsum(0).tolist()
        self.length = self.starts[-1] * heads
        self.dtype = dtype

        def per_slot(of_levels: list[int]) -> Tensor:
            return torch.tensor(of_levels, device=device).repeat_interleave(points).repeat(heads)

        of_heads = torch.arange(heads, device=device).repeat_interleave(self.entries)
        self.width, self.height = (per_slot([size[axis] for size in sizes]).to(dtype) for axis in (1, 0))
        self.first = (per_slot(self.starts[:-1]) * heads + of_heads).int()
        self.steps = [(width + BEFORE + AFTER) * heads for _, width in sizes]  # from a cell to the one below
        self.step = per_slot(self.steps).int()
        self.zero, self.last_column, self.last_row = self.width.new_zeros(()), self.width + 1, self.height + 1
        last = self.first + per_slot(rows) * heads - of_heads - heads - self.step
        self.origin, self.last = self.first.new_zeros(()), last.int()

    def fill(self, values: Float[Tensor, "cells heads channels"]) -> Float[Tensor, "rows channels"]:
        """Return the table filled with the values: one row for each head of each cell."""
        table = self._zeros_around(values.shape[2])
        for inner, level in zip(self._levels(table), self._split(values), strict=True):
            inner.copy_(level)
        return table

    def fill_projected(
        self, tokens: Float[Tensor, "cells _channels"], project: Callable[[Tensor], Tensor], channels: int
    ) -> Float[Tensor, "rows channels"]:
        """Return the table filled with `project(tokens)`, computed for a few rows of cells at a time."""
        table = self._zeros_around(channels)
        for inner, level in zip(self._levels(table), self._split(tokens), strict=True):
            rows = max(1, QUERIES_AT_ONCE // max(1, level.shape[1]))
            for part, cells in zip(inner.split(rows), level.split(rows), strict=True):
                part.copy_(project(cells.flatten(0, 1)[None]).view_as(part))
        return table

    def take(self, table: Float[Tensor, "rows channels"]) -> Float[Tensor, "cells heads channels"]:
        """Return the cells of the table without the borders: the inverse of `fill`."""
        return torch.cat([inner.flatten(0, 1) for inner in self._levels(table)])

    def _zeros_around(self, channels: int) -> Float[Tensor, "rows channels"]:
        """Return a table whose borders are 0 and whose cells are uninitialised."""
        table = torch.empty(self.length, channels, dtype=self.dtype, device=self.first.device)
        for level in self._with_borders(table):
            level[:BEFORE], level[-AFTER:] = 0, 0
            level[:, :BEFORE], level[:, -AFTER:] = 0, 0
        return table

    def _levels(self, table: Tensor) -> Iterator[Tensor]:
        """Yield the cells of each level without its border: views (height, width, heads, channels)."""
        for level in self._with_borders(table):
            yield level[BEFORE:-AFTER, BEFORE:-AFTER]

    def _with_borders(self, table: Tensor) -> Iterator[Tensor]:
        for (height, width), (start, stop) in zip(self.sizes, pairwise(self.starts), strict=True):
            rows = table[start * self.heads : stop * self.heads]
            yield rows.view(height + BEFORE + AFTER, width + BEFORE + AFTER, self.heads, -1)

    def _split(self, values: Tensor) -> Iterator[Tensor]:
        cells = values.split([height * width for height, width in self.sizes])
        for level, (height, width) in zip(cells, self.sizes, strict=True):
            yield level.unflatten(0, (height, width))

    def corners(self, locations: Float[Tensor, "queries slots 2"], *, gradients: bool) -> _Corners:
        """Return the cells around the locations; where a location is NaN, `right` and `down` are NaN, too."""
        x = torch.addcmul(_HALF.to(locations), locations[..., 0], self.width)  # 0 is the border's first cell
        y = torch.addcmul(_HALF.to(locations), locations[..., 1], self.height)
        free = ((x > 0) & (x < self.width + 1), (y > 0) & (y < self.height + 1)) if gradients else (x, y)
        x.clamp_(self.zero, self.last_column)
        y.clamp_(self.zero, self.last_row)
        upper = torch.add(self.first, x.int(), alpha=self.heads)
        upper = upper.addcmul_(y.int(), self.step).clamp_(self.origin, self.last)
        return _Corners(upper, upper + self.step, x.frac_(), y.frac_(), free)


_HALF = torch.tensor(0.5)


def _corner_weights(corners: _Corners, weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return bilinear times attention weights: upper left, upper right, lower left, lower right."""
    lower = weights * corners.down
    upper = weights - lower
    lower_right = lower * corners.right
    upper_right = upper * corners.right
    return upper - upper_right, upper_right, lower - lower_right, lower_right


class _BagSampling(torch.autograd.Function):
    """`bag_sampling` of all images; saves only its inputs for the backward pass."""

    @staticmethod
    def forward(
        context: Any, values: Tensor, locations: Tensor, weights: Tensor, sizes: tuple[Size, ...]
    ) -> Tensor:
        context.save_for_backward(values, locations, weights)
        context.sizes = sizes
        batch, queries, heads, _, points, _ = locations.shape
        table = _CellTable(sizes, heads, points, values.device, values.dtype)
        result = values.new_empty(batch, queries, heads * values.shape[3])
        for image in range(batch):
            rows = table.fill(values[image])
            parts = _parts(table, locations[image], weights[image], result[image])
            for places, shares, out in parts:
                corners = table.corners(places, gradients=False)
                out.copy_(_sum(table, rows, corners, _corner_weights(corners, shares)).view_as(out))
        return result

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        values, locations, weights = context.saved_tensors
        _, _, heads, _, points, _ = locations.shape
        table = _CellTable(context.sizes, heads, points, values.device, values.dtype)
        gradient = gradients[0].contiguous()
        of_values, of_locations, of_weights = (
            torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
            for tensor in (values, locations, weights)
        )
        for image in range(len(values)):
            of_values[image] = _backward(
                table,
                values[image],
                tuple(
                    _parts(
                        table,
                        locations[image],
                        weights[image],
                        gradient[image],
                        of_locations[image],
                        of_weights[image],
                    )
                ),
            )
        return of_values, of_locations, of_weights, None


def _parts(
    table: _CellTable, locations: Tensor, weights: Tensor, *others: Tensor
) -> Iterator[tuple[Tensor, ...]]:
    """Yield views of a few queries at a time: locations, weights, and the `others` in their order.

    The first of the `others` is split as it is; in all other tensors heads, levels and points become slots.
    """
    queries = len(locations)
    by_slot = [locations.reshape(queries, table.slots, 2), weights.reshape(queries, table.slots)]
    first, *rest = others
    views = [*by_slot, first, *(other.view(queries, table.slots, *other.shape[4:]) for other in rest)]
    yield from zip(*(view.split(QUERIES_AT_ONCE) for view in views), strict=True)


def _sum(
    table: _CellTable, rows: Tensor, corners: _Corners, weights: tuple[Tensor, Tensor, Tensor, Tensor]
) -> Float[Tensor, "bags channels"]:
    """Return the weighted sum of table rows for each bag; a bag is a head of a query."""
    indices = (corners.upper, corners.upper, corners.lower, corners.lower)
    tables = (rows, rows[table.heads :], rows, rows[table.heads :])
    sums = [
        functional.embedding_bag(
            index.view(-1, table.entries),
            source,
            per_sample_weights=share.view(-1, table.entries),
            mode="sum",
        )
        for index, source, share in zip(indices, tables, weights, strict=True)
    ]
    return sums[0].add_(sums[1]).add_(sums[2]).add_(sums[3])


def _backward(table: _CellTable, values: Tensor, parts: tuple[tuple[Tensor, ...], ...]) -> Tensor:
    """Return the gradient with respect to the values of an image.

    Those with respect to locations and weights are written into the last two tensors of each part.
    """
    rows = table.fill(values)
    found: list[tuple[Tensor, ...]] = []
    for places, shares, gradient, of_places, of_shares in parts:
        corners = table.corners(places, gradients=True)
        products = _products(table, rows, corners, gradient.reshape(-1, values.shape[2]))
        _write_gradients(table, corners, shares, products, of_places, of_shares)
        found.append((corners.upper, *_corner_weights(corners, shares)))
    if not found:
        return torch.zeros_like(values)
    upper, *weights = (torch.cat(tensors).flatten() for tensors in zip(*found, strict=True))
    gradients = torch.cat([part[2] for part in parts]).reshape(-1, values.shape[2])
    return table.take(_scatter(table, upper, weights, gradients))


def _products(table: _CellTable, rows: Tensor, corners: _Corners, gradient: Tensor) -> list[Tensor]:
    """Return, per corner, the dot product of each row read with the gradient of the bag it was read for."""
    bags = torch.arange(len(gradient), dtype=torch.int32, device=gradient.device)
    bag_of_entry = bags.repeat_interleave(table.entries)
    offsets = bags * table.entries
    multiply = private_operator("aten::_embedding_bag_per_sample_weights_backward")
    products = []
    for index in (corners.upper, corners.lower):
        for source in (rows, rows[table.heads :]):
            if multiply is None:
                product = (source[index.flatten()] * gradient[bag_of_entry]).sum(dim=1)
            else:
                product = multiply(gradient, source, index.flatten(), offsets, bag_of_entry, 0)
            products.append(product.view_as(index))
    return products


def _write_gradients(
    table: _CellTable,
    corners: _Corners,
    shares: Tensor,
    products: list[Tensor],
    of_places: Tensor,
    of_shares: Tensor,
) -> None:
    upper_left, upper_right, lower_left, lower_right = products
    right, down = corners.right, corners.down
    upper, lower = torch.lerp(upper_left, upper_right, right), torch.lerp(lower_left, lower_right, right)
    torch.lerp(upper, lower, down, out=of_shares)
    along_x = torch.lerp(upper_right - upper_left, lower_right - lower_left, down)
    free_x, free_y = corners.free
    of_places[..., 0] = along_x * (shares * table.width * free_x)
    of_places[..., 1] = (lower - upper) * (shares * table.height * free_y)


def _scatter(table: _CellTable, upper: Tensor, weights: list[Tensor], gradients: Tensor) -> Tensor:
    """Return the gradient of the table: for each row, the weighted sum of the gradients of bags that read it.

    This is `embedding_bag` with rows and bags exchanged: entries are sorted by the row that they read. All
    four corners have the same order.
    """
    rows, order = upper.sort()
    starts = torch.searchsorted(rows, torch.arange(table.length, dtype=rows.dtype, device=rows.device))
    bags = order // table.entries
    result = gradients.new_zeros(table.length, gradients.shape[1])
    for corner, weight in enumerate(weights):
        sums = functional.embedding_bag(bags, gradients, starts, per_sample_weights=weight[order], mode="sum")
        right = corner % 2 * table.heads
        for step, (start, stop) in zip(table.steps, pairwise(table.starts), strict=True):
            first, last = start * table.heads, stop * table.heads
            shift = right + corner // 2 * step
            result[first + shift : last] += sums[first : last - shift]
    return result
