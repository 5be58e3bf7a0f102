import pytest
import torch
from torch import Tensor, nn

from unimask.ops.dispatch import convolve, mix_channels
from unimask.ops.fused import Activation, Steps, convolution


def make(groups: int, kernel: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Steps]:
    generator = torch.Generator().manual_seed(3)
    maps = torch.randn(2, 12, 17, 13, generator=generator)
    weight = torch.randn(24, 12 // groups, kernel, kernel, generator=generator) / 3
    bias = torch.randn(24, generator=generator)
    steps = [2, 1], [kernel // 2, kernel // 2], [1, 1], groups
    return maps.to(dtype), weight.to(dtype), bias.to(dtype), steps


@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
@pytest.mark.parametrize(("groups", "kernel"), [(1, 1), (1, 3), (12, 3)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_convolution_and_activation(
    activation: Activation, groups: int, kernel: int, with_bias: bool
) -> None:
    maps, weight, bias, steps = make(groups, kernel, torch.float32)
    given = bias if with_bias else None
    expected = convolution(maps, weight, given, steps, activation, None)
    with torch.inference_mode():
        torch.testing.assert_close(convolve(maps, weight, given, steps, activation), expected)


@pytest.mark.parametrize("activation", ["none", "relu"])
def test_sum_and_activation(activation: Activation) -> None:
    maps, weight, bias, steps = make(1, 3, torch.float32)
    others = torch.randn(2, 24, 9, 13)
    expected = convolution(maps, weight, bias, steps, activation, others)
    with torch.inference_mode():
        result = convolve(maps, weight, bias, steps, activation, others.clone())
        torch.testing.assert_close(result, expected)
        torch.testing.assert_close(
            convolve(maps, weight, bias, steps, activation, others.to(memory_format=torch.channels_last)),
            expected,
        )


def test_the_type_of_the_weight_decides_also_under_autocast() -> None:
    maps, weight, bias, steps = make(1, 3, torch.float32)
    expected = convolution(maps, weight, bias, steps, "relu", None)
    for context in (torch.no_grad(), torch.enable_grad()):
        with context, torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(convolve(maps, weight, bias, steps, "relu"), expected)
    with torch.no_grad():
        reduced = convolve(maps, weight.bfloat16(), bias.bfloat16(), steps, "relu")
    assert reduced.dtype == torch.bfloat16
    torch.testing.assert_close(reduced.float(), expected, atol=0.05, rtol=0.05)


def test_gradients_and_inputs_are_kept_where_gradients_are_wanted() -> None:
    maps, weight, bias, steps = (
        tensor.double() if isinstance(tensor, Tensor) else tensor for tensor in make(1, 1, torch.float32)
    )
    assert isinstance(maps, Tensor)
    others = torch.randn(2, 24, 9, 13, dtype=torch.float64)
    before = others.clone()
    convolve(maps.requires_grad_(), weight, bias, steps, "none", others).sum().backward()  # type: ignore[arg-type]
    assert maps.grad is not None
    assert torch.equal(others, before)


@pytest.mark.parametrize("out_channels", [7, 11])
def test_mix_channels(out_channels: int) -> None:
    layer = nn.Conv2d(7, out_channels, 1)
    maps = torch.randn(2, 7, 53, 41)
    expected = layer(maps)
    for given in (maps, maps.to(memory_format=torch.channels_last)):
        torch.testing.assert_close(mix_channels(given, layer), expected)
        with torch.no_grad():
            torch.testing.assert_close(mix_channels(given.clone(), layer), expected)
