import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unimask.ops.deformable import cpu as deformable_bags
from unimask.ops.deformable.cpu import BagReader, bag_sampling
from unimask.ops.deformable.plain import deformable_sampling
from unimask.ops.dispatch import fast_deformable_sampling
from unimask.ops.positions import cell_centers

SIZES = ((2, 3), (5, 7), (1, 4))
Sampling = Callable[[Tensor, tuple[tuple[int, int], ...], Tensor, Tensor], Tensor]


def reader_sampling(
    values: Tensor, sizes: tuple[tuple[int, int], ...], locations: Tensor, weights: Tensor
) -> Tensor:
    """Two halves of the queries, read one after the other."""
    if values.requires_grad or locations.requires_grad or weights.requires_grad:
        return bag_sampling(values, sizes, locations, weights)  # a reader gives no gradients

    def project(tokens: Tensor) -> Tensor:
        return tokens.unflatten(2, values.shape[2:])

    read_bags = BagReader(values.flatten(2), project, sizes, locations.shape[4], locations.dtype)
    half = locations.shape[1] // 2
    parts = [read_bags(locations[:, some], weights[:, some]) for some in (slice(half), slice(half, None))]
    return torch.cat(parts, dim=1)


@pytest.fixture(params=[deformable_sampling, bag_sampling, fast_deformable_sampling, reader_sampling])
def sampling(request: pytest.FixtureRequest) -> Sampling:
    """The plain version, and every faster one."""
    version: Sampling = request.param
    return version


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


def test_equals_a_naive_loop(sampling: Sampling) -> None:
    values, locations, weights = make()
    result = sampling(values, SIZES, locations, weights)
    torch.testing.assert_close(result, slow(values, locations, weights))


def test_gradients_are_right(sampling: Sampling) -> None:
    inputs = [tensor.requires_grad_() for tensor in make(queries=3, heads=2, points=2, channels=3)]
    assert torch.autograd.gradcheck(lambda v, p, w: sampling(v, SIZES, p, w), inputs)


def test_reads_cells_at_their_centers(sampling: Sampling) -> None:
    values = torch.randn(1, 35, 1, 2)
    locations = cell_centers(5, 7)[None, :, None, None, None]
    result = sampling(values, ((5, 7),), locations, torch.ones(1, 35, 1, 1, 1))
    torch.testing.assert_close(result, values[:, :, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("x", [-0.3, 1.3, 50.0])
def test_is_zero_outside(sampling: Sampling, x: float) -> None:
    values = torch.ones(1, 35, 1, 2)
    locations = torch.tensor([x, 0.5]).expand(1, 1, 1, 1, 1, 2)
    result = sampling(values, ((5, 7),), locations, torch.ones(1, 1, 1, 1, 1))
    assert torch.equal(result, torch.zeros(1, 1, 2))


def test_without_queries(sampling: Sampling) -> None:
    values, locations, weights = make()
    assert sampling(values, SIZES, locations[:, :0], weights[:, :0]).shape == (2, 0, 15)


@pytest.mark.parametrize("at_once", [1, 4, 512])
def test_bags_equal_the_plain_version(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(deformable_bags, "QUERIES_AT_ONCE", at_once)
    inputs = [tensor.float().requires_grad_() for tensor in make(queries=13)]
    gradient = torch.randn(2, 13, 15, generator=torch.Generator().manual_seed(3))
    results, gradients = zip(
        *(
            (result, torch.autograd.grad(result, inputs, gradient))
            for result in (f(inputs[0], SIZES, *inputs[1:]) for f in (deformable_sampling, bag_sampling))
        )
    )
    torch.testing.assert_close(results[1], results[0], atol=1e-6, rtol=1e-5)
    for fast, plain in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(fast, plain, atol=2e-5, rtol=1e-5)


def test_far_outside_there_is_no_gradient() -> None:
    values, locations, weights = make()
    locations = (locations + 100).requires_grad_()
    bag_sampling(values, SIZES, locations, weights).sum().backward()
    assert locations.grad is not None
    assert torch.equal(locations.grad, torch.zeros_like(locations))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_location_spoils_its_own_query_only(bad: float) -> None:
    values, locations, weights = make()
    locations[1, 4, 2, 1, 0, 1] = bad
    result = bag_sampling(values, SIZES, locations, weights)
    expected = deformable_sampling(values, SIZES, locations, weights)
    others = torch.ones(2, 11, dtype=torch.bool)
    others[1, 4] = False
    torch.testing.assert_close(result[others], expected[others])
    assert bool(result[1, 4].isfinite().all()) == math.isinf(bad)


def test_without_pictures() -> None:
    values, locations, weights = (tensor[:0].requires_grad_() for tensor in make())
    result = bag_sampling(values, SIZES, locations, weights)
    assert result.shape == (0, 11, 15)
    result.sum().backward()
