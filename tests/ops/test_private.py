"""Where PyTorch lacks a private operator, the plain version computes the same."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from unimask.config.models import BackboneConfig, ModelConfig, PixelDecoderConfig, QueryDecoderConfig
from unimask.models.build import build_model
from unimask.models.optimize import prepare_for_inference
from unimask.ops import private
from unimask.ops.deformable.cpu import bag_sampling


def forget() -> None:
    private.private_operator.cache_clear()
    private.fuses.cache_clear()


@pytest.fixture
def other_operators(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Ends with the true operators; inside, `take_away` lets all of them have other arguments."""
    yield monkeypatch
    monkeypatch.undo()
    forget()


def take_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "_ARGUMENTS", dict.fromkeys(private._ARGUMENTS, "other arguments"))
    forget()
    assert not private.fuses(torch.float32)
    assert private.private_operator("mkldnn::_linear_pointwise") is None


def test_this_pytorch_has_all_of_them() -> None:
    """If it fails, predictions stay right but become slower: compare the arguments with PyTorch's."""
    assert all(private.private_operator(name) is not None for name in private._ARGUMENTS)


def test_an_operator_that_does_not_exist() -> None:
    private._ARGUMENTS["mkldnn::_no_such_operator"] = ""
    try:
        assert private.private_operator("mkldnn::_no_such_operator") is None
    finally:
        del private._ARGUMENTS["mkldnn::_no_such_operator"]
        forget()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_predicts_the_same_without_them(
    other_operators: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        backbone=BackboneConfig(name="test_resnet"),
        pixel_decoder=PixelDecoderConfig(channels=32, mask_channels=32, layers=1, feedforward_channels=32),
        query_decoder=QueryDecoderConfig(queries=7, channels=32, layers=2, feedforward_channels=32),
    )
    model, pixels = build_model(config, 3).eval(), torch.randn(2, 3, 96, 64)

    def predicted(prepared: nn.Module) -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            features: Tensor = prepared(pixels).mask_features.float()
        return features

    expected = predicted(prepare_for_inference(model, dtype))
    take_away(other_operators)
    found = predicted(prepare_for_inference(model, dtype))
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(found, expected, atol=tolerance * float(expected.abs().max()), rtol=tolerance)


def test_deformable_sampling_has_the_same_gradients_without_them(
    other_operators: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = ((5, 7), (3, 4))
    inputs = [
        torch.rand(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((2, 47, 3, 5), (2, 11, 3, 2, 4, 2), (2, 11, 3, 2, 4))
    ]

    def gradients() -> tuple[Tensor, ...]:
        values, locations, weights = inputs
        return torch.autograd.grad(bag_sampling(values, sizes, locations, weights).square().sum(), inputs)

    expected = gradients()
    take_away(other_operators)
    for found, one in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(found, one)
