import pytest
import torch
from torch import nn

from unimask.config.models import (
    BackboneConfig,
    DetrConfig,
    ModelConfig,
    PixelDecoderConfig,
    QueryDecoderConfig,
)
from unimask.models.backbones import FrozenBatchNorm
from unimask.models.build import build_model
from unimask.models.optimize import prepare_for_inference
from unimask.nn.fused import FusedConvolution, FusedLinear


def model(backbone: str, freeze_norm: bool) -> nn.Module:
    torch.manual_seed(0)
    config = ModelConfig(
        backbone=BackboneConfig(name=backbone, freeze_norm=freeze_norm),
        pixel_decoder=PixelDecoderConfig(channels=32, mask_channels=32, layers=1, feedforward_channels=32),
        query_decoder=QueryDecoderConfig(queries=7, channels=32, layers=4, feedforward_channels=32),
    )
    made = build_model(config, 3)
    for module in made.modules():  # statistics and weights as of a trained model
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.data.add_(torch.rand_like(tensor) / 3)
    return made.eval()


@pytest.mark.parametrize("freeze_norm", [True, False])
@pytest.mark.parametrize("backbone", ["test_resnet", "tf_efficientnet_lite0", "swin_tiny"])
def test_the_numbers_stay(backbone: str, freeze_norm: bool) -> None:
    plain = model(backbone, freeze_norm)
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    ready = prepare_for_inference(plain)
    pixels = torch.randn(2, 3, 96, 64)
    with torch.inference_mode():
        expected, prediction = plain(pixels), ready(pixels)
    torch.testing.assert_close(prediction.class_logits, expected.class_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(prediction.mask_features, expected.mask_features, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in plain.state_dict().items())
    assert not any(isinstance(m, nn.BatchNorm2d | FrozenBatchNorm) for m in ready.modules())
    assert not any(module.training for module in ready.modules())
    with torch.inference_mode():
        again = prepare_for_inference(ready)(pixels)
    torch.testing.assert_close(again.class_logits, prediction.class_logits, atol=1e-5, rtol=1e-5)


def test_the_numbers_of_boxes_stay() -> None:
    torch.manual_seed(0)
    config = DetrConfig(
        backbone=BackboneConfig(name="test_resnet"),
        channels=128,
        feedforward_channels=64,
        encoder_layers=2,
        decoder_layers=2,
        queries=7,
        mask_head=True,
    )
    plain = build_model(config, 3).eval()
    pixels, valid = torch.randn(2, 3, 96, 64), torch.ones(2, 96, 64, dtype=torch.bool)
    valid[1, 70:] = False
    with torch.inference_mode():
        expected, prediction = plain(pixels, valid), prepare_for_inference(plain)(pixels, valid)
    torch.testing.assert_close(prediction.boxes, expected.boxes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(prediction.class_logits, expected.class_logits, atol=1e-4, rtol=1e-4)


class Crossed(nn.Module):
    """Its norm is listed behind a convolution, but comes before it."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        torch.nn.init.uniform_(self.norm.weight, 0.5, 2.0)
        torch.nn.init.uniform_(self.norm.bias, 0.5, 2.0)

    def forward(self, pixels: torch.Tensor) -> dict[int, torch.Tensor]:
        return {4: self.convolution(self.norm(pixels))}


def test_a_wrong_guess_changes_nothing() -> None:
    holder = nn.Module()
    holder.backbone = Crossed().eval()
    ready = prepare_for_inference(holder)
    pixels = torch.randn(1, 3, 5, 7)
    with torch.inference_mode():
        found, expected = ready.get_submodule("backbone")(pixels)[4], holder.backbone(pixels)[4]
    torch.testing.assert_close(found, expected)  # to rounding: the two convolutions may run other kernels


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "tf_efficientnet_lite0"])
def test_sums_and_activations_are_part_of_the_convolutions(backbone: str) -> None:
    plain = model(backbone, freeze_norm=False)
    ready = prepare_for_inference(plain).get_submodule("backbone")
    kinds = {type(module) for module in ready.modules()}
    assert FusedConvolution in kinds
    assert not kinds & {nn.Conv2d, nn.ReLU, nn.ReLU6}
    pixels = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        expected, found = plain.get_submodule("backbone")(pixels), ready(pixels)
    for stride, maps in expected.items():
        torch.testing.assert_close(found[stride], maps, atol=1e-4 * float(maps.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("backbone", ["resnet18", "tf_efficientnet_lite0", "swin_tiny"])
def test_weights_have_the_type_but_for_the_first_layers(backbone: str) -> None:
    plain = model(backbone, freeze_norm=False)
    ready = prepare_for_inference(plain, torch.bfloat16)
    first = [m for m in ready.modules() if isinstance(m, FusedConvolution) and m.weight.shape[1] == 3]
    assert [one.weight.dtype for one in first] == [torch.float32]
    assert not any(isinstance(m, nn.Linear) for m in ready.modules())
    layers = [m for m in ready.modules() if isinstance(m, FusedLinear)]
    assert {layer.weight.dtype for layer in layers} == {torch.bfloat16}
    assert all(parameter.dtype == torch.float32 for parameter in plain.parameters())
    pixels = torch.randn(1, 3, 64, 96)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected, prediction = plain(pixels), ready(pixels)
    spread = float(expected.mask_features.float().std())
    torch.testing.assert_close(
        prediction.mask_features.float(), expected.mask_features.float(), atol=0.3 * spread, rtol=0.1
    )
