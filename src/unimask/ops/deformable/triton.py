"""The Triton kernels of deformable sampling. Importing this file needs Triton; `cuda.py` does so at a launch.

One program computes a few queries of one head of one image in a single warp, so it needs no barriers. The
channels of a head are contiguous in memory: each of the four cells around a point is a short row, loaded as
vectors. Sums are float32, whatever the type of the tensors. Strides are passed with the tensors, so no tensor
has to be copied first.

Heights and widths are passed as floats, which are exact up to 2^24: Triton specialises kernels on integers
that are 1 or a multiple of 16, and would compile new ones for many image sizes. The other integers that
depend on the image's size are listed in `do_not_specialize` for the same reason.
"""

from typing import no_type_check

import triton
import triton.language as tl

SIZES = ["queries", "heights", "widths"]
STRIDES = [f"location_{name}" for name in ("batch", "query", "head", "level", "point", "axis")]
STRIDES += [f"weight_{name}" for name in ("batch", "query", "head", "level", "point")]


@triton.jit
@no_type_check
def _position(coordinate, size):
    """Return the position of a coordinate in cells, 0 at the first centre; rounded as by `grid_sample`.

    Positions far outside are clamped to just outside the map, where no cell is read either, so that they fit
    an integer. NaN is propagated to the results.
    """
    position = ((2.0 * coordinate - 1.0 + 1.0) * size - 1.0) * 0.5
    position = tl.maximum(position, -2.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(position, size + 1.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
@no_type_check
def _read(pointer, is_query):
    return tl.load(pointer, is_query, 0.0).to(tl.float32)


@triton.jit
@no_type_check
def _wide(index, WIDE: tl.constexpr):
    """Return the index in 64 bits if offsets inside an image may need them."""
    return index.to(tl.int64) if WIDE else index


@triton.jit
@no_type_check
def _cells(left, top, right, down, height, width, first, is_query, WIDE: tl.constexpr):
    """Return the indices of one corner's cells, in a level that starts at `first`, and whether they exist."""
    column = left + right
    row = top + down
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return _wide(first + row * width + column, WIDE), inside & is_query


@triton.jit(do_not_specialize=SIZES + STRIDES)
@no_type_check
def forward_kernel(
    values,
    locations,
    weights,
    result,
    queries,
    heights,
    widths,
    value_batch,
    value_cell,
    value_head,
    location_batch,
    location_query,
    location_head,
    location_level,
    location_point,
    location_axis,
    weight_batch,
    weight_query,
    weight_head,
    weight_level,
    weight_point,
    result_batch,
    result_query,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Store the weighted sums of `BLOCK_QUERIES` queries; the grid is (blocks of queries, heads, batch)."""
    query = _wide(tl.program_id(0) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES), WIDE)
    head = _wide(tl.program_id(1), WIDE)
    batch = tl.program_id(2).to(tl.int64)
    channel = tl.arange(0, BLOCK_CHANNELS)[None, :]
    is_query = query < queries
    is_channel = channel < CHANNELS
    values += batch * value_batch + head * value_head
    locations += batch * location_batch + query * location_query + head * location_head
    weights += batch * weight_batch + query * weight_query + head * weight_head
    total = tl.zeros([BLOCK_QUERIES, BLOCK_CHANNELS], tl.float32)
    first = 0
    for level in tl.static_range(LEVELS):
        height = tl.cast(heights[level], tl.int32)
        width = tl.cast(widths[level], tl.int32)
        for point in tl.static_range(POINTS):
            where = locations + level * location_level + point * location_point
            x = _position(_read(where, is_query), widths[level])
            y = _position(_read(where + location_axis, is_query), heights[level])
            share = _read(weights + level * weight_level + point * weight_point, is_query)
            left = tl.floor(x)
            top = tl.floor(y)
            for down in tl.static_range(2):
                for right in tl.static_range(2):
                    cell, inside = _cells(
                        left.to(tl.int32), top.to(tl.int32), right, down, height, width, first, is_query, WIDE
                    )
                    row = values + (cell * value_cell)[:, None] + channel
                    value = tl.load(row, inside[:, None] & is_channel, 0.0).to(tl.float32)
                    part_x = x - left if right else 1 - (x - left)
                    part_y = y - top if down else 1 - (y - top)
                    total += (share * part_x * part_y)[:, None] * value
        first += height * width
    result += batch * result_batch + head * CHANNELS
    tl.store(result + (query * result_query)[:, None] + channel, total, is_query[:, None] & is_channel)


@triton.jit(do_not_specialize=SIZES + STRIDES)
@no_type_check
def backward_kernel(
    gradient,
    values,
    locations,
    weights,
    value_gradient,
    location_gradient,
    weight_gradient,
    queries,
    heads,
    heights,
    widths,
    gradient_batch,
    gradient_query,
    value_batch,
    value_cell,
    value_head,
    location_batch,
    location_query,
    location_head,
    location_level,
    location_point,
    location_axis,
    weight_batch,
    weight_query,
    weight_head,
    weight_level,
    weight_point,
    sum_batch,
    sum_cell,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    VECTOR: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Add to the gradient of the values (zeroed, float32) and store those of locations and weights.

    The latter two are contiguous: (batch, queries, heads, levels, points, 2) and the same without the 2. They
    need only four numbers per point: the dot products of the incoming gradient with the four values around
    it.
    """
    query = _wide(tl.program_id(0) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES), WIDE)
    head = _wide(tl.program_id(1), WIDE)
    batch = tl.program_id(2).to(tl.int64)
    channel = tl.arange(0, BLOCK_CHANNELS)[None, :]
    is_query = query < queries
    is_channel = channel < CHANNELS
    values += batch * value_batch + head * value_head
    value_gradient += batch * sum_batch + head * CHANNELS
    locations += batch * location_batch + query * location_query + head * location_head
    weights += batch * weight_batch + query * weight_query + head * weight_head
    gradient += batch * gradient_batch + head * CHANNELS
    # VECTOR is 4 in half precision, too, as for the float32 sums: no values are exchanged between threads
    where = tl.max_contiguous(gradient + (query * gradient_query)[:, None] + channel, (1, VECTOR))
    upstream = tl.load(where, is_query[:, None] & is_channel, 0.0).to(tl.float32)
    dense = ((batch * queries + query) * heads + head) * (LEVELS * POINTS)  # 64 bits, as batch
    first = 0
    for level in tl.static_range(LEVELS):
        height = tl.cast(heights[level], tl.int32)
        width = tl.cast(widths[level], tl.int32)
        for point in tl.static_range(POINTS):
            where = locations + level * location_level + point * location_point
            x = _position(_read(where, is_query), widths[level])
            y = _position(_read(where + location_axis, is_query), heights[level])
            share = _read(weights + level * weight_level + point * weight_point, is_query)
            left = tl.floor(x)
            top = tl.floor(y)
            read = tl.zeros([BLOCK_QUERIES], tl.float32)
            along_x = tl.zeros([BLOCK_QUERIES], tl.float32)
            along_y = tl.zeros([BLOCK_QUERIES], tl.float32)
            for down in tl.static_range(2):
                for right in tl.static_range(2):
                    cell, inside = _cells(
                        left.to(tl.int32), top.to(tl.int32), right, down, height, width, first, is_query, WIDE
                    )
                    mask = inside[:, None] & is_channel
                    row = tl.max_contiguous(values + (cell * value_cell)[:, None] + channel, (1, VECTOR))
                    product = tl.sum(upstream * tl.load(row, mask, 0.0).to(tl.float32), axis=1)
                    part_x = x - left if right else 1 - (x - left)
                    part_y = y - top if down else 1 - (y - top)
                    read += part_x * part_y * product
                    along_x += part_y * (product if right else -product)
                    along_y += part_x * (product if down else -product)
                    row = value_gradient + (cell * sum_cell)[:, None] + channel
                    added = (share * part_x * part_y)[:, None] * upstream
                    tl.atomic_add(row, added, mask, sem="relaxed")
            place = dense + (level * POINTS + point)
            tl.store(weight_gradient + place, read, is_query)
            tl.store(location_gradient + 2 * place, share * along_x * widths[level], is_query)
            tl.store(location_gradient + 2 * place + 1, share * along_y * heights[level], is_query)
        first += height * width
