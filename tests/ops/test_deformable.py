import math

import pytest
import torch
from torch import Tensor

from unimask.ops.deformable import deformable_sampling
from unimask.ops.positions import cell_centers

SIZES = ((2, 3), (5, 7), (1, 4))


def make(
    queries: int = 11, heads: int = 3, points: int = 2, channels: int = 5
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    cells = sum(height * width for height, width in SIZES)
    values = draw(2, cells, heads, channels) - 0.5
    locations = draw(2, queries, heads, len(SIZES), points, 2) * 1.6 - 0.3  # some lie outside
    weights = draw(2, queries, heads, len(SIZES), points)
    return values, locations, weights


def read(level: Tensor, x: float, y: float) -> Tensor:
    """The bilinear value at a point of a map (height, width, channels), in cells; 0 outside."""
    height, width, channels = level.shape
    total = level.new_zeros(channels)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                total += level[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def slow(values: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    batch, _, heads, channels = values.shape
    _, queries, _, _, points, _ = locations.shape
    levels = values.split([height * width for height, width in SIZES], dim=1)
    result = values.new_zeros(batch, queries, heads, channels)
    for b, q, h, p in torch.cartesian_prod(
        *(torch.arange(n) for n in (batch, queries, heads, points))
    ).tolist():
        for index, (height, width) in enumerate(SIZES):
            level = levels[index][b, :, h].reshape(height, width, channels)
            x, y = locations[b, q, h, index, p].tolist()
            result[b, q, h] += weights[b, q, h, index, p] * read(level, x * width - 0.5, y * height - 0.5)
    return result.flatten(2)


def test_equals_a_naive_loop() -> None:
    values, locations, weights = make()
    result = deformable_sampling(values, SIZES, locations, weights)
    torch.testing.assert_close(result, slow(values, locations, weights))


def test_gradients_are_right() -> None:
    inputs = [tensor.requires_grad_() for tensor in make(queries=3, heads=2, points=2, channels=3)]
    assert torch.autograd.gradcheck(lambda v, p, w: deformable_sampling(v, SIZES, p, w), inputs)


def test_reads_cells_at_their_centers() -> None:
    values = torch.randn(1, 35, 1, 2)
    locations = cell_centers(5, 7)[None, :, None, None, None]
    result = deformable_sampling(values, ((5, 7),), locations, torch.ones(1, 35, 1, 1, 1))
    torch.testing.assert_close(result, values[:, :, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("x", [-0.3, 1.3, 50.0])
def test_is_zero_outside(x: float) -> None:
    values = torch.ones(1, 35, 1, 2)
    locations = torch.tensor([x, 0.5]).expand(1, 1, 1, 1, 1, 2)
    result = deformable_sampling(values, ((5, 7),), locations, torch.ones(1, 1, 1, 1, 1))
    assert torch.equal(result, torch.zeros(1, 1, 2))


def test_without_queries() -> None:
    values, locations, weights = make()
    assert deformable_sampling(values, SIZES, locations[:, :0], weights[:, :0]).shape == (2, 0, 15)
