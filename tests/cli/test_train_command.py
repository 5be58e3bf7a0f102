"""From a labelled folder to a model, and everything that can go wrong on the way."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli.command_line import refused, unimask
from data.dataset_files import (
    CLASSES,
    class_map,
    coco_instances,
    save_coco_instances,
    save_ids,
    save_json,
    save_labels,
    save_panoptic,
    save_picture,
    square,
)
from torch import Tensor

from unimask.config.data import Tiles, Whole
from unimask.config.tasks import Task
from unimask.inference.segmenter import Segmenter
from unimask.structures import Segments
from unimask.training.run import train

STEPS = ("--set", "training.steps=2", "--set", "training.evaluate_every=2", "--set", "training.log_every=1")
Change = Callable[[dict[str, object]], object]


@pytest.fixture(scope="session")
def instances(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of COCO instances: three pictures to train on, two to measure on."""
    folder = tmp_path_factory.mktemp("coco")
    save_coco_instances(folder / "instances_train.json", folder / "images", 3)
    save_json(folder / "instances_val.json", coco_instances(2))
    return folder


@pytest.fixture(scope="session")
def run(instances: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished training of two steps."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    outcome = unimask(
        "train",
        "--preset",
        "tiny",
        "--data",
        instances,
        "--task",
        "instance",
        "--output",
        folder,
        "--device",
        "cpu",
        *STEPS,
    )
    assert outcome.code == 0, outcome.err
    assert f"unimask predict IMAGE --weights {folder}\n" in outcome.out  # the task is the model's
    assert "best evaluation: after step 2 of 2" in outcome.out
    assert "AP50" in outcome.out
    assert "images/s" in outcome.err
    assert "left" in outcome.err
    return folder


def test_a_labelled_folder_becomes_a_model_that_predicts(run: Path, instances: Path, tmp_path: Path) -> None:
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert results["steps"] == 2
    assert {"AP", "AP50"} <= set(results["best"])
    for model in ("best", "model"):
        assert {path.name for path in (run / model).iterdir()} == {"config.json", "model.safetensors"}
    given = ("predict", instances / "images" / "p0.png", "--output", tmp_path, "--task", "instance", "--json")
    (record,) = unimask(*given, "--weights", run / "best").json()
    assert [category["name"] for category in record["categories"]] == ["cat", "dog"]


def test_the_word_shapes_is_data(tmp_path: Path) -> None:
    given = ("--output", tmp_path / "run", "--set", "training.steps=1", "--set", "training.evaluate_every=0")
    outcome = unimask(
        "train", "--preset", "tiny", "--data", "shapes:32x48", *given, "--device", "cpu", "--json"
    )
    found = outcome.json()
    assert (outcome.code, found["steps"], found["completed"], found["best"]) == (0, 1, True, {})
    assert "first_process" not in found
    outcome = unimask(
        "train", "--preset", "tiny", "--data", "shapes:32x48", *given, "--device", "cpu", "--resume"
    )
    assert outcome.code == 0
    assert f"--weights {tmp_path / 'run'}\n" in outcome.out
    model = tmp_path / "run" / "model" / "config.json"  # there is no best one
    assert json.loads(model.read_text(encoding="utf-8"))["task"] == "panoptic"


def test_a_model_goes_on_with_other_categories(
    model: Path, instances: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but data and model is said: the rest is chosen, shown, and goes on as it was."""
    monkeypatch.chdir(tmp_path)
    settings = ("--set", "training.steps=2", "--set", "training.batch_size=2", "--map", "grass [wet]=cat")
    given = ("train", "--data", instances, "--initial", model, "--device", "cpu")
    outcome = unimask(*given, "--task", "instance", *settings)
    assert outcome.code == 0, outcome.err
    folder = Path("runs") / instances.name
    said = outcome.err
    for part in (
        "this command does the same again",
        f"unimask train --data {instances} --output {folder} --set training.steps=2 "  # what was said, too
        "--set training.batch_size=2 --map 'grass [wet]=cat' --device cpu \\\n",
        "  --set training.warmup_steps=1 --set training.evaluate_every=1 --set training.checkpoint_every=1",
        f"  --initial {model}\n",
        "size: the model keeps the size that it was trained for",
        "steps: each of the 3 images is seen about once",
        f"starts from {model}: its architecture, its weights, and what it learned of 2 of 2 categories",
        "kept by name     1  dog",
        "renamed          1  grass [wet] = cat",
        "dropped          1  cat",
        "the first step is done; the 1 to come take 0:00:0",
        "step 1/2  loss",
    ):
        assert part in said, (part, said)
    assert said.count("training.steps=2") == 1  # what was said is not chosen
    description = json.loads((folder / "experiment.json").read_text(encoding="utf-8"))
    assert (description["task"], description["experiment"]["training"]["batch_size"]) == ("instance", 2)
    outcome = unimask(
        *("train", "--data", instances, "--output", folder, "--resume", "--device", "cpu"),
        *("--set", "training.steps=3"),
    )
    assert outcome.code == 0, outcome.err  # with the settings of the run
    assert "going on after step 2 of 3" in outcome.err
    assert "resume: needs the folder of the run" in refused("train", "--data", instances, "--resume")
    assert "output: several processes need one folder" in refused(
        "train", "--data", instances, "--devices", 2
    )
    assert "map: expected OLD=NEW" in refused(*given, "--map", "cat")
    assert "map: the model has no category 'bird'" in refused(*given, "--map", "bird=cat", *settings[:4])
    assert not Path(f"runs/{instances.name}_2").exists()


def test_a_run_is_not_overwritten_but_resumed(run: Path, instances: Path) -> None:
    given = ("train", "--preset", "tiny", "--data", instances, "--task", "instance", "--output", run, *STEPS)
    assert f"{run}: is not empty; continue the run in it with --resume" in refused(*given)
    assert "training.seed: 0 -> 5" in refused(*given, "--resume", "--set", "training.seed=5")
    outcome = unimask(*given, "--resume", "--set", "training.steps=3", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json()["steps"] == 3
    assert "going on after step 2 of 3" in outcome.err


def test_a_run_that_is_stopped_says_how_to_go_on(
    run: Path, instances: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object, **options: object) -> object:
        return replace(train(*arguments, **options), completed=False)

    monkeypatch.setattr("unimask.train", stop)
    outcome = unimask(
        "train",
        "--preset",
        "tiny",
        "--data",
        "shapes:32x32",
        "--output",
        tmp_path / "run",
        "--set",
        "training.steps=1",
        "--set",
        "training.evaluate_every=0",
    )
    assert outcome.code == 130
    assert "to go on: the same command with --resume" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "tinny"), "tinny: no such preset; is it tiny? `unimask presets` lists them"),
        (("--data", "nowhere"), "nowhere: no such file or folder; expected one of"),
        (("--data", "shapes:0x5"), "shapes:0x5: expected shapes or shapes:HEIGHTxWIDTH"),
        (("--task", "semantic", "--data", "{coco}/images"), "images: found p0.png, p1.png, p2.png; expected"),
        (("--output", "{coco}/instances_val.json"), "instances_val.json: is a file; name a folder"),
        (("--output", "{coco}"), "continue the run in it with --resume, or name another"),
        (("--device", "toaster"), "device: 'toaster' does not exist"),
        (("--devices", "0"), "--devices: must be at least 1"),
        (("--initial", "no_such_model"), "no_such_model: no such folder, and no model of this name"),
        (("--set", "training.stepz=3"), "training.stepz: no such setting; is it training.steps"),
        (("--set", "training.steps=many"), "training.steps: Input should be a valid integer"),
        (("--set", "training.steps"), "training.steps: expected PATH=VALUE, such as training.steps=2000"),
        (("--set", "training.steps=0"), "training.steps: must be at least 1; got 0"),
        (("--set", "model=3"), "model: must be a dictionary; got 3"),
        (("--set", "model.query_decoder.heads=5"), "cannot be divided by 5 (heads)"),
        (("--set", "model.backbone.name=eyes"), "no backbone is called 'eyes'"),
        (("--set", "data.crop=[0,64]"), "data.crop.0: must be at least 1; got 0"),
        (("--set", "losses.points=0"), "losses.points: must be at least 1; got 0"),
        (
            ("--set", 'data.view={"kind":"tiles","size":9,"overlap":9}'),
            "overlap: must be below data.view.size",
        ),
    ],
)
def test_impossible_requests(
    instances: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    words = [word.format(coco=instances) if word.startswith("{coco}") else word for word in arguments]
    defaults = {"--preset": "tiny", "--data": str(instances), "--output": str(tmp_path / "run")}
    defaults |= {"--device": "cpu", "--task": "instance"} | dict(zip(words[::2], words[1::2], strict=True))
    before = sorted(instances.rglob("*"))
    assert message in refused("train", *(word for pair in defaults.items() for word in pair))
    assert list(tmp_path.iterdir()) == []  # nothing is left that would be in the way of the next try
    assert sorted(instances.rglob("*")) == before


# data that cannot be used


def first(content: dict[str, object]) -> dict[str, object]:
    return content["annotations"][0]


INSTANCES: dict[str, tuple[Change, str]] = {
    "outside": (
        lambda c: first(c).update(segmentation=[square(500, 500, 9)]),
        "annotation 1 lies outside of its image (31 x 23 pixels)",
    ),
    "empty": (lambda c: c.update(annotations=[]), "'annotations' is empty"),
    "twice": (lambda c: c["annotations"].append(dict(first(c))), "annotation id 1 occurs twice"),
    "category": (lambda c: first(c).update(category_id=99), "annotation 1 has category 99"),
    "picture": (
        lambda c: c["images"][0].update(file_name="gone.png"),
        "the first is 'gone.png'; copy them there",
    ),
    "points": (
        lambda c: first(c).update(segmentation=[[1, 2, 3, 4]]),
        "expected x and y of at least 3 points",
    ),
}


@pytest.mark.parametrize("case", INSTANCES)
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_bad_instances(model: Path, tmp_path: Path, case: str, command: str) -> None:
    change, message = INSTANCES[case]
    content = coco_instances(2)
    save_coco_instances(tmp_path / "instances_train.json", tmp_path / "images", content=content)
    change(content)
    bad = save_json(tmp_path / f"instances_{'train' if command == 'train' else 'val'}.json", content)
    if command == "train":
        save_json(tmp_path / "instances_val.json", coco_instances(2))
    shown = refused(
        command,
        "--data",
        tmp_path,
        "--task",
        "instance",
        "--device",
        "cpu",
        *(("--preset", "tiny", "--output", tmp_path / "run") if command == "train" else ("--weights", model)),
    )
    assert shown.startswith(f"error {bad}: ")
    assert message in shown
    assert not (tmp_path / "run").exists()


def test_bad_panoptic_files(model: Path, tmp_path: Path) -> None:
    path, pngs = tmp_path / "panoptic_val.json", tmp_path / "panoptic_val"
    content = save_panoptic(path, pngs, tmp_path / "images")
    content["categories"][2]["name"] = "grass [wet]"
    save_json(path, content)
    given = ("evaluate", "--weights", model, "--data", tmp_path, "--task", "panoptic", "--device", "cpu")
    assert unimask(*given).code == 0
    right = (pngs / "p0.png").read_bytes()
    save_ids(pngs / "p0.png", np.full((5, 7), 5))
    message = refused(*given)
    assert f"error {pngs / 'p0.png'}: is 7 x 5 pixels, but its image is 19 x 17" in message
    (pngs / "p0.png").write_bytes(right)
    content["annotations"][0]["segments_info"].pop()
    save_json(path, content)
    message = refused(*given)
    assert f"error {pngs / 'p0.png'}: has 1 segment ids that panoptic_val.json does not list" in message
    assert "PNG and JSON must be of one export" in message


def test_labels_out_of_range(tmp_path: Path) -> None:
    for split in ("train", "val"):
        save_picture(tmp_path / "images" / split / "a.png", 13, 11)
        save_labels(tmp_path / "labels" / split / "a.png", class_map() + 7 * (split == "train"))
    save_json(tmp_path / "classes.json", CLASSES)
    message = refused(
        "train",
        "--preset",
        "tiny",
        "--data",
        tmp_path,
        "--task",
        "semantic",
        "--device",
        "cpu",
        "--output",
        tmp_path / "run",
    ).splitlines()[-1]
    assert (
        f"error {tmp_path / 'labels' / 'train' / 'a.png'}: has labels that are no class: 6, 7, 8, 9"
        in message
    )
    assert "list them in classes.json" in message
    assert not (tmp_path / "run").exists()  # it failed before the first checkpoint


def test_a_broken_picture_ends_the_training_but_not_the_run(
    run: Path, instances: Path, tmp_path: Path
) -> None:
    content = coco_instances(3)
    save_coco_instances(tmp_path / "instances_train.json", tmp_path / "images", content=content)
    save_json(tmp_path / "instances_val.json", coco_instances(2))
    given = (
        "train",
        "--preset",
        "tiny",
        "--data",
        tmp_path,
        "--task",
        "instance",
        "--device",
        "cpu",
        "--output",
        tmp_path / "run",
        "--set",
        "training.evaluate_every=0",
    )
    assert unimask(*given, "--set", "training.steps=1").code == 0
    (tmp_path / "images" / "p1.png").write_bytes(b"")
    message = refused(*given, "--set", "training.steps=2", "--resume")
    assert f"error {tmp_path / 'images' / 'p1.png'}: the file is empty" in message
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


# evaluate


@pytest.fixture
def measure(run: Path, instances: Path) -> tuple[object, ...]:
    return (
        "evaluate",
        "--weights",
        run / "best",
        "--data",
        instances,
        "--task",
        "instance",
        "--device",
        "cpu",
    )


def test_measures_on_the_screen_as_json_and_in_a_file(measure: tuple[object, ...], tmp_path: Path) -> None:
    outcome = unimask(*measure, "--pictures", tmp_path / "seen")
    assert outcome.code == 0, outcome.err
    assert "instance, 2 images of" in outcome.out
    assert f"the images: {tmp_path / 'seen'}" in "".join(outcome.out.split("\n"))
    assert {"AP", "AP50", "AP@0.50", "cat", "dog"} <= set(outcome.out.replace("│", " ").split())
    assert "images/s" in outcome.err
    file = tmp_path / "new" / "measured.json"
    outcome = unimask(*measure, "--json", "--output", file)
    found, written = outcome.json(), json.loads(file.read_text(encoding="utf-8"))
    assert found == written
    assert (found["task"], found["images"]) == ("instance", 2)
    assert 0 <= found["values"]["AP"] <= 1


def test_measures_as_it_would_predict(measure: tuple[object, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    segment = Segmenter.find

    def watched(self: Segmenter, images: list[Tensor], task: Task, **given: float | None) -> list[Segments]:
        seen.append((self.model_file.experiment.data.view, len(self.tta)))
        return segment(self, images, task, **given)

    monkeypatch.setattr(Segmenter, "find", watched)
    assert unimask(*measure, "--tile", 40, "--overlap", 8, "--tta", "flip").code == 0
    assert unimask(*measure).code == 0
    assert set(seen) == {(Tiles(size=40, overlap=8), 2), (Whole(), 1)}
    assert "tta: turn does not exist" in refused(*measure, "--tta", "turn")


def test_measuring_that_cannot_work(measure: tuple[object, ...], model: Path, tmp_path: Path) -> None:
    assert "has no split 'holdout'" in refused(*measure, "--split", "holdout")
    assert f"{tmp_path}: is a folder; name a file" in refused(*measure, "--output", tmp_path)
    (tmp_path / "file").write_text("")
    assert "file: is a file" in refused(*measure, "--output", tmp_path / "file" / "a.json")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_the_data_hold_is_looked_at_before_it_is_measured_on(model: Path, tmp_path: Path) -> None:
    save_coco_instances(tmp_path / "instances_val.json", tmp_path / "images", 2)
    save_picture(tmp_path / "images" / "unused.png", 13, 11)
    given = ("evaluate", "--weights", model, "--data", tmp_path, "--task", "instance", "--device", "cpu")
    outcome = unimask(*given, "--json")
    assert outcome.code == 0, outcome.err
    assert "warning: val: 2 images have the same pixels" in outcome.err or "warning: val: " in outcome.err
    assert outcome.json()["images"] == 2
    content = coco_instances(2)
    content["annotations"] = content["annotations"][2:3]  # a crowd
    save_json(tmp_path / "instances_val.json", content)
    assert "val: all 1 objects are crowd, so there is nothing to find" in refused(*given)


def test_categories_that_the_model_does_not_know(model: Path, tmp_path: Path) -> None:
    content = coco_instances(2)
    content["categories"][0]["name"] = "lion"
    save_coco_instances(tmp_path / "instances_val.json", tmp_path / "images", content=content)
    message = refused("evaluate", "--weights", model, "--data", tmp_path, "--task", "instance")
    assert f"error {tmp_path}: has 1 category that the model does not know: lion" in message
