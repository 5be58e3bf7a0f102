"""Detection through the command line: train, evaluate, predict, and what is refused."""

import json
from pathlib import Path

import pytest
from cli.command_line import picture, refused, save_tiny_model, unimask
from PIL import Image

SETTINGS = {
    "training.steps": 2,
    "training.evaluate_every": 2,
    "training.batch_size": 2,
    "model.decoder_layers": 2,
    "model.channels": 32,
    "data.crop": "[48,64]",
    "data.resize.size": 48,
}


def train_command(data: str | Path, folder: Path, *more: object) -> tuple[object, ...]:
    settings = [part for path, value in SETTINGS.items() for part in ("--set", f"{path}={value}")]
    return (
        *("train", "--preset", "detr_tiny", "--data", data, "--output", folder, "--device", "cpu"),
        *("--task", "detection", *settings, *more),
    )


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of COCO boxes without masks."""
    folder = tmp_path_factory.mktemp("boxes")
    (folder / "images").mkdir()
    for split, count in (("train", 3), ("val", 2)):
        images, annotations = [], []
        for number in range(1, count + 1):
            picture(seed=number).save(folder / "images" / f"{split}{number}.png")
            images.append({"id": number, "file_name": f"{split}{number}.png", "height": 47, "width": 61})
            box = {"id": number, "image_id": number, "category_id": 5, "bbox": [3, 5, 20, 11.5]}
            annotations.append({**box, "area": 230, "iscrowd": 0})
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 5, "name": "cat"}, {"id": 6, "name": "dog"}],
        }
        (folder / f"detection_{split}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def run(boxes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished training of two steps."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    outcome = unimask(*train_command(boxes, folder))
    assert outcome.code == 0, outcome.err
    assert "AP50" in outcome.out
    assert f"--weights {folder}\n" in outcome.out
    return folder


def test_a_finished_training_goes_on_for_longer(boxes: Path, run: Path, tmp_path: Path) -> None:
    outcome = unimask(*train_command(boxes, run, "--resume", "--set", "training.steps=3"))
    assert outcome.code == 0, outcome.err
    described = json.loads((run / "experiment.json").read_text())
    assert (described["task"], described["experiment"]["training"]["steps"]) == ("detection", 3)


def test_evaluation_gives_the_numbers_of_coco(boxes: Path, run: Path) -> None:
    outcome = unimask(
        "evaluate",
        "--weights",
        run,
        "--data",
        boxes,
        "--json",
        "--device",
        "cpu",
    )
    assert outcome.code == 0, outcome.err
    values = outcome.json()["values"]
    assert {"AP", "AP50", "AP75", "APs", "AR100"} <= set(values)
    assert 0 <= values["AP"] <= values["AP50"] <= 1


def test_predicted_boxes_are_drawn_and_listed(run: Path, tmp_path: Path) -> None:
    picture().save(tmp_path / "noise.png")
    outcome = unimask(
        *("predict", tmp_path / "noise.png", "--weights", run / "best", "--task", "detection"),
        *("--threshold", "0", "--output", tmp_path / "out", "--device", "cpu", "--json"),
    )
    assert outcome.code == 0, outcome.err
    (shown,) = outcome.json()
    stored = json.loads((tmp_path / "out" / "noise.json").read_text())
    assert shown["boxes"] == stored["boxes"]
    assert len(stored["boxes"]) == 10  # one for each query
    scores = [box["score"] for box in stored["boxes"]]
    assert scores == sorted(scores, reverse=True)
    assert {box["category"] for box in stored["boxes"]} <= {"cat", "dog"}
    assert {box["category_id"] for box in stored["boxes"]} <= {5, 6}
    with Image.open(tmp_path / "out" / "noise.overlay.png") as drawn:
        assert drawn.size == (61, 47)
    assert not (tmp_path / "out" / "noise.segments.png").exists()
    table = unimask(
        *("predict", tmp_path / "noise.png", "--weights", run),  # its best model, and its task
        *("--threshold", "0", "--output", tmp_path / "out", "--device", "cpu"),
    )
    assert "noise" in table.out


def test_tasks_that_a_model_does_not_know(run: Path, tmp_path: Path) -> None:
    picture().save(tmp_path / "noise.png")
    masks = save_tiny_model(tmp_path / "masks")
    for weights, task, known in (
        (run / "best", "panoptic", "it knows: detection"),
        (masks, "detection", "it knows: panoptic, instance, semantic"),
    ):
        message = refused(
            *("predict", tmp_path / "noise.png", "--weights", weights, "--task", task),
            *("--output", tmp_path / "out", "--device", "cpu"),
        )
        assert known in message


def test_trainings_that_cannot_be(boxes: Path, tmp_path: Path) -> None:
    wrong_model = refused(
        *("train", "--preset", "tiny", "--data", boxes, "--task", "detection"),
        *("--output", tmp_path / "a", "--device", "cpu"),
    )
    assert "detr_small" in wrong_model
    wrong_task = refused(
        *("train", "--preset", "detr_tiny", "--data", "shapes", "--task", "semantic"),
        *("--output", tmp_path / "b", "--device", "cpu"),
    )
    assert "trained for detection" in wrong_task
    wrong_setting = refused(*train_command(boxes, tmp_path / "c", "--set", "model.query_decoder.layers=3"))
    assert "model.query_decoder" in wrong_setting
    wrong_value = refused(*train_command(boxes, tmp_path / "d", "--set", "model.dropout=high"))
    assert "model.dropout" in wrong_value
    wrong_kind = refused(*train_command(boxes, tmp_path / "e", "--set", "model.kind=yolo"))
    assert "model.kind: no such kind; there are: masks, eomt, detr; got 'yolo'" in wrong_kind
    assert not any((tmp_path / name).exists() for name in "abcde")


def test_masks_are_no_boxes_and_boxes_no_masks(boxes: Path, tmp_path: Path) -> None:
    message = refused(
        *("train", "--preset", "tiny", "--data", boxes / "detection_train.json", "--task", "instance"),
        *("--output", tmp_path / "a", "--device", "cpu"),
    )
    assert "only a box" in message
