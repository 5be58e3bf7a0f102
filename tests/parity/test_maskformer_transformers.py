"""Random MaskFormers of transformers through our importer give equal logits in every layer, and come back."""

from pathlib import Path

import pytest
import torch
from parity.test_transformers import perturbed
from torch import Tensor, nn
from transformers import (
    DetrConfig,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    ResNetConfig,
    SwinConfig,
)

from unimask.checkpoints.images import load_model
from unimask.conversion import convert

STAGES = ["stage1", "stage2", "stage3", "stage4"]
CLASSES, QUERIES, LAYERS = 7, 11, 3


def random_model(backbone: SwinConfig | ResNetConfig, seed: int) -> nn.Module:
    decoder = DetrConfig(
        d_model=64,
        num_queries=QUERIES,
        encoder_layers=0,
        encoder_attention_heads=4,
        decoder_layers=LAYERS,
        decoder_attention_heads=4,
        decoder_ffn_dim=128,
    )
    config = MaskFormerConfig(
        backbone_config=backbone,
        decoder_config=decoder,
        num_labels=CLASSES,
        fpn_feature_size=64,
        mask_feature_size=32,
    )
    return perturbed(MaskFormerForInstanceSegmentation(config), seed)


@torch.inference_mode()
def predictions_of_layers(theirs: nn.Module, pixels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Class and mask logits after each layer; theirs leaves out the norm in all but the last."""
    states: list[Tensor] = []
    module = theirs.model.transformer_module.decoder
    hooks = [
        layer.register_forward_hook(lambda _, __, result: states.append(result)) for layer in module.layers
    ]
    said = theirs(pixel_values=pixels)
    for hook in hooks:
        hook.remove()
    layers = []
    for state in states:
        normed = module.layernorm(state)
        masks = torch.einsum(
            "bqc,bchw->bqhw", theirs.mask_embedder(normed), said.pixel_decoder_last_hidden_state
        )
        layers.append((theirs.class_predictor(normed), masks))
    torch.testing.assert_close(layers[-1][0], said.class_queries_logits)
    torch.testing.assert_close(layers[-1][1], said.masks_queries_logits)
    return layers


@pytest.mark.parametrize(
    ("backbone", "name"),
    [(ResNetConfig(out_features=STAGES), "resnet50"), (SwinConfig(out_features=STAGES), "swin_tiny")],
    ids=["resnet", "swin"],
)
def test_a_folder_of_transformers_predicts_the_same_and_comes_back(
    backbone: SwinConfig | ResNetConfig, name: str, tmp_path: Path
) -> None:
    theirs = random_model(backbone, seed=5)
    theirs.save_pretrained(tmp_path / "theirs")
    found = convert(tmp_path / "theirs", tmp_path / "ours")
    ours, model_file = load_model(tmp_path / "ours")
    assert model_file == found
    assert found.experiment.model.backbone.name == name
    assert found.experiment.model.query_decoder.heads == 4
    assert (found.experiment.losses.mask_term, found.experiment.postprocess.fill) == ("focal", "winner")
    assert len(found.categories) == CLASSES

    pixels = torch.randn(2, 3, 97, 131, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        prediction = ours(pixels)
    layers = predictions_of_layers(theirs, pixels)
    assert prediction.class_logits.shape == (LAYERS, 2, QUERIES, CLASSES + 1)
    assert len(layers) == LAYERS
    for index, (class_logits, mask_logits) in enumerate(layers):
        torch.testing.assert_close(prediction.class_logits[index], class_logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(prediction.mask_logits(index), mask_logits, atol=1e-4, rtol=0)
        assert mask_logits.std() > 0.1

    convert(tmp_path / "ours", tmp_path / "back", to="transformers")
    back, report = MaskFormerForInstanceSegmentation.from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert not any(report.values())
    before, after = theirs.state_dict(), back.state_dict()
    assert before.keys() == after.keys()
    unused = {
        key for key in before if ".encoder.model.layernorm." in key
    }  # of a classifier: we do not keep it
    for key in before.keys() - unused:
        assert torch.equal(before[key], after[key]), key
    assert back.config.decoder_config.decoder_layers == LAYERS
    assert back.config.id2label == {index: f"category {index + 1}" for index in range(CLASSES)}
