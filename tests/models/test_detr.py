from dataclasses import replace
from typing import Literal

import pytest
import torch

from unimask.config.models import BackboneConfig, DetrConfig
from unimask.errors import ConfigError
from unimask.models import optimize
from unimask.models.backbones import build_backbone
from unimask.models.build import build_model
from unimask.models.detr import Detr
from unimask.models.detr_masks import DetrWithMasks
from unimask.structures import BoxMaskPrediction, BoxPrediction

SMALL = DetrConfig(
    backbone=BackboneConfig(name="test_resnet"),
    channels=128,
    heads=8,
    feedforward_channels=37,
    dropout=0.3,
    encoder_layers=1,
    decoder_layers=3,
    queries=5,
    mask_head=True,
)
CLASSES = 4


@pytest.fixture(scope="module")
def model() -> DetrWithMasks:
    torch.manual_seed(1)
    built = build_model(SMALL, CLASSES)
    assert isinstance(built, DetrWithMasks)
    return built.eval()


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.randn(2, 3, 70, 101, generator=torch.Generator().manual_seed(2))
    valid = torch.ones(2, 70, 101, dtype=torch.bool)
    return pixels, valid


def test_every_layer_predicts_classes_and_boxes(model: DetrWithMasks) -> None:
    pixels, _ = pictures()
    with torch.inference_mode():
        prediction = model.detr(pixels)
    assert isinstance(prediction, BoxPrediction)
    assert prediction.class_logits.shape == (3, 2, 5, CLASSES + 1)
    assert prediction.boxes.shape == (3, 2, 5, 4)
    assert 0 <= prediction.boxes.min() <= prediction.boxes.max() <= 1
    assert prediction.finite().tolist() == [True, True]


def test_no_mask_means_all_is_valid(model: DetrWithMasks) -> None:
    pixels, valid = pictures()
    with torch.inference_mode():
        assert torch.equal(model.detr(pixels).boxes, model.detr(pixels, valid).boxes)


def test_the_transformer_never_sees_padding(model: DetrWithMasks) -> None:
    valid = torch.zeros(1, 3, 5, dtype=torch.bool)
    valid[:, :2, :3] = True
    maps = {32: torch.randn(1, model.detr.backbone.channels[32], 3, 5)}
    other = {32: torch.where(valid[:, None], maps[32], torch.full_like(maps[32], 9.0))}
    small = {32: maps[32][:, :, :2, :3]}
    with torch.inference_mode():
        first, second = model.detr.detect(maps, valid), model.detr.detect(other, valid)
        third = model.detr.detect(small, valid[:, :2, :3])
    torch.testing.assert_close(first.boxes, second.boxes)
    torch.testing.assert_close(first.boxes, third.boxes)
    torch.testing.assert_close(first.class_logits, third.class_logits)


def test_masks_do_not_depend_on_how_many_are_made_at_once(
    model: DetrWithMasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, valid = pictures()
    with torch.inference_mode():
        prediction = model(pixels, valid)
        monkeypatch.setattr(optimize, "QUERIES_AT_ONCE", 2)
        again = optimize.prepare_for_inference(model)(pixels, valid)
    assert isinstance(prediction, BoxMaskPrediction)
    assert prediction.mask_logits.shape == (2, 5, 18, 26)
    assert prediction.boxes.shape == (3, 2, 5, 4)
    assert torch.equal(prediction.of_boxes().boxes, model.detr(pixels, valid).boxes)
    of_masks = prediction.of_masks().mask_logits()
    torch.testing.assert_close(of_masks, prediction.mask_logits)
    torch.testing.assert_close(prediction.mask_logits, again.mask_logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("positions", ["attention", "input_and_attention"])
def test_only_positions_in_the_input_tell_equal_cells_apart(
    positions: Literal["attention", "input_and_attention"],
) -> None:
    built = build_model(replace(SMALL, mask_head=False, stride=8, positions=positions), CLASSES)
    assert isinstance(built, Detr)
    built.eval()
    same = torch.randn(1, built.backbone.channels[8], 1, 1).expand(-1, -1, 5, 7)
    with torch.inference_mode():
        memory = built.detect({8: same}, torch.ones(1, 5, 7, dtype=torch.bool)).memory
    assert memory.shape[2:] == (5, 7)
    alike = torch.allclose(memory, memory[:, :, :1, :1].expand_as(memory), atol=1e-5)
    assert alike == (positions == "attention")


def test_a_finer_stride_with_a_mask_head() -> None:
    built = build_model(replace(SMALL, stride=8), CLASSES).eval()
    with torch.inference_mode():
        prediction = built(torch.randn(1, 3, 64, 96))
    assert isinstance(prediction, BoxMaskPrediction)
    assert prediction.mask_logits.shape == (1, 5, 16, 24)


def test_all_parameters_but_one_learn() -> None:
    torch.manual_seed(4)
    config = DetrConfig(
        backbone=BackboneConfig(name="test_resnet", freeze_norm=False),
        channels=32,
        heads=4,
        feedforward_channels=37,
        encoder_layers=1,
        decoder_layers=2,
        queries=5,
    )
    built = build_model(config, CLASSES)
    assert isinstance(built, Detr)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # some start as zeros
    prediction = built(*pictures())
    (prediction.class_logits.square().sum() + prediction.boxes.square().sum()).backward()
    still = {name for name, p in built.named_parameters() if p.grad is None or not bool(p.grad.any())}
    # queries start as zeros, so the values of the first self-attention are all alike
    assert still <= {"query_decoder.layers.0.self.attention.input_weight"}


def test_a_dilated_last_stage_keeps_the_size() -> None:
    pixels = torch.zeros(1, 3, 64, 96)
    plain = build_backbone(BackboneConfig(name="resnet18"))(pixels)
    dilated = build_backbone(BackboneConfig(name="resnet18", dilated=True))(pixels)
    assert plain[32].shape[2:] == (2, 3)
    assert dilated[32].shape[2:] == dilated[16].shape[2:] == plain[16].shape[2:] == (4, 6)
    assert dilated[32].shape[1] == plain[32].shape[1]


@pytest.mark.parametrize(
    ("config", "path"),
    [
        (DetrConfig(backbone=BackboneConfig(name="swin_tiny", dilated=True)), "model.backbone.dilated"),
        (DetrConfig(backbone=BackboneConfig(name="convnext_atto", dilated=True), heads=7), "model.channels"),
        (DetrConfig(channels=6, heads=3), "model.channels"),
        (DetrConfig(dropout=1.0), "model.dropout"),
        (DetrConfig(queries=0), "model.queries"),
        (DetrConfig(encoder_layers=0), "model.encoder_layers"),
        (
            DetrConfig(backbone=BackboneConfig(name="test_resnet"), channels=64, mask_head=True),
            "model.channels",
        ),
    ],
)
def test_impossible_settings_are_named(config: DetrConfig, path: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_model(config, CLASSES)
    assert error.value.path == path
