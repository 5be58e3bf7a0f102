"""Files of DETR's original release become our folders, and come back."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unimask.checkpoints.images import ModelFile, load_model, save_model
from unimask.checkpoints.tensors import load_tensors
from unimask.config.images import Experiment
from unimask.config.models import DetrConfig
from unimask.conversion import convert
from unimask.conversion.data_sets import made_up_categories
from unimask.conversion.run import import_original
from unimask.errors import WeightsError
from unimask.models.build import build_model
from unimask.presets.detr import detr

PRESET = detr("resnet50")
SMALL = DetrConfig(
    channels=32, heads=8, feedforward_channels=37, encoder_layers=2, decoder_layers=1, queries=5
)


def save(folder: Path, config: DetrConfig, classes: int) -> Experiment:
    torch.manual_seed(3)
    experiment = replace(PRESET, model=config)
    model_file = ModelFile(
        experiment=experiment,
        task="detection",
        categories=made_up_categories(classes, ()),
        licence="Apache-2.0",
        provenance="a test",
    )
    save_model(folder, build_model(config, classes), model_file)
    return experiment


@pytest.mark.parametrize("name", ["detr-r50.pth", "detr-r50-dc5.pth"])
def test_there_and_back(tmp_path: Path, name: str) -> None:
    config = replace(SMALL, backbone=replace(SMALL.backbone, dilated="dc5" in name))
    save(tmp_path / "ours", config, 91)
    convert(tmp_path / "ours", tmp_path / name, to="original")
    stored = torch.load(tmp_path / name, weights_only=True)
    assert set(stored) == {"model"}
    assert "transformer.encoder.layers.1.self_attn.in_proj_weight" in stored["model"]
    convert(tmp_path / name, tmp_path / "again", licence="Apache-2.0")
    _, model_file = load_model(tmp_path / "again")
    assert model_file.experiment.model == config
    assert (model_file.experiment.data.divisor, model_file.experiment.losses.class_weight) == (1, 1.0)
    assert model_file.categories.names[1] == "person"
    assert model_file.categories.names[12] == "unused 12"  # an id that COCO does not use
    assert model_file.categories.file_ids[90] == 90
    first = load_tensors(tmp_path / "ours" / "model.safetensors")
    second = load_tensors(tmp_path / "again" / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_mask_head_tells_its_heads_and_the_categories(tmp_path: Path) -> None:
    config = replace(SMALL, channels=128, heads=16, mask_head=True)
    save(tmp_path / "ours", config, 250)
    convert(tmp_path / "ours", tmp_path / "panoptic.pth", to="original")
    model_file = convert(tmp_path / "panoptic.pth", tmp_path / "again")
    assert model_file.experiment.model == config
    assert model_file.experiment.postprocess.object_threshold == 0.85
    names, things = model_file.categories.names, model_file.categories.is_thing
    assert (names[1], things[1]) == ("person", True)
    assert (names[200], things[200]) == ("rug-merged", False)


def test_a_file_with_a_tensor_missing_is_named(tmp_path: Path) -> None:
    model = build_model(SMALL, 7)
    save(tmp_path / "ours", SMALL, 7)
    convert(tmp_path / "ours", tmp_path / "whole.pth", to="original")
    tensors = torch.load(tmp_path / "whole.pth", weights_only=True)["model"]
    assert len(tensors) == len(model.state_dict())
    del tensors["bbox_embed.layers.1.bias"]
    with pytest.raises(WeightsError) as error:
        import_original(tensors, Path("broken.pth"), "")
    assert error.value.missing == ("bbox_embed.layers.1.bias",)
    del tensors["query_embed.weight"]
    with pytest.raises(WeightsError, match="not the weights of a DETR"):
        import_original(tensors, Path("broken.pth"), "")


def test_settings_that_others_do_not_have(tmp_path: Path) -> None:
    save(tmp_path / "ours", replace(SMALL, stride=16, positions="input_and_attention"), 5)
    with pytest.raises(WeightsError, match=r"stride is 16, positions is 'input_and_attention'"):
        convert(tmp_path / "ours", tmp_path / "theirs.pth", to="original")
