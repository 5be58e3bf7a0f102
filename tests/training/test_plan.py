"""What a training is to do, from what was asked."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from data.dataset_files import save_coco_instances

import unimask
from unimask.checkpoints.images import ModelFile, save_model
from unimask.cli.options.parsing import parse_settings
from unimask.config.models import DetrConfig
from unimask.config.overrides import override
from unimask.data.formats.shapes import CATEGORIES
from unimask.data.open import labelled_task
from unimask.errors import ConfigError, DataError, WeightsError
from unimask.models.build import build_model
from unimask.presets import PRESETS
from unimask.training import plan as planning
from unimask.training.plan import Plan, plan

SHAPES = "shapes:40x56"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that is no preset."""
    folder = tmp_path_factory.mktemp("plan") / "narrow"
    experiment = override(
        PRESETS["tiny"](), {"model.query_decoder.layers": 2, "data.resize.size": 48, "losses.points": 99}
    )
    torch.manual_seed(0)
    network = build_model(experiment.model, len(CATEGORIES))
    about = ModelFile(
        experiment=experiment, task="instance", categories=CATEGORIES, licence="none", provenance="random"
    )
    save_model(folder, network, about)
    return folder


@pytest.fixture(autouse=True)
def _few_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "LOOKS", 0.2)
    monkeypatch.setattr(planning, "why_unavailable", lambda name: "")


def flags_of(found: Plan) -> list[str]:
    return [word for line in found.lines for word in line.flags]


def given_by(flags: list[str]) -> dict[str, object]:
    """The arguments of `plan` that options mean."""
    pairs = list(zip(flags[::2], flags[1::2], strict=True))
    named = {name.removeprefix("--"): value for name, value in pairs if name != "--set"}
    return named | {"changes": parse_settings([value for name, value in pairs if name == "--set"])}


@pytest.mark.parametrize("asked", [{}, {"training.steps": 40, "training.seed": 3}])
def test_the_lines_that_are_shown_give_the_same_experiment(asked: dict[str, object]) -> None:
    found = plan(SHAPES, changes=asked, device="cpu")
    assert (found.task, found.initial, len(found.lines)) == ("panoptic", "imagenet", 5)
    copied = given_by(flags_of(found))
    again = plan(SHAPES, **{**copied, "changes": asked | copied["changes"]}, device="cpu")
    assert again == replace(found, lines=())  # a named preset: nothing was chosen


def test_the_lines_for_a_model_give_the_same_experiment(model: Path) -> None:
    found = plan(SHAPES, initial=str(model), device="cpu")
    assert (found.task, found.initial) == ("instance", str(model))
    again = plan(SHAPES, **given_by(flags_of(found)), device="cpu")
    assert (again.experiment, again.task, again.initial) == (found.experiment, "instance", str(model))


def test_a_model_gives_the_architecture_and_a_preset_the_rest(model: Path) -> None:
    own = unimask.load(model, device="cpu").model_file.experiment
    found = plan(SHAPES, initial=str(model), device="cpu").experiment
    assert (found.model, found.data, found.losses) == (own.model, own.data, own.losses)
    named = plan(SHAPES, initial=str(model), preset="small", task="panoptic", changes={"losses.points": 7})
    small = PRESETS["small"]()
    assert named.experiment == override(replace(small, model=own.model), {"losses.points": 7})
    assert named.notes == ()
    said = plan(SHAPES, initial=str(model), preset="tiny", changes={"model.query_decoder.dropout": 0.1})
    assert said.notes == ("model.query_decoder.dropout is 0.0 there and 0.1 here, as asked",)


def test_a_model_that_cannot_learn_the_task_is_refused() -> None:
    with pytest.raises(ConfigError, match="street can learn semantic, not instance; take another model"):
        plan(SHAPES, task="instance", initial="street", preset="small")


def test_a_setting_that_contradicts_the_weights_is_refused(model: Path, tmp_path: Path) -> None:
    found = plan(SHAPES, initial=str(model), preset="tiny", changes={"model.query_decoder.layers": 3})
    with pytest.raises(WeightsError, match=r"model\.query_decoder\.layers is 2 there and 3 here"):
        unimask.train(
            found.experiment, SHAPES, tmp_path / "run", task=found.task, initial=found.initial, device="cpu"
        )
    assert not (tmp_path / "run").exists()


def test_a_preset_is_taken_as_it_is() -> None:
    found = plan(SHAPES, preset="tiny")
    assert (found.experiment, found.task, found.initial, found.lines) == (
        PRESETS["tiny"](),
        "panoptic",
        None,
        (),
    )
    assert plan(SHAPES, preset="tiny", initial="imagenet").initial == "imagenet"
    assert plan(SHAPES, preset="tiny", initial="none").initial is None
    text = plan("anything", preset="glyphs", changes={"training.steps": 3})
    assert text.experiment.training.steps == 3


def test_epochs_count_images() -> None:
    found = plan(SHAPES, preset="tiny", epochs=2.5)
    images = len(planning.open_items(SHAPES, "train", "panoptic"))
    assert found.experiment.training.steps == -(-int(2.5 * images) // 4)
    with pytest.raises(ConfigError, match=r"epochs: and training\.steps both say how long"):
        plan(SHAPES, preset="tiny", epochs=2, changes={"training.steps": 3})
    with pytest.raises(ConfigError, match="epochs: count images"):
        plan(SHAPES, preset="glyphs", epochs=2)


def test_a_run_that_goes_on_keeps_its_settings(tmp_path: Path) -> None:
    experiment = override(PRESETS["tiny"](), {"training.steps": 1, "training.evaluate_every": 0})
    unimask.train(experiment, SHAPES, tmp_path / "run", task="semantic", device="cpu")
    found = plan(SHAPES, resumed=tmp_path / "run", changes={"training.steps": 2})
    assert found == Plan(
        experiment=override(experiment, {"training.steps": 2}),
        task="semantic",
        initial=None,
        lines=(),
        notes=(),
    )
    path = tmp_path / "run" / "experiment.json"
    written = json.loads(path.read_text())
    for changed, message in (
        ({"task": None}, r"experiment\.json: task: 'None' does not exist"),
        (
            {"unimask": "9.0", "experiment": {"eyes": 2}},
            r"json: eyes: no such setting; .*of unimask 9\.0, this",
        ),
        ({"experiment": {"training": {"steps": "a"}}}, r"experiment\.json: training\.steps: "),
    ):
        path.write_text(json.dumps(written | changed))
        with pytest.raises(ConfigError, match=message):
            plan(SHAPES, resumed=tmp_path / "run")
    path.write_text("{")
    with pytest.raises(DataError, match=r"experiment\.json: is not valid JSON"):
        plan(SHAPES, resumed=tmp_path / "run")


def test_the_task_is_that_of_the_data(tmp_path: Path) -> None:
    assert labelled_task(SHAPES) == "panoptic"
    save_coco_instances(tmp_path / "instances_train.json", tmp_path / "images", 3)
    assert labelled_task(tmp_path) == "instance"
    content = json.loads((tmp_path / "instances_train.json").read_text())
    (tmp_path / "instances_train.json").unlink()
    for annotation in content["annotations"]:
        del annotation["segmentation"]
        annotation["bbox"] = [2, 3, 8, 8]
    (tmp_path / "detection_train.json").write_text(json.dumps(content))
    assert labelled_task(tmp_path) == "detection"
    chosen = plan(tmp_path, device="cpu")
    assert isinstance(chosen.experiment.model, DetrConfig)
    with pytest.raises(DataError, match="no such file or folder"):
        labelled_task(tmp_path / "nowhere")


def test_data_of_no_use_and_several_processes_are_refused(tmp_path: Path) -> None:
    save_coco_instances(tmp_path / "instances_train.json", tmp_path / "images", 3)
    (tmp_path / "images" / "p1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"p1\.png: the file is empty"):
        plan(tmp_path, task="instance", device="cpu")
    with pytest.raises(ConfigError, match="several processes need the same settings"):
        plan(SHAPES, processes=2, device="cpu")
