"""Random DETR models of transformers through our importer give equal results, and come back.

With `auxiliary_loss=True` theirs normalises twice, which is not DETR.
"""

from pathlib import Path

import pytest
import torch
from parity.test_transformers import perturbed
from torch import nn
from transformers import DetrConfig as TheirConfig
from transformers import DetrForObjectDetection, DetrForSegmentation

from unimask.checkpoints.images import load_model
from unimask.checkpoints.tensors import load_tensors
from unimask.config.models import DetrConfig
from unimask.conversion import convert
from unimask.structures import BoxMaskPrediction, BoxPrediction

CLASSES = 7


def random_model(backbone: str, kind: type[nn.Module], dilated: bool) -> nn.Module:
    described = {
        "model_type": "timm_backbone",
        "backbone": backbone,
        "out_indices": [1, 2, 3, 4],
        "use_pretrained_backbone": False,
        "output_stride": 16 if dilated else None,
    }
    config = TheirConfig(
        backbone_config=described,
        num_labels=CLASSES,
        d_model=128 if kind is DetrForSegmentation else 64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        num_queries=11,
        auxiliary_loss=False,
    )
    return perturbed(kind(config), 5)


@pytest.mark.parametrize(
    ("backbone", "kind", "dilated"),
    [
        ("resnet18", DetrForObjectDetection, False),
        ("resnet26", DetrForObjectDetection, True),
        ("resnet18", DetrForSegmentation, False),
    ],
)
def test_equal_predictions_and_back(
    tmp_path: Path, backbone: str, kind: type[nn.Module], dilated: bool
) -> None:
    theirs = random_model(backbone, kind, dilated)
    theirs.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours")
    ours, model_file = load_model(tmp_path / "ours")
    config = model_file.experiment.model
    assert isinstance(config, DetrConfig)
    assert (config.backbone.name, config.backbone.dilated) == (backbone, dilated)
    pixels = torch.randn(2, 3, 95, 130, generator=torch.Generator().manual_seed(3))
    valid = torch.ones(2, 95, 130, dtype=torch.bool)
    valid[1, 70:] = False
    valid[1, :, 90:] = False
    with torch.inference_mode():
        expected = theirs(pixel_values=pixels, pixel_mask=valid.long())
        prediction = ours(pixels, valid)
    torch.testing.assert_close(prediction.class_logits[-1], expected.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(prediction.boxes[-1], expected.pred_boxes, atol=1e-4, rtol=0)
    if kind is DetrForSegmentation:
        assert isinstance(prediction, BoxMaskPrediction)
        torch.testing.assert_close(prediction.mask_logits, expected.pred_masks, atol=1e-4, rtol=1e-4)
    else:
        assert isinstance(prediction, BoxPrediction)
    convert(tmp_path / "ours", tmp_path / "back", to="transformers")
    first = load_tensors(tmp_path / "theirs" / "model.safetensors")
    second = load_tensors(tmp_path / "back" / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    again = kind.from_pretrained(tmp_path / "back")
    with torch.inference_mode():
        assert torch.equal(again.eval()(pixel_values=pixels, pixel_mask=valid.long()).logits, expected.logits)
