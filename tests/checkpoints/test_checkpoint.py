import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors
import torch

from unimask.checkpoints import images as checkpoint
from unimask.checkpoints import tensors as tensors_file
from unimask.checkpoints.images import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    ModelFile,
    categories_from_json,
    load_model,
    resolve_weights,
    save_model,
    usual_task,
)
from unimask.checkpoints.tensors import load_tensors, save_tensors
from unimask.config.tasks import Task
from unimask.data.category_tables import categories_to_json, load_categories
from unimask.errors import ConfigError, WeightsError
from unimask.models.build import build_model
from unimask.models.mask_classifier import MaskClassifier
from unimask.presets import PRESETS
from unimask.presets.own_data import tiny
from unimask.structures import Categories

CATEGORIES = Categories(
    names=("disc", "ground ß"),
    is_thing=(True, False),
    file_ids=(7, 3),
    colors=((250, 0, 1), (0, 90, 255)),
)
MODEL_FILE = ModelFile(
    experiment=tiny(), task="panoptic", categories=CATEGORIES, licence="CC0-1.0", provenance="made for a test"
)


@pytest.fixture(scope="module")
def model() -> MaskClassifier:
    torch.manual_seed(1)
    return build_model(MODEL_FILE.experiment.model, len(CATEGORIES))


@pytest.fixture
def folder(tmp_path: Path, model: MaskClassifier) -> Path:
    save_model(tmp_path / "model", model, MODEL_FILE)
    return tmp_path / "model"


def test_what_is_saved_is_what_is_loaded(folder: Path, model: MaskClassifier) -> None:
    state = torch.get_rng_state()
    loaded, model_file = load_model(folder)
    assert torch.equal(state, torch.get_rng_state())
    assert model_file == MODEL_FILE
    assert not loaded.training
    expected, found = model.state_dict(), loaded.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_NAME, WEIGHTS_NAME]


def test_config_is_readable_and_holds_no_count_of_classes(folder: Path) -> None:
    text = (folder / CONFIG_NAME).read_text(encoding="utf-8")
    assert "ground ß" in text
    assert "num_classes" not in text
    assert json.loads(text)["categories"][0] == {
        "name": "disc",
        "is_thing": True,
        "file_id": 7,
        "color": [250, 0, 1],
    }


def test_half_precision_halves_the_file_and_loads_as_float32(tmp_path: Path, model: MaskClassifier) -> None:
    save_model(tmp_path / "full", model, MODEL_FILE)
    save_model(tmp_path / "half", model, MODEL_FILE, half=True)
    sizes = [(tmp_path / name / WEIGHTS_NAME).stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.6 * sizes[1]
    loaded, _ = load_model(tmp_path / "half")
    for key, expected in model.state_dict().items():
        found = loaded.state_dict()[key]
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
        if expected.ndim < 2:
            assert torch.equal(found, expected)


def test_saving_again_replaces_the_model_and_nothing_else(folder: Path, model: MaskClassifier) -> None:
    (folder / "notes.txt").write_text("mine")
    save_model(folder, model, replace(MODEL_FILE, licence="MIT"))
    assert load_model(folder)[1].licence == "MIT"
    assert (folder / "notes.txt").read_text() == "mine"
    assert len(list(folder.iterdir())) == 3


def test_a_failed_save_leaves_the_old_model(
    folder: Path, model: MaskClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(tensors: object, path: str, metadata: object) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(tensors_file, "save_file", fail)
    with pytest.raises(
        WeightsError, match="cannot be written \\(no space left on device\\); make room for it"
    ):
        save_model(folder, model, MODEL_FILE)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(WeightsError, match="no such file") as caught:
        load_model(folder)
    assert name in str(caught.value)


@pytest.mark.parametrize("length", [0, 5, 1000, -1])
def test_cut_off_weights_are_refused(folder: Path, length: int) -> None:
    path = folder / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(WeightsError, match="cut off") as caught:
        load_model(folder)
    assert str(path) in str(caught.value)


def test_broken_json_is_named(folder: Path) -> None:
    (folder / CONFIG_NAME).write_text('{"format": 1,')
    with pytest.raises(WeightsError, match="not valid JSON") as caught:
        load_model(folder)
    assert CONFIG_NAME in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["experiment"]["training"].update(stepz=3), r"training\.stepz.*no such setting"),
        (lambda c: c["experiment"]["training"].update(steps="many"), r"training\.steps"),
        (lambda c: c.update(licence=3), "licence"),
        (lambda c: c.pop("provenance"), "provenance"),
        (lambda c: c.update(format=2), "format"),
        (lambda c: c.update(experiment=[]), "experiment"),
        (lambda c: c.update(categories=[]), "categories"),
        (lambda c: c["categories"][1].pop("color"), r"categories\.1"),
        (lambda c: c["categories"][0].update(color=[1, 2, 256]), r"categories\.0\.color"),
        (lambda c: c["categories"][0].update(is_thing=1), r"categories\.0\.is_thing"),
    ],
)
def test_wrong_settings_are_named_with_their_file(folder: Path, change: object, message: str) -> None:
    path = folder / CONFIG_NAME
    content = json.loads(path.read_text(encoding="utf-8"))
    assert callable(change)
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message) as caught:
        load_model(folder)
    assert str(path) in str(caught.value)


def test_a_wrong_number_of_classes_is_named_as_such(folder: Path) -> None:
    path = folder / CONFIG_NAME
    content = json.loads(path.read_text(encoding="utf-8"))
    content["categories"] = content["categories"][:1]
    path.write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=r"for 2 classes, config\.json lists 1") as caught:
        load_model(folder)
    assert len(caught.value.mismatched) == 2
    assert not caught.value.missing


def test_missing_unexpected_and_mismatched_tensors_are_listed(folder: Path) -> None:
    path = folder / WEIGHTS_NAME
    tensors = load_tensors(path)
    del tensors["query_decoder.norm.weight"]
    tensors["extra"] = torch.zeros(3)
    tensors["query_decoder.norm.bias"] = torch.zeros(3)
    save_tensors(path, tensors)
    with pytest.raises(WeightsError, match="does not fit") as caught:
        load_model(folder)
    assert caught.value.missing == ("query_decoder.norm.weight",)
    assert caught.value.unexpected == ("extra",)
    assert caught.value.mismatched == ("query_decoder.norm.bias (3,) instead of (32,)",)


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint8], ids=str
)
def test_another_kind_of_number_is_refused(folder: Path, dtype: torch.dtype) -> None:
    path = folder / WEIGHTS_NAME
    tensors = load_tensors(path)
    tensors["query_decoder.norm.weight"] = tensors["query_decoder.norm.weight"].to(dtype)
    save_tensors(path, tensors)
    with pytest.raises(WeightsError, match=r"another kind of number .*query_decoder\.norm\.weight") as caught:
        load_model(folder)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(folder: Path, value: float) -> None:
    path = folder / WEIGHTS_NAME
    tensors = load_tensors(path)
    tensors["query_decoder.norm.weight"][3] = value
    save_tensors(path, tensors)
    with pytest.raises(WeightsError, match=r"not finite.*query_decoder\.norm\.weight") as caught:
        load_model(folder)
    assert str(path) in str(caught.value)


def test_a_folder_or_a_file_in_it_is_found(folder: Path) -> None:
    assert resolve_weights(str(folder)) == folder
    assert resolve_weights(folder / WEIGHTS_NAME) == folder


def test_a_run_folder_is_its_best_model(tmp_path: Path, model: MaskClassifier) -> None:
    (tmp_path / "run").mkdir()
    assert resolve_weights(tmp_path / "run") == tmp_path / "run"  # whose missing files are then named
    for name in ("model", "best"):  # a run without evaluations has no best model
        save_model(tmp_path / "run" / name, model, MODEL_FILE)
        assert resolve_weights(tmp_path / "run") == tmp_path / "run" / name


def change_config(folder: Path, **changes: object) -> None:
    path = folder / CONFIG_NAME
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_the_task_travels_with_the_model(folder: Path, model: MaskClassifier) -> None:
    save_model(folder, model, replace(MODEL_FILE, task="semantic"))
    assert load_model(folder)[1].task == "semantic"
    change_config(folder, task=None)  # a folder of before there was one
    assert load_model(folder)[1].task == "panoptic"
    change_config(folder, task="counting")
    with pytest.raises(ConfigError, match="task: 'counting' does not exist; there are: panoptic, instance"):
        load_model(folder)


@pytest.mark.parametrize(
    ("preset", "is_thing", "task"),
    [
        ("tiny", (True, False), "panoptic"),
        ("tiny", (True, True), "instance"),
        ("tiny", (False, False), "semantic"),
        ("street", (True, False), "semantic"),  # per-pixel classification
        ("ade20k_semantic_resnet50", (True, False), "semantic"),  # values of categories are resized
        ("detr_tiny", (True, True), "detection"),
        ("eomt_large_512_ade20k", (True, False), "semantic"),
    ],
)
def test_the_task_where_nothing_states_it(preset: str, is_thing: tuple[bool, ...], task: Task) -> None:
    assert usual_task(PRESETS[preset](), replace(CATEGORIES, is_thing=is_thing)) == task


def test_names_of_shipped_models(
    tmp_path: Path, model: MaskClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "ASSETS", tmp_path)
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "cells", model, MODEL_FILE)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert checkpoint.shipped_models() == ("cells",)
    assert resolve_weights("cells") == tmp_path / "cells"
    with pytest.raises(WeightsError, match="there are: cells"):
        resolve_weights("nothing")
    Path("weights.pkl").write_bytes(b"")
    with pytest.raises(WeightsError, match="unimask convert"):
        resolve_weights("weights.pkl")


@pytest.mark.parametrize(
    ("name", "count", "things"),
    [
        ("coco_panoptic", 133, 80),
        ("coco_instance", 80, 80),
        ("ade20k", 150, 100),
        ("cityscapes", 19, 8),
        ("mapillary_vistas", 65, 37),
        ("coco_stuff", 171, 80),
        ("ade20k_instance", 100, 100),
        ("cityscapes_instance", 8, 8),
    ],
)
def test_tables_of_categories(name: str, count: int, things: int) -> None:
    categories = load_categories(name)
    assert len(categories) == count
    assert sum(categories.is_thing) == things
    assert len(set(categories.names)) == len(set(categories.file_ids)) == count
    assert all(label == label.strip() for label in categories.names)
    assert categories_from_json(categories_to_json(categories)) == categories


def test_an_unknown_table_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="ade20k, ade20k_instance, cityscapes"):
        load_categories("pascal")


@pytest.mark.parametrize("name", ["ade20k", "cityscapes"])
def test_tables_of_instances_are_the_things(name: str) -> None:
    records = categories_to_json(load_categories(name))
    things = categories_to_json(load_categories(f"{name}_instance"))
    assert things == [record for record in records if record["is_thing"]]


def test_coco_tables_agree_with_official_files(shared_data: Path) -> None:
    path = shared_data / "coco_stuff_panoptic_mini/official_coco_panoptic/panoptic.json"
    official = json.loads(path.read_text())["categories"]
    panoptic = load_categories("coco_panoptic")
    assert panoptic.file_ids == tuple(entry["id"] for entry in official)
    assert panoptic.names == tuple(entry["name"] for entry in official)
    assert panoptic.is_thing == tuple(bool(entry["isthing"]) for entry in official)
    assert load_categories("coco_instance").names == panoptic.names[:80]


def test_a_full_disk_is_said_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr("unimask.checkpoints.tensors.save_file", full)
    with pytest.raises(WeightsError, match=r"a.safetensors: cannot be written .*No space left.*make room"):
        save_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(2)})
    assert list(tmp_path.iterdir()) == []
