import copy

import pytest
import torch
from torch import Tensor, nn

from unimask.nn.fused import FusedConvolution, FusedLinear
from unimask.nn.overwriting import OverwritingMix, WinogradConvolution, fastest
from unimask.ops.cpu import winograd
from unimask.ops.cpu.fused import Activation, Steps, convolution, linear, pack_linear
from unimask.ops.dispatch import convolve, project
from unimask.ops.private import fuses


def packed(weight: Tensor) -> Tensor:
    """In oneDNN's order, where this processor has one for the type."""
    return pack_linear(weight) if fuses(weight.dtype) else weight


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
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(convolve(maps, weight, bias, steps, "relu"), expected)
    with torch.no_grad():
        reduced = convolve(maps, weight.bfloat16(), bias.bfloat16(), steps, "relu")
    assert reduced.dtype == torch.bfloat16
    torch.testing.assert_close(reduced.float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pointwise_convolution_over_its_input(dtype: torch.dtype) -> None:
    layer = nn.Conv2d(7, 7, 1, dtype=dtype).requires_grad_(False)
    fast = fastest(FusedConvolution(layer), overwrite=True)
    assert isinstance(fast, OverwritingMix)
    maps = torch.randn(2, 7, 53, 41, dtype=dtype)
    expected = layer(maps)
    for memory_format in (torch.channels_last, torch.contiguous_format):
        given = maps.clone(memory_format=memory_format)
        torch.testing.assert_close(
            fast(given), expected, atol=0.02 if dtype != torch.float32 else 1e-5, rtol=0.02
        )


@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "gelu"])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 12), (2, 3, 12), (0, 12), (1, 0, 12), (2, 3, 4, 12)])
def test_product_and_activation(activation: Activation, with_bias: bool, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(5)
    tokens, weight, bias = (torch.randn(size, generator=generator) for size in (shape, (24, 12), (24,)))
    given = bias if with_bias else None
    expected = linear(tokens, weight, given, activation)
    assert expected.shape == (*shape[:-1], 24)
    for matrix in (weight, packed(weight)):
        for context in (torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
            with context:
                torch.testing.assert_close(project(tokens, matrix, given, activation), expected)
        with torch.no_grad():  # of tokens that lie in another order
            turned = tokens.mT.contiguous().mT
            torch.testing.assert_close(project(turned, matrix, given, activation), expected)


def test_a_packed_weight_multiplies_in_its_type() -> None:
    weight, tokens = torch.randn(24, 12), torch.randn(7, 12)
    if fuses(torch.float32):
        assert torch.equal(packed(weight).to_dense(), weight)
    with torch.no_grad():
        result = project(tokens, packed(weight.bfloat16()), None, "none")
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), tokens @ weight.T, atol=0.2, rtol=0.05)


def test_a_copy_of_a_packed_layer_is_not_packed() -> None:
    layer = nn.Linear(12, 24)
    fused = FusedLinear(layer.weight.detach(), layer.bias.detach())
    fused.activation = "relu"
    fused.pack()
    held = nn.Sequential(fused, fused)
    first, second = copied = copy.deepcopy(held)
    assert first is second
    assert not any(parameter.is_mkldnn for parameter in copied.parameters())
    assert torch.equal(first.weight, layer.weight)
    assert first.bias is not layer.bias
    tokens = torch.randn(3, 12)
    with torch.no_grad():
        torch.testing.assert_close(first(tokens), layer(tokens).relu())
        torch.testing.assert_close(fused(tokens), layer(tokens).relu())


@pytest.mark.parametrize("channels", [(256, 256), (257, 300), (300, 256)])
@pytest.mark.parametrize("size", [(7, 6), (2, 2), (1, 9), (16, 22)])
def test_a_convolution_of_many_channels(
    monkeypatch: pytest.MonkeyPatch, channels: tuple[int, int], size: tuple[int, int]
) -> None:
    monkeypatch.setattr(winograd, "PIECES_AT_ONCE", 23)
    convolution = nn.Conv2d(*channels, 3, padding=1).requires_grad_(False)
    kept, over = (fastest(FusedConvolution(convolution), overwrite=overwrite) for overwrite in (False, True))
    assert isinstance(kept, WinogradConvolution)
    maps = torch.randn(2, channels[0], *size)
    expected = convolution(maps)
    for given in (maps, maps.to(memory_format=torch.channels_last)):
        with torch.no_grad():
            before = given.clone()
            torch.testing.assert_close(kept(given), expected, atol=2e-5, rtol=1e-5)
            assert torch.equal(given, before)
            torch.testing.assert_close(over(given.clone()), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(255, 256, 3, padding=1),
        nn.Conv2d(256, 256, 3),
        nn.Conv2d(256, 256, 3, padding=1, stride=2),
        nn.Conv2d(256, 256, 1),
        nn.Conv2d(512, 512, 3, padding=1, groups=2),
        nn.Conv2d(256, 256, 3, padding=1, dtype=torch.bfloat16),
    ],
)
def test_other_convolutions_stay_as_they_are(layer: nn.Conv2d) -> None:
    fused = FusedConvolution(layer.requires_grad_(False))
    assert fastest(fused, overwrite=False) is fused
    maps = torch.randn(1, layer.in_channels, 5, 4, dtype=layer.weight.dtype)
    with torch.no_grad():
        torch.testing.assert_close(fused(maps), layer(maps))
