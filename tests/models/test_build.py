from dataclasses import replace

import pytest
import torch

from unimask.config.models import BackboneConfig, ModelConfig, PixelDecoderConfig, QueryDecoderConfig
from unimask.errors import ConfigError
from unimask.models.build import build_model, build_pixel_decoder, build_query_decoder

TINY = ModelConfig(
    backbone=BackboneConfig(name="test_resnet"),
    pixel_decoder=PixelDecoderConfig(channels=32, mask_channels=32, layers=1, feedforward_channels=32),
    query_decoder=QueryDecoderConfig(queries=7, channels=32, layers=4, feedforward_channels=32),
)

ABLATIONS = {
    "none": {},
    "full visibility": {"visibility": "full"},
    "stride 32 only": {"memory_strides": (32,)},
    "stride 16 only": {"memory_strides": (16,)},
    "stride 8 only": {"memory_strides": (8,)},
    "no level embedding": {"level_embedding": False},
    "self-attention first": {"order": ("self", "cross", "feedforward")},
    "zeros as query features": {"query_features": "zeros"},
    "no prediction before the layers": {"predict_before_layers": False},
    "dropout": {"dropout": 0.1},
    "MaskFormer": {
        "visibility": "full",
        "memory_strides": (32,),
        "level_embedding": False,
        "order": ("self", "cross", "feedforward"),
        "query_features": "zeros",
        "predict_before_layers": False,
        "dropout": 0.1,
        "layers": 6,
    },
}


@pytest.mark.parametrize("changes", ABLATIONS.values(), ids=ABLATIONS.keys())
def test_every_ablation_learns(changes: dict[str, object]) -> None:
    torch.manual_seed(0)
    query = replace(TINY.query_decoder, **changes)
    model = build_model(replace(TINY, query_decoder=query), num_classes=5)
    prediction = model(torch.randn(2, 3, 64, 96))
    assert prediction.class_logits.shape == (query.layers + query.predict_before_layers, 2, 7, 6)
    loss = prediction.class_logits.square().mean() + sum(
        prediction.mask_logits(index).square().mean() for index in range(len(prediction.class_logits))
    )
    loss.backward()
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_the_default_is_the_size_of_the_paper() -> None:
    config = ModelConfig()
    with torch.device("meta"):
        pixel = build_pixel_decoder(config.pixel_decoder, {4: 256, 8: 512, 16: 1024, 32: 2048})
        query = build_query_decoder(config.query_decoder, {32: 256, 16: 256, 8: 256}, 256, num_classes=133)
    parameters = sum(p.numel() for part in (pixel, query) for p in part.parameters())
    assert len(pixel.state_dict()) + len(query.state_dict()) == 292
    assert parameters == 20_528_966
    assert query.heads.classes.out_features == 134
    assert (len(pixel.encoder.layers), len(query.layers)) == (6, 9)


def test_submodules_and_seed() -> None:
    torch.manual_seed(1)
    first = build_model(TINY, num_classes=3)
    torch.manual_seed(1)
    second = build_model(TINY, num_classes=3)
    assert [name for name, _ in first.named_children()] == ["backbone", "pixel_decoder", "query_decoder"]
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))


PIXEL_MISTAKES = [
    ({"channels": 100}, "model.pixel_decoder.channels: 100 channels cannot be divided by 32"),
    ({"channels": 0}, "model.pixel_decoder.channels"),
    ({"position_octaves": -1}, "model.pixel_decoder.position_octaves: must be at least 0; got -1"),
    ({"heads": 5}, "model.pixel_decoder.channels: 32 channels cannot be divided by 5"),
    ({"heads": 0}, "model.pixel_decoder.heads: must be at least 1; got 0"),
    ({"strides": (64, 32)}, r"model.pixel_decoder.strides: \(64, 32\).*\[4, 8, 16, 32\]"),
    ({"strides": (32, 32, 8)}, "different strides"),
    ({"strides": ()}, "different strides"),
    ({"points": 0}, "model.pixel_decoder.points"),
    ({"mask_channels": 0}, "model.pixel_decoder.mask_channels"),
]

QUERY_MISTAKES = [
    ({"channels": 30}, "model.query_decoder.channels: 30 channels cannot be divided by 8"),
    ({"channels": 42, "heads": 7}, "sine"),
    ({"memory_strides": (32, 4)}, r"model.query_decoder.memory_strides: .*\[8, 16, 32\]"),
    ({"memory_strides": ()}, "different strides"),
    ({"order": ("cross", "self")}, "model.query_decoder.order: .*each of cross, self, feedforward"),
    ({"order": ("cross", "cross", "self")}, "once"),
    ({"layers": 0}, "model.query_decoder.layers"),
    ({"queries": 0}, "model.query_decoder.queries"),
    ({"dropout": 1.5}, "model.query_decoder.dropout"),
]


@pytest.mark.parametrize(("changes", "message"), PIXEL_MISTAKES)
def test_impossible_pixel_decoders(changes: dict[str, object], message: str) -> None:
    config = replace(TINY, pixel_decoder=replace(TINY.pixel_decoder, **changes))
    with pytest.raises(ConfigError, match=message):
        build_model(config, num_classes=5)


@pytest.mark.parametrize(("changes", "message"), QUERY_MISTAKES)
def test_impossible_query_decoders(changes: dict[str, object], message: str) -> None:
    config = replace(TINY, query_decoder=replace(TINY.query_decoder, **changes))
    with pytest.raises(ConfigError, match=message):
        build_model(config, num_classes=5)
