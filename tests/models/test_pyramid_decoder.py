"""MaskFormer's pixel decoder: sizes, memory, parameters, settings that cannot be."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from unimask.config.models import BackboneConfig, ModelConfig, PixelDecoderConfig, QueryDecoderConfig
from unimask.errors import ConfigError
from unimask.models.backbones import build_backbone
from unimask.models.build import build_model, build_pixel_decoder, memory_channels
from unimask.models.pixel_decoders import PyramidPixelDecoder
from unimask.models.timm_backbone import MULTI_GRID

CHANNELS = {4: 3, 8: 5, 16: 7, 32: 11}
SIZES = {4: (19, 27), 8: (10, 14), 16: (5, 7), 32: (3, 4)}
PIXEL = PixelDecoderConfig(
    kind="pyramid", strides=(32,), channels=32, mask_channels=13, layers=2, heads=4, feedforward_channels=17
)


def decoder(layers: int, **settings: object) -> PyramidPixelDecoder:
    torch.manual_seed(2)
    built = build_pixel_decoder(replace(PIXEL, layers=layers, **settings), CHANNELS)
    assert isinstance(built, PyramidPixelDecoder)
    return built


def features(batch: int = 2) -> dict[int, Tensor]:
    return {stride: torch.randn(batch, CHANNELS[stride], *SIZES[stride]) for stride in CHANNELS}


@pytest.mark.parametrize("layers", [0, 2])
def test_maps_of_odd_sizes_and_their_channels(layers: int) -> None:
    seen = features()
    memory, mask_features = decoder(layers)(dict(seen))
    assert mask_features.shape == (2, 13, 19, 27)
    expected = memory_channels(replace(PIXEL, layers=layers), CHANNELS)
    assert list(memory) == list(expected) == [32, 16, 8]
    for stride, maps in memory.items():
        assert maps.shape == (2, expected[stride], *SIZES[stride])
    assert (memory[32] is seen[32]) == (layers == 0)


@pytest.mark.parametrize("layers", [0, 2])
def test_every_parameter_takes_part(layers: int) -> None:
    pixel_decoder = decoder(layers)
    _, mask_features = pixel_decoder(features())
    mask_features.square().sum().backward()
    for name, parameter in pixel_decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert not pixel_decoder.mask_features.bias.any()


def test_coarse_maps_are_repeated_not_blended() -> None:
    pixel_decoder, seen = decoder(0).eval(), features(1)
    coarse = pixel_decoder.entry(seen[32])
    lateral = pixel_decoder.laterals["16"](seen[16])
    repeated = functional.interpolate(coarse, SIZES[16], mode="nearest")
    memory, _ = pixel_decoder(dict(seen))
    torch.testing.assert_close(memory[16], pixel_decoder.fusions["16"](lateral + repeated))


def test_dropout_acts_in_training_only() -> None:
    pixel_decoder, seen = decoder(2, dropout=0.5), features()
    assert not torch.equal(pixel_decoder(dict(seen))[1], pixel_decoder(dict(seen))[1])
    pixel_decoder.eval()
    assert torch.equal(pixel_decoder(dict(seen))[1], pixel_decoder(dict(seen))[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": (32, 16, 8)}, r"strides: a pyramid's encoder refines the coarsest map only, \(32,\)"),
        ({"strides": (16,)}, "coarsest map only"),
        ({"heads": 5}, "cannot be divided by 5"),
        ({"dropout": 1.0}, "dropout: must be below 1; got 1.0"),
    ],
)
def test_impossible_settings(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_pixel_decoder(replace(PIXEL, **changes), CHANNELS)


def test_masked_attention_and_all_strides_work_on_a_pyramid() -> None:
    query = QueryDecoderConfig(queries=7, channels=32, heads=4, layers=3, feedforward_channels=16)
    config = ModelConfig(
        backbone=BackboneConfig(name="test_resnet"),
        pixel_decoder=replace(PIXEL, layers=0),
        query_decoder=query,
    )
    prediction = build_model(config, 5)(torch.randn(2, 3, 64, 96))
    assert prediction.class_logits.shape == (4, 2, 7, 6)


def test_the_resnet_of_deeplab() -> None:
    with torch.device("cpu"):
        backbone = build_backbone(BackboneConfig(name="resnet50_deeplab")).eval()
    network = backbone.network
    dilations = [block.conv2.dilation for block in network.layer4]
    assert dilations == [(dilation, dilation) for dilation in MULTI_GRID]
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 65, 83))
    assert {stride: tuple(values.shape[1:]) for stride, values in maps.items()} == {
        4: (256, 17, 21),
        8: (512, 9, 11),
        16: (1024, 5, 6),
        32: (2048, 3, 3),
    }
    with pytest.raises(ConfigError, match=r"did you mean .*resnet101_deeplab"):
        build_backbone(BackboneConfig(name="resnet101_deplab"))
