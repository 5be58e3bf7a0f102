"""DETR's transformer, heads and mask head against the original's tensors."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from unimask.config.models import BackboneConfig, DetrConfig
from unimask.conversion import original
from unimask.conversion.rules import to_ours, to_theirs
from unimask.models.build import build_model
from unimask.models.detr import Detr, valid_cells
from unimask.models.detr_masks import DetrWithMasks, MaskPyramid, QueryAttentionMaps
from unimask.ops.positions import padded_sine_positions

MANIFESTS = {
    "detr_resnet50": DetrConfig(),
    "detr_resnet50_dc5": DetrConfig(backbone=BackboneConfig(dilated=True)),
    "detr_resnet101": DetrConfig(backbone=BackboneConfig(name="resnet101")),
    "detr_resnet50_panoptic": DetrConfig(mask_head=True),
}


def state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of a golden file under our names."""
    theirs = {
        key.removeprefix("state_dict."): t for key, t in tensors.items() if key.startswith("state_dict.")
    }
    renamed = to_ours(theirs, original.DETR.rules)
    assert not renamed.unknown
    return renamed.tensors


@pytest.fixture(scope="module")
def stored(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "detr_small.safetensors")


@pytest.fixture(scope="module")
def detr(stored: dict[str, Tensor]) -> Detr:
    config = DetrConfig(
        backbone=BackboneConfig(name="test_resnet"),
        channels=64,
        heads=4,
        feedforward_channels=128,
        encoder_layers=2,
        decoder_layers=2,
        queries=10,
    )
    model = build_model(config, 7)
    assert isinstance(model, Detr)
    model.projection = nn.Conv2d(48, 64, 1)
    model.backbone = nn.Identity()
    model.load_state_dict(state(stored))
    return model.eval()


def test_transformer_and_heads(detr: Detr, stored: dict[str, Tensor]) -> None:
    valid = ~stored["input.padding_mask"]
    with torch.inference_mode():
        seen = detr.detect({32: stored["input.features"]}, valid)
    rows = seen.memory.movedim(1, -1)[valid]
    expected = stored["encoder_memory"].movedim(1, -1)[valid]
    torch.testing.assert_close(rows, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen.queries, stored["decoder_states"], atol=1e-5, rtol=1e-5)
    for layer in range(2):
        for name, found in (("class_logits", seen.class_logits), ("boxes", seen.boxes)):
            expected = stored[f"pred.{layer}.{name}"]
            torch.testing.assert_close(found[layer], expected, atol=1e-5, rtol=1e-5)


def test_positions(stored: dict[str, Tensor]) -> None:
    for mask, expected in (
        (stored["input.padding_mask"], stored["position_encoding"]),
        (stored["posenc.0.mask"], stored["posenc.0.out"]),
        (stored["posenc.2.mask"], stored["posenc.2.out"]),
    ):
        found = padded_sine_positions(~mask, expected.shape[1]).movedim(-1, 1)
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_padding_at_the_size_of_maps(stored: dict[str, Tensor]) -> None:
    valid = ~stored["padding.batch_mask"]
    for level in range(4):
        expected = ~stored[f"padding.feature_mask.{level}"]
        assert torch.equal(valid_cells(valid, tuple(expected.shape[1:])), expected)


def test_mask_head(golden: Path) -> None:
    tensors = load_file(golden / "detr_mask_head_small.safetensors")
    facts = json.loads((golden / "detr_mask_head_small.json").read_text())["hyper_parameters"]
    attention = QueryAttentionMaps(64, 8)
    pyramid = MaskPyramid(
        channels=64, heads=8, widest=facts["context_dim"], in_channels=tuple(facts["fpn_dims"])
    )
    nn.ModuleDict({"attention": attention, "pyramid": pyramid}).load_state_dict(state(tensors))
    with torch.inference_mode():
        maps = attention(
            tensors["input.decoder_states"], tensors["input.encoder_memory"], ~tensors["input.padding_mask"]
        )
        torch.testing.assert_close(maps, tensors["attention_maps"], atol=1e-6, rtol=1e-5)
        pyramid_maps = tuple(tensors[f"input.fpn.{level}"] for level in range(3))
        logits = pyramid(tensors["input.projected_features"], maps, pyramid_maps)
        torch.testing.assert_close(logits, tensors["mask_logits"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MANIFESTS)
def test_full_size_names_and_shapes(golden: Path, name: str) -> None:
    expected = json.loads((golden / f"key_manifests/{name}.json").read_text())["shapes"]
    config = MANIFESTS[name]
    with torch.device("meta"):
        model = build_model(config, 91 if name != "detr_resnet50_panoptic" else 250)
    assert isinstance(model, DetrWithMasks) == config.mask_head
    renamed = to_theirs(model.state_dict(), original.DETR.rules)
    assert not renamed.unknown
    assert {key: list(tensor.shape) for key, tensor in renamed.tensors.items()} == expected
    back = to_ours(renamed.tensors, original.DETR.rules)
    assert not back.unknown
    assert back.tensors.keys() == model.state_dict().keys()
