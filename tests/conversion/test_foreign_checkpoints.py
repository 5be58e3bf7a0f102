"""What other programs write around weights: checkpoints of trainings, wrappers, parts, averages."""

import argparse
import json
import logging
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unimask.checkpoints.images import ModelFile, load_model, save_model
from unimask.checkpoints.tensors import load_tensors, save_tensors
from unimask.config.data import DataConfig, Scale, Tiles
from unimask.config.models import BackboneConfig, DetrConfig, EomtConfig, ModelConfig
from unimask.conversion import convert, original
from unimask.conversion.data_sets import categories_for, made_up_categories, with_stuff
from unimask.conversion.foreign_files import read_foreign, unwrapped
from unimask.conversion.hugging_face_pixels import written_processor
from unimask.data.category_tables import load_categories
from unimask.errors import ConfigError, WeightsError
from unimask.models.build import build_model
from unimask.presets.detr import detr
from unimask.presets.mask2former import coco

CLASSES = 3
DETR = DetrConfig(
    backbone=BackboneConfig(name="resnet26"),
    channels=32,
    heads=4,
    feedforward_channels=48,
    dropout=0.2,
    encoder_layers=1,
    decoder_layers=1,
    queries=5,
)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """A small DETR under the names of the original release."""
    torch.manual_seed(3)
    model = build_model(DETR, CLASSES)
    about = ModelFile(
        experiment=replace(detr("resnet26"), model=DETR),
        task="detection",
        categories=made_up_categories(CLASSES),
        licence="MIT",
        provenance="random",
    )
    return original.DETR.write(model, about)


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in tensors.items()}


ARGUMENTS = argparse.Namespace(
    nheads=4, dropout=0.2, pre_norm=False, dilation=True, position_embedding="sine"
)
FORMS: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "as it is": lambda tensors: tensors,
    "model": lambda tensors: {"model": tensors, "optimizer": {"state": {}}, "epoch": 3},
    "state_dict of a trainer": lambda tensors: {
        "state_dict": {**prefixed("model.", tensors), "criterion.empty_weight": torch.ones(4)}
    },
    "several devices": lambda tensors: {"model": prefixed("module.", tensors)},
    "compiled": lambda tensors: prefixed("_orig_mod.", tensors),
    "compiled on several devices": lambda tensors: prefixed("module._orig_mod.", tensors),
    "compiled in parts": lambda tensors: {
        key.replace("transformer.", "transformer._orig_mod."): tensor for key, tensor in tensors.items()
    },
    "only an average": lambda tensors: {"model_ema": tensors, "epoch": 3},
    "an average in a table": lambda tensors: {"ema": {"module": prefixed("module.", tensors), "updates": 7}},
    "an averaged model": lambda tensors: {
        **prefixed("module.", tensors), "n_averaged": torch.tensor(40),
    },
    "an average beside": lambda tensors: {
        "model": tensors, "model_ema": {key: 0 * tensor for key, tensor in tensors.items()},
    },
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_found_in_every_form(form: str, weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(FORMS[form](weights), tmp_path / "a.pth")
    found = unwrapped(read_foreign(tmp_path / "a.pth").tensors)
    found = {key: tensor for key, tensor in found.items() if not key.startswith("criterion.")}
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], weights[key]) for key in weights)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("only an average", "the average of the weights (`model_ema`) is taken; it holds no others"),
        ("an average beside", "`model` is taken, the average in `model_ema` is left out"),
    ],
)
def test_averages_are_told_of(
    form: str, said: str, weights: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(FORMS[form](weights), tmp_path / "a.pth")
    read_foreign(tmp_path / "a.pth")
    assert said in caplog.text


def test_the_arguments_of_a_training_of_detr_are_heeded(weights: dict[str, Tensor], tmp_path: Path) -> None:
    """No tensor tells heads, dropout and dilation."""
    torch.save({"model": weights, "optimizer": {}, "args": ARGUMENTS}, tmp_path / "checkpoint.pth")
    convert(tmp_path / "checkpoint.pth", tmp_path / "found")
    model, about = load_model(tmp_path / "found")
    assert about.experiment.model == replace(DETR, backbone=replace(DETR.backbone, dilated=True))
    state = original.DETR.write(model, about)
    assert all(torch.equal(state[key], weights[key]) for key in weights)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("pre_norm", True, "args.pre_norm is True; only False can be converted"),
        ("position_embedding", "learned", "args.position_embedding is 'learned'"),
        ("nheads", "eight", "args.nheads is 'eight'"),
        ("dropout", float("nan"), "args.dropout is nan"),
    ],
)
def test_arguments_of_models_that_we_do_not_have(
    argument: str, value: object, message: str, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    arguments = argparse.Namespace(**{**vars(ARGUMENTS), argument: value})
    torch.save({"model": weights, "args": arguments}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=message):
        convert(tmp_path / "a.pth", tmp_path / "found")


def test_a_single_file_of_transformers_asks_for_its_folder(tmp_path: Path) -> None:
    names = ("model.pixel_level_module.decoder.level_embed", "class_predictor.weight")
    save_tensors(tmp_path / "a.safetensors", {name: torch.ones(3, 4) for name in names})
    with pytest.raises(WeightsError, match="names of Hugging Face transformers; give its folder"):
        convert(tmp_path / "a.safetensors", tmp_path / "found")


def test_a_checkpoint_without_weights_says_what_it_holds(tmp_path: Path) -> None:
    torch.save({"optimizer": {"lr": 1.0}, "epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="holds no weights, only 'optimizer', 'epoch'"):
        read_foreign(tmp_path / "a.pth")


NUMBERS: dict[str, Callable[[Tensor], Tensor]] = {
    "not finite": lambda tensor: torch.full_like(tensor, float("nan")),
    "not finite (NaN or infinity)": lambda tensor: torch.full_like(tensor, float("-inf")),
    "int64": lambda tensor: tensor.long(),
    "bool": lambda tensor: tensor > 0,
    "complex64": lambda tensor: tensor.to(torch.complex64),
    "float8_e4m3fn": lambda tensor: tensor.to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("message", NUMBERS)
@pytest.mark.parametrize("kind", ["pth", "pkl", "safetensors"])
def test_numbers_that_no_weight_has_are_refused(
    kind: str, message: str, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    source = tmp_path / f"a.{kind}"
    tensors = {**weights, "input_proj.weight": NUMBERS[message](weights["input_proj.weight"])}
    if kind == "safetensors":
        save_tensors(source, tensors)
    elif kind == "pth":
        torch.save({"model": tensors}, source)
    elif message in ("complex64", "float8_e4m3fn"):
        return  # arrays of such numbers are refused while they are unpickled (test_foreign_files.py)
    else:
        source.write_bytes(pickle.dumps({"model": {key: one.numpy() for key, one in tensors.items()}}))
    with pytest.raises(WeightsError, match=re.escape(message)) as caught:
        convert(source, tmp_path / "found")
    assert "input_proj.weight" in str(caught.value)
    assert not (tmp_path / "found").exists()


# folders of transformers


@pytest.fixture
def folder(weights: dict[str, Tensor], tmp_path: Path) -> Path:
    torch.save({"model": weights, "args": ARGUMENTS}, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "theirs", to="transformers")
    return tmp_path / "theirs"


def test_numbers_of_a_folder_are_refused_too(folder: Path, tmp_path: Path) -> None:
    tensors = load_tensors(folder / "model.safetensors")
    key = "model.input_projection.weight"
    for message, change in NUMBERS.items():
        save_tensors(folder / "model.safetensors", {**tensors, key: change(tensors[key])})
        with pytest.raises(WeightsError, match=re.escape(message)) as caught:
            convert(folder, tmp_path / "found")
        assert key in str(caught.value)


def split(folder: Path, listed: bool) -> None:
    tensors = load_tensors(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {key: f"model-0000{number % 3 + 1}-of-00003.safetensors" for number, key in enumerate(tensors)}
    for name in set(names.values()):
        save_tensors(folder / name, {key: tensors[key] for key in tensors if names[key] == name})
    if listed:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


@pytest.mark.parametrize("listed", [True, False])
def test_a_missing_part_is_named(folder: Path, listed: bool, tmp_path: Path) -> None:
    before = load_model(tmp_path / "ours")[0].state_dict()
    split(folder, listed)
    convert(folder, tmp_path / "found")
    found = load_model(tmp_path / "found")[0].state_dict()
    assert all(torch.equal(found[key], before[key]) for key in before)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(WeightsError, match="download") as caught:
        convert(folder, tmp_path / "found")
    assert ("model-00002-of-00003" in str(caught.value)) == listed


def test_an_index_does_not_lead_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    split(folder, listed=True)
    index = folder / "model.safetensors.index.json"
    for listed in ({"a": "../ours/model.safetensors"}, {"a": str(tmp_path / "ours/model.safetensors")}, {}):
        index.write_text(json.dumps({"weight_map": listed}))
        with pytest.raises(WeightsError, match="lists no files of weights in this folder"):
            convert(folder, tmp_path / "found")


def test_the_file_with_the_standard_name_is_taken(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = load_tensors(folder / "model.safetensors")
    for name in ("model_ema", "model.fp16"):
        save_tensors(folder / f"{name}.safetensors", {key: 0 * one for key, one in tensors.items()})
    convert(folder, tmp_path / "found")
    found, before = (load_model(tmp_path / name)[0].state_dict() for name in ("found", "ours"))
    assert all(torch.equal(found[key], before[key]) for key in before)
    assert "model.safetensors taken, model.fp16.safetensors, model_ema.safetensors left out" in caplog.text
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"it holds model\.fp16.*rename the file that is meant"):
        convert(folder, tmp_path / "found")


@pytest.mark.parametrize("number", [CLASSES - 1, CLASSES + 1])
def test_another_number_of_names_than_classes_is_refused(number: int, folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(label): f"kind {label}" for label in range(number)}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=f"names {number} categories in id2label, .* of {CLASSES} classes"):
        convert(folder, tmp_path / "found")
    config["id2label"] = {str(label + 1): f"kind {label}" for label in range(CLASSES)}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="id2label must name the labels from 0 to 2"):
        convert(folder, tmp_path / "found")


def test_frozen_norms_survive_transformers(tmp_path: Path) -> None:
    """Its files state a counter for every norm; norms that never counted are frozen."""
    experiment = coco("resnet26")
    assert experiment.model.backbone.freeze_norm
    masks = replace(
        experiment.model,
        pixel_decoder=replace(experiment.model.pixel_decoder, channels=64, mask_channels=32, layers=1),
        query_decoder=replace(experiment.model.query_decoder, queries=4, channels=64, layers=1),
    )
    model = build_model(masks, CLASSES)
    about = ModelFile(
        experiment=replace(experiment, model=masks),
        task="panoptic",
        categories=made_up_categories(CLASSES),
        licence="MIT",
        provenance="random",
    )
    save_model(tmp_path / "ours", model, about)
    convert(tmp_path / "ours", tmp_path / "theirs", to="transformers")
    stored = load_tensors(tmp_path / "theirs/model.safetensors")
    assert any(key.endswith("num_batches_tracked") for key in stored)
    convert(tmp_path / "theirs", tmp_path / "back")
    back, found = load_model(tmp_path / "back")
    assert found.experiment.model.backbone.freeze_norm
    state = model.state_dict()
    assert state.keys() == back.state_dict().keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in back.state_dict().items())


def test_what_transformers_cannot_be_told_is_said(caplog: pytest.LogCaptureFixture) -> None:
    data = DataConfig(view=Tiles(size=128, overlap=84), resize=Scale(factor=1.25))
    about = ModelFile(
        experiment=replace(coco("resnet50"), data=data),
        task="panoptic",
        categories=made_up_categories(CLASSES),
        licence="MIT",
        provenance="random",
    )
    assert not written_processor("Mask2FormerImageProcessor", about)["do_resize"]
    said = "transformers has no resize by a factor (1.25) and no tiles (128 pixels that share 84)"
    assert said in caplog.text


# names of categories


def test_own_names_are_kept_and_what_is_stuff_is_told_or_asked() -> None:
    table = load_categories("cityscapes")
    own = ("Road", "sidewalk", *(f"mine {label}" for label in range(3)), *table.names[5:])
    found = categories_for(ModelConfig(), 19, own)
    assert found.categories.names == own
    assert found.categories.is_thing == (False, False, True, True, True, *table.is_thing[5:])
    assert "mine 0, mine 1, mine 2; name stuff with --stuff" in found.assumed
    mostly = tuple(f"mine {label}" for label in range(10)) + table.names[10:]
    found = categories_for(ModelConfig(), 19, mostly)
    assert found.categories.names == mostly
    assert all(found.categories.is_thing)
    assert found.assumed


@pytest.mark.parametrize(
    ("model", "classes", "name"),
    [
        (ModelConfig(), 133, "coco_panoptic"),
        (ModelConfig(), 150, "ade20k"),
        (ModelConfig(), 19, "cityscapes"),
        (EomtConfig(), 65, "mapillary_vistas"),
    ],
)
def test_published_names_tell_things_and_stuff(
    model: ModelConfig | EomtConfig, classes: int, name: str
) -> None:
    table = load_categories(name)
    stated = tuple(f" {one.upper()}" for one in table.names)
    found = categories_for(model, classes, stated)
    assert (found.categories.is_thing, found.categories.file_ids) == (table.is_thing, table.file_ids)
    assert found.categories.names == stated
    assert found.assumed == ""
    unnamed = categories_for(model, classes, ())
    assert unnamed.categories == table
    assert f"they are those of {name}" in unnamed.assumed


def test_stuff_can_be_named() -> None:
    categories = replace(made_up_categories(4), names=("road, way", "sky", "car", "tree"))
    for words in (["road, way", "sky"], ["sky", "road, way"]):
        assert with_stuff(categories, words).is_thing == (False, False, True, True)
    assert with_stuff(categories, ["sky, tree"]).is_thing == (True, False, True, False)
    assert with_stuff(categories, []).is_thing == (True,) * 4
    with pytest.raises(ConfigError, match="no category is called 'water'; there are: road, way, sky"):
        with_stuff(categories, ["sky,water"])


def test_messages_stay_out_of_the_way_where_nothing_is_assumed(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        convert(folder, tmp_path / "found", stuff=["category 2"])
    assert load_model(tmp_path / "found")[1].categories.is_thing == (True, False, True)
    assert not caplog.records
