import pytest
import torch
from torch.nn import functional

from unimask.nn.overwriting import OverwritingGroupNorm
from unimask.ops.cpu.norms import overwrite_with_group_norm
from unimask.ops.dispatch import softmax_over_few
from unimask.ops.parts import recomputed, token_by_token, window_by_window


def maps_of(*shape: int) -> torch.Tensor:
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + 2
    return maps.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("shape", "tolerance"),
    # of two values that are nearly equal little is left after the mean is taken off
    [((2, 32, 37, 41), 2e-6), ((1, 64, 1, 1), 5e-5), ((3, 32, 5, 1031), 2e-6), ((0, 32, 3, 3), 0)],
    ids=str,
)
def test_group_norm_in_place_is_that_of_pytorch(shape: tuple[int, ...], tolerance: float) -> None:
    generator = torch.Generator().manual_seed(1)
    maps, (weight, bias) = maps_of(*shape), torch.randn(2, shape[1], generator=generator)
    expected = functional.group_norm(maps.double(), 32, weight.double(), bias.double(), 1e-5)
    result = overwrite_with_group_norm(maps, 32, weight, bias, 1e-5)
    assert result is maps
    torch.testing.assert_close(result.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_maps_are_written_over_where_they_lie_in_order(memory_format: torch.memory_format) -> None:
    norm = torch.nn.GroupNorm(32, 32).requires_grad_(False)
    torch.nn.init.normal_(norm.weight)
    maps = maps_of(2, 32, 7, 5).contiguous(memory_format=memory_format)
    expected = norm(maps)
    result = OverwritingGroupNorm(norm)(maps)
    torch.testing.assert_close(result, expected)
    assert (result is maps) == (memory_format == torch.channels_last)


def test_softmax_over_few_and_its_gradient() -> None:
    logits = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(softmax_over_few(logits), logits.softmax(dim=-1))
    assert torch.autograd.gradcheck(softmax_over_few, logits)


@pytest.mark.parametrize("tokens", [1023, 5003])
def test_what_is_computed_again_has_the_same_gradients(tokens: int) -> None:
    linear = torch.nn.Linear(7, 7, dtype=torch.float64)
    inputs = torch.randn(2, tokens, 7, dtype=torch.float64, requires_grad=True)

    def function(some: torch.Tensor) -> torch.Tensor:
        return linear(some).relu() * some

    wanted = torch.autograd.grad(function(inputs).square().sum(), (inputs, *linear.parameters()))
    for way in (token_by_token, recomputed):
        found = torch.autograd.grad(way(function, inputs).square().sum(), (inputs, *linear.parameters()))
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("groups", [1, 151])
def test_windows_one_part_after_the_other(groups: int) -> None:
    windows, biases = torch.randn(2, 151, 49, 3), torch.randn(groups, 49, 49)

    def function(some: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return bias.softmax(dim=-1) @ some

    with torch.no_grad():
        found = window_by_window(function, windows, biases)
    torch.testing.assert_close(found, function(windows, biases))
