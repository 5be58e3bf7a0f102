from pathlib import Path

import pytest
import torch

from unimask.conversion.architecture import Stated, infer_mask2former
from unimask.errors import WeightsError
from unimask.models.build import build_model
from unimask.presets.mask2former import published_model
from unimask.presets.shared import BACKBONES, narrow_model


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(("queries", "frozen"), [(100, True), (200, False)])
def test_full_size_models_are_told_from_their_shapes(backbone: str, queries: int, frozen: bool) -> None:
    frozen = frozen or backbone.startswith("swin")
    config = published_model(backbone, queries, frozen)
    with torch.device("meta"):
        tensors = build_model(config, 13).state_dict()
    assert infer_mask2former(tensors, Stated(), Path("model.pth")) == (config, 13)


def test_narrow_decoders_are_told_from_their_shapes() -> None:
    backbone = published_model("resnet50").backbone
    config = narrow_model(backbone, channels=96, queries=7, feedforward_channels=160, decoder_layers=5)
    with torch.device("meta"):
        tensors = build_model(config, 1).state_dict()
    assert infer_mask2former(tensors, Stated(), Path("model.pth")) == (config, 1)


def test_a_swin_of_no_known_size_is_described() -> None:
    with torch.device("meta"):
        tensors = build_model(published_model("swin_tiny"), 3).state_dict()
    table = "backbone.stages.0.blocks.0.attention.position_bias"
    with pytest.raises(
        WeightsError, match=r"96 channels, \(2, 2, 6, 2\) blocks and windows of 3; known are swin_tiny"
    ):
        infer_mask2former({**tensors, table: torch.empty(25, 3)}, Stated(), Path("model.pth"))
