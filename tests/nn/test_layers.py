import pytest
import torch
from torch import nn

from unimask.nn.layers import ConstantEmbedding, NormedConvolution, Perceptron, pointwise_convolution


@pytest.mark.parametrize(("kernel", "bias"), [(1, True), (3, False)])
def test_normed_convolution_keeps_the_size(kernel: int, bias: bool) -> None:
    layer = NormedConvolution(5, 96, kernel, bias=bias, activation=nn.ReLU())
    result = layer(torch.randn(2, 5, 7, 11))
    assert result.shape == (2, 96, 7, 11)
    assert (result >= 0).all()
    assert ("convolution.bias" in layer.state_dict()) is bias
    assert layer.norm.num_groups == 32


def test_perceptron_is_linear_layers_with_relu_between() -> None:
    perceptron = Perceptron(3, 7, 5, 3)
    assert [tuple(layer.weight.shape) for layer in perceptron.layers] == [(7, 3), (7, 7), (5, 7)]
    inputs = torch.randn(2, 11, 3)
    first, second, third = perceptron.layers
    expected = third(second(first(inputs).relu()).relu())
    torch.testing.assert_close(perceptron(inputs), expected)
    assert (expected < 0).any()  # no activation at the end


def test_constant_embedding_is_neither_learned_nor_stored() -> None:
    embedding = ConstantEmbedding(7, 3)
    assert torch.equal(embedding.weight, torch.zeros(7, 3))
    assert not list(embedding.parameters())
    assert not embedding.state_dict()
    assert embedding.double().weight.dtype == torch.float64


def test_pointwise_convolution_starts_in_its_bounds() -> None:
    convolution = pointwise_convolution(75, 64)
    assert not convolution.bias.any()
    assert 0.18 < convolution.weight.abs().max() <= 0.2
