"""Random models of transformers through our importer give equal logits in every layer, and come back."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    ResNetConfig,
    SwinConfig,
)

from unimask.checkpoints.images import load_model
from unimask.checkpoints.tensors import load_tensors
from unimask.config.models import PixelDecoderConfig, QueryDecoderConfig
from unimask.conversion import convert, hugging_face
from unimask.conversion.rules import to_ours
from unimask.models.build import VISIBILITY, build_pixel_decoder, build_query_decoder
from unimask.models.mask_classifier import MaskClassifier
from unimask.nn.swin import Swin

STAGES = ["stage1", "stage2", "stage3", "stage4"]
CLASSES = 7


def perturbed(model: nn.Module, seed: int) -> nn.Module:
    """The model in eval mode, with noise in every parameter and statistic, so that all of them matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point() or name == "criterion.empty_weight":
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(1 + 0.2 * noise.abs())
            elif tensor.ndim == 1 and name.endswith("weight"):
                tensor.copy_(1 + 0.2 * noise)
            elif tensor.ndim == 1 or "level_embed" in name or "bias_table" in name:
                tensor.copy_(0.1 * noise)
            elif "queries" in name:
                tensor.copy_(noise)
            elif "sampling_offsets" in name:
                tensor.copy_(0.02 * noise)
            else:
                tensor.copy_(noise / tensor[0].numel() ** 0.5)
    return model.eval()


def random_model(backbone: SwinConfig | ResNetConfig, seed: int) -> nn.Module:
    config = Mask2FormerConfig(
        backbone_config=backbone,
        num_labels=CLASSES,
        feature_size=64,
        mask_feature_size=32,
        hidden_dim=64,
        encoder_feedforward_dim=96,
        dim_feedforward=128,
        num_attention_heads=4,
        encoder_layers=2,
        decoder_layers=5,
        num_queries=11,
        output_auxiliary_logits=True,
    )
    return perturbed(Mask2FormerForUniversalSegmentation(config), seed)


def assert_equal_predictions(theirs: nn.Module, ours: MaskClassifier, size: tuple[int, int]) -> None:
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = theirs(pixel_values=pixels, pixel_mask=torch.ones(2, *size, dtype=torch.long))
        prediction = ours(pixels)
    layers = [
        *((a["class_queries_logits"], a["masks_queries_logits"]) for a in expected.auxiliary_logits),
        (expected.class_queries_logits, expected.masks_queries_logits),
    ]
    assert prediction.class_logits.shape == (5, 2, 11, CLASSES + 1)
    assert len(layers) == 5
    for index, (class_logits, mask_logits) in enumerate(layers):
        torch.testing.assert_close(prediction.class_logits[index], class_logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(prediction.mask_logits(index), mask_logits, atol=1e-4, rtol=0)
        assert (mask_logits > 0).any()
        assert mask_logits.std() > 0.1


@pytest.mark.parametrize(
    ("backbone", "name", "size"),
    [
        (ResNetConfig(out_features=STAGES), "resnet50", (97, 131)),
        (SwinConfig(out_features=STAGES), "swin_tiny", (97, 131)),
    ],
    ids=["resnet", "swin"],
)
def test_a_folder_of_transformers_predicts_the_same_and_comes_back(
    backbone: SwinConfig | ResNetConfig, name: str, size: tuple[int, int], tmp_path: Path
) -> None:
    theirs = random_model(backbone, seed=5)
    theirs.save_pretrained(tmp_path / "theirs")
    found = convert(tmp_path / "theirs", tmp_path / "ours")
    ours, model_file = load_model(tmp_path / "ours")
    assert model_file == found
    assert found.experiment.model.backbone.name == name
    assert len(found.categories) == CLASSES
    assert_equal_predictions(theirs, ours, size)

    convert(tmp_path / "ours", tmp_path / "back", to="transformers")
    back, report = Mask2FormerForUniversalSegmentation.from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert not any(report.values())
    before, after = theirs.state_dict(), back.state_dict()
    assert before.keys() == after.keys()
    unused = {key for key in before if "encoder.swin.layernorm." in key}  # of a classifier: we do not keep it
    for key in before.keys() - unused:
        assert torch.equal(before[key], after[key]), key
    assert back.config.decoder_layers == theirs.config.decoder_layers
    assert back.config.id2label == {index: f"category {index + 1}" for index in range(CLASSES)}


@pytest.mark.parametrize("size", [(64, 96), (61, 83), (101, 37)])
def test_small_swins_of_other_windows_predict_the_same(size: tuple[int, int], tmp_path: Path) -> None:
    depths, heads = (2, 1, 3, 1), (1, 2, 4, 2)
    config = SwinConfig(
        embed_dim=16, depths=list(depths), num_heads=list(heads), window_size=4, out_features=STAGES
    )
    theirs = random_model(config, seed=6)
    theirs.save_pretrained(tmp_path)
    tensors = hugging_face.MASK2FORMER.current_names(load_tensors(tmp_path / "model.safetensors"))
    renamed = to_ours(tensors, hugging_face.MASK2FORMER.rules).tensors
    ours = around(Swin(embed_channels=16, depths=depths, heads=heads, window=4, drop_path_rate=0.0))
    ours.load_state_dict(renamed)
    assert_equal_predictions(theirs, ours.eval(), size)


def around(backbone: nn.Module) -> MaskClassifier:
    """A model of the small dimensions above, with any backbone."""
    pixel = PixelDecoderConfig(channels=64, mask_channels=32, layers=2, heads=4, feedforward_channels=96)
    query = QueryDecoderConfig(queries=11, channels=64, heads=4, feedforward_channels=128, layers=4)
    return MaskClassifier(
        backbone,
        build_pixel_decoder(pixel, backbone.channels),
        build_query_decoder(query, {32: 64, 16: 64, 8: 64}, 32, CLASSES),
        VISIBILITY["masked"],
    )
