"""The kernels of deformable sampling in Triton's interpreter, beside the plain version.

Run by test_deformable_cuda.py in a process of its own: Triton has to be told before it is imported, and
types are not checked, because the compiler cannot see through the checks.
"""

import os

import pytest
import torch
from torch import Tensor

from unimask.ops.deformable import cuda as deformable_cuda
from unimask.ops.deformable.cuda import kernel_sampling
from unimask.ops.deformable.plain import deformable_sampling
from unimask.structures import Size

pytest.importorskip("triton", reason="Triton is not installed")
assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1"

SIZES = ((2, 3), (5, 7), (1, 4))
HALVES = (torch.bfloat16, torch.float16)


def make(
    batch: int = 2, queries: int = 7, heads: int = 2, points: int = 2, channels: int = 5, seed: int = 7
) -> list[Tensor]:
    """Values, locations (some outside of the map) and weights on `SIZES`."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, sum(h * w for h, w in SIZES), heads, channels, generator=generator)
    locations = torch.rand(batch, queries, heads, len(SIZES), points, 2, generator=generator) * 1.6 - 0.3
    weights = torch.rand(batch, queries, heads, len(SIZES), points, generator=generator)
    return [values, locations, weights]


def both(inputs: list[Tensor], sizes: tuple[Size, ...] = SIZES) -> list[tuple[Tensor, list[Tensor]]]:
    """Result and gradients of values, locations and weights: of the plain version, and of the kernels."""
    answers = []
    for sampling in (deformable_sampling, kernel_sampling):
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        result = sampling(leaves[0], sizes, *leaves[1:])
        upstream = torch.randn(result.shape, generator=torch.Generator().manual_seed(3))
        gradients = torch.autograd.grad(result, leaves, upstream)
        answers.append((result.detach(), list(gradients)))
    return answers


def assert_same(inputs: list[Tensor], sizes: tuple[Size, ...] = SIZES) -> None:
    (result, gradients), (fast_result, fast_gradients) = both(inputs, sizes)
    torch.testing.assert_close(fast_result, result, atol=1e-5, rtol=1e-5)
    for fast, plain in zip(fast_gradients, gradients, strict=True):
        torch.testing.assert_close(fast, plain, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 5, 37])
def test_any_number_of_channels(channels: int) -> None:
    assert_same(make(channels=channels, batch=1))


@pytest.mark.parametrize(("queries", "heads", "points"), [(1, 1, 1), (67, 1, 1), (5, 3, 4)])
def test_any_number_of_queries_heads_and_points(queries: int, heads: int, points: int) -> None:
    assert_same(make(queries=queries, heads=heads, points=points, channels=8, batch=1))


def test_random_sizes() -> None:
    generator = torch.Generator().manual_seed(11)
    for seed in range(3):
        sides = torch.randint(1, 12, (2, 2), generator=generator).tolist()
        sizes = tuple((height, width) for height, width in sides)
        _, locations, weights = make(batch=1, queries=9, heads=2, seed=seed)
        values = torch.randn(1, sum(h * w for h, w in sizes), 2, 5, generator=generator)
        assert_same([values, locations[:, :, :, :2], weights[:, :, :, :2]], sizes)


@pytest.mark.parametrize("empty", ["queries", "pictures"])
def test_nothing_to_sample(empty: str) -> None:
    inputs = make()
    if empty == "queries":
        inputs = [inputs[0], inputs[1][:, :0], inputs[2][:, :0]]
    else:
        inputs = [tensor[:0] for tensor in inputs]
    leaves = [tensor.requires_grad_() for tensor in inputs]
    result = kernel_sampling(leaves[0], SIZES, *leaves[1:])
    assert result.shape == (inputs[1].shape[0], inputs[1].shape[1], 10)
    for gradient, leaf in zip(torch.autograd.grad(result.sum(), leaves), leaves, strict=True):
        assert torch.equal(gradient, torch.zeros_like(leaf))


@pytest.mark.parametrize("far", [-0.7, 1.7, -1e30, float("inf")])
def test_nothing_is_outside(far: float) -> None:
    values, locations, weights = make(queries=3, batch=1)
    locations[..., 1] = far
    leaves = [tensor.requires_grad_() for tensor in (values, locations, weights)]
    result = kernel_sampling(values, SIZES, locations, weights)
    assert torch.equal(result, torch.zeros_like(result))
    for gradient in torch.autograd.grad(result.sum(), leaves):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # numpy's, of the interpreter
def test_what_is_no_number_spoils_its_own_query_only() -> None:
    values, locations, weights = make()
    expected = kernel_sampling(values, SIZES, locations, weights)
    locations[1, 4, 1, 1, 0, 1] = float("nan")
    result = kernel_sampling(values, SIZES, locations, weights)
    spoilt = torch.zeros(2, 7, 10, dtype=torch.bool)
    spoilt[1, 4, 5:] = True  # the second head
    assert bool(result[spoilt].isnan().all())
    assert torch.equal(result[~spoilt], expected[~spoilt])


def test_points_on_cells_have_the_gradients_of_the_plain_version() -> None:
    """At a cell's centre the slope is another on each side; powers of 2 leave no doubt where the point is."""
    sizes = ((4, 8), (2, 2))
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(1, 36, 2, 5, generator=generator)
    x = (torch.randint(-1, 9, (1, 11, 2, 2, 2), generator=generator) + 0.5) / 8
    y = (torch.randint(-1, 5, (1, 11, 2, 2, 2), generator=generator) + 0.5) / 4
    assert_same([values, torch.stack((x, y), dim=-1), torch.rand(x.shape, generator=generator)], sizes)


def test_cells_are_read_at_their_centers() -> None:
    """Also where rounding puts the point to either side of the centre: the value is the same."""
    for height, width in ((5, 7), (3, 11)):
        values = torch.randn(1, height * width, 1, 4, generator=torch.Generator().manual_seed(1))
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        locations = torch.stack((x / width, y / height), dim=-1).reshape(1, -1, 1, 1, 1, 2)
        weights = torch.ones(1, height * width, 1, 1, 1)
        result = kernel_sampling(values, ((height, width),), locations, weights)
        torch.testing.assert_close(result, values[:, :, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_rounded_at_the_end_only(dtype: torch.dtype) -> None:
    values, locations, weights = make(channels=6)
    values = values.to(dtype)
    leaves = [tensor.requires_grad_() for tensor in (values, locations, weights)]
    result = kernel_sampling(values, SIZES, locations, weights)
    upstream = torch.randn(result.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    gradients = torch.autograd.grad(result, leaves, upstream)
    exact = [tensor.detach().float().requires_grad_() for tensor in leaves]
    expected = deformable_sampling(exact[0], SIZES, *exact[1:])
    expected_gradients = torch.autograd.grad(expected, exact, upstream.float())
    step = torch.finfo(dtype).eps  # the interpreter cuts bfloat16 off instead of rounding it
    assert [gradient.dtype for gradient in gradients] == [dtype, torch.float32, torch.float32]
    torch.testing.assert_close(result.float(), expected, atol=1e-5, rtol=step)
    torch.testing.assert_close(gradients[0].float(), expected_gradients[0], atol=1e-5, rtol=step)
    for fast, plain in zip(gradients[1:], expected_gradients[1:], strict=True):
        torch.testing.assert_close(fast, plain, atol=5e-5, rtol=1e-5)


def test_strides_do_not_matter() -> None:
    """Values with channels apart, locations of an expanded batch, weights with queries last in memory."""
    values, locations, weights = make()
    values = values.transpose(2, 3).contiguous().transpose(2, 3)
    locations = locations[:1].expand(2, -1, -1, -1, -1, -1)
    weights = weights.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
    assert_same([values, locations, weights])


def test_wide_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deformable_cuda, "WIDE_FROM", 1)
    assert_same(make())


@pytest.mark.parametrize("block_values", [1, 32, 1024])
def test_any_block(monkeypatch: pytest.MonkeyPatch, block_values: int) -> None:
    monkeypatch.setattr(deformable_cuda, "BLOCK_VALUES", block_values)
    assert_same(make(queries=5, batch=1))


def test_pytorch_accepts_the_operators() -> None:
    """Schema, fake versions, autograd, and tracing with sizes that are not known."""
    values, locations, weights = make(queries=5, batch=1)
    heights, widths = [h for h, _ in SIZES], [w for _, w in SIZES]
    inputs = [tensor.requires_grad_() for tensor in (values, locations, weights)]
    torch.library.opcheck(deformable_cuda._sample, (inputs[0], heights, widths, *inputs[1:]))
    gradient = torch.randn(1, 5, 10)
    plain = [tensor.detach() for tensor in inputs]
    torch.library.opcheck(deformable_cuda._gradients, (gradient, plain[0], heights, widths, *plain[1:]))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_without_a_break(dynamic: bool) -> None:
    def function(values: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return kernel_sampling(2 * values, SIZES, locations, weights.softmax(dim=-1)).square()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for queries in (5, 7):
        leaves = [tensor.requires_grad_() for tensor in make(queries=queries, batch=1)]
        expected, result = function(*leaves), compiled(*leaves)
        torch.testing.assert_close(result, expected)
        expected_gradients = torch.autograd.grad(expected.sum(), leaves)
        for ours, theirs in zip(torch.autograd.grad(result.sum(), leaves), expected_gradients, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
