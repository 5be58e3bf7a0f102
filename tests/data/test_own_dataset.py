"""Data sets that users write: samples from arrays, checked, taken as ground truth of every task."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training.small_runs import small_experiment

import unimask
from unimask.config.tasks import Task
from unimask.data.own import checked, split_own
from unimask.errors import ConfigError, DataError
from unimask.structures import Categories, Dataset, Detections, Sample, Segments
from unimask.training.image_data import open_task


class Squares:
    """A square that moves to the right, on sky."""

    categories: object = unimask.make_categories(["square", "sky"], stuff=["sky"])

    def __init__(self, count: int = 20, **changes: object) -> None:
        self._count, self._changes = count, changes

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        square = np.zeros((32, 40), dtype=bool)
        square[8:20, index : index + 12] = True
        image = np.where(square, 200, 40).astype(np.uint8)
        given = {"labels": [0, 1], "masks": [square, ~square], **self._changes}
        return unimask.make_sample(image, **given)


def test_categories_of_names() -> None:
    made = unimask.make_categories(["cell", "ground"], stuff={"ground"})
    assert made.names == ("cell", "ground")
    assert made.is_thing == (True, False)
    assert len(set(made.colors)) == 2
    for names, stuff, message in (
        (["a", "a"], (), "different names"),
        ([], (), "names"),
        (["a"], ["b"], "stuff"),
    ):
        with pytest.raises(DataError, match=message):
            unimask.make_categories(names, stuff)


def test_samples_of_masks_and_boxes(tmp_path: Path) -> None:
    sample = Squares()[3]
    assert isinstance(sample.truth, Segments)
    assert sample.truth.labels.tolist() == [0, 1]
    assert sample.truth.masks()[0].nonzero()[0].tolist() == [8, 3]
    Image.new("L", (40, 32)).save(tmp_path / "a.png")
    boxes = unimask.make_sample(tmp_path / "a.png", [0], boxes=[[1, 2, 11, 22]])
    assert isinstance(boxes.truth, Detections)
    assert boxes.truth.areas.tolist() == [200]
    assert boxes.image_id == str(tmp_path / "a.png")
    empty = unimask.make_sample(np.zeros((32, 40), np.uint8), [], masks=[])
    assert len(empty.truth) == 0
    overlapping = unimask.make_sample(np.zeros((3, 4), np.uint8), [0, 0], masks=np.ones((2, 3, 4), np.uint8))
    assert overlapping.truth.areas().tolist() == [12, 12]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "image: needs masks or boxes, one of the two"),
        ({"masks": [np.ones((3, 4))], "boxes": [[0, 0, 1, 1]]}, "image: needs masks or boxes"),
        ({"masks": np.ones((2, 3, 4))}, r"image: has masks of shape \(2, 3, 4\); expected \(1, 3, 4\)"),
        ({"masks": np.ones((1, 4, 3))}, r"image: has masks of shape \(1, 4, 3\); expected \(1, 3, 4\)"),
        ({"boxes": []}, "image: has 0 boxes and 1 labels"),
        ({"boxes": [[2, 0, 1, 5]]}, "image: has boxes without an area"),
        ({"boxes": [[0, 0, float("nan"), 5]]}, "image: has boxes without an area"),
    ],
)
def test_samples_that_do_not_fit(given: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        unimask.make_sample(np.zeros((3, 4), dtype=np.uint8), [0], **given)


def test_what_a_data_set_gives_is_checked() -> None:
    dataset: Dataset = Squares(labels=[0, 2])
    with pytest.raises(
        DataError, match=r"Squares\[5\]: has labels that are not from 0 to 1, the 2 categories"
    ):
        checked(dataset)[5]

    class Nothing(Squares):
        def __getitem__(self, index: int) -> Sample:
            return None  # type: ignore[return-value]

    with pytest.raises(DataError, match=r"Nothing\[0\]: is of type NoneType; return unimask.make_sample"):
        checked(Nothing())[0]

    class Unnamed(Squares):
        categories = ("square",)

    with pytest.raises(DataError, match="Unnamed: has no `categories`"):
        checked(Unnamed())


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic", "detection"])
def test_every_task_is_learned_from_it(task: Task) -> None:
    opened = open_task(Squares(), task, small_experiment(training__evaluate_every=5))
    assert opened.data == "Squares"
    assert len(opened.training) + len(opened.validation) == 20
    assert 1 <= len(opened.validation) <= 5
    assert isinstance(opened.categories, Categories)
    things = ("square",) if task in ("instance", "detection") else ("square", "sky")
    assert opened.categories.names == things
    truth = opened.training[0].truth
    assert isinstance(truth, Detections if task == "detection" else Segments)


def test_samples_are_held_out_or_given() -> None:
    training, validation = split_own(Squares())
    again = split_own(Squares())
    assert [len(training), len(validation)] == [len(again[0]), len(again[1])]
    images = [one.image for part in (training, validation) for one in (part[i] for i in range(len(part)))]
    assert len({image.numpy().tobytes() for image in images}) == 20
    opened = open_task(Squares(7), "semantic", small_experiment(training__evaluate_every=5), Squares(3))
    assert (len(opened.training), len(opened.validation)) == (7, 3)
    opened = open_task(Squares(7), "semantic", small_experiment(training__evaluate_every=0))
    assert (len(opened.training), len(opened.validation)) == (7, 7)
    with pytest.raises(DataError, match=r"Squares: has too few samples \(1\)"):
        open_task(Squares(1), "semantic", small_experiment(training__evaluate_every=5))
    with pytest.raises(DataError, match="shapes: has a val split of its own"):
        open_task("shapes", "semantic", small_experiment(), Squares())
    with pytest.raises(ConfigError, match="data: a translation is trained on a folder"):
        unimask.train(unimask.presets.TRANSLATION_PRESETS["glyphs"](), Squares(), "unused")


def test_a_model_is_trained_and_measured_on_it(tmp_path: Path) -> None:
    experiment = small_experiment(training__steps=2, training__evaluate_every=2)
    result = unimask.train(experiment, Squares(), tmp_path / "run", task="panoptic", device="cpu")
    assert result.completed
    segmenter = unimask.load(tmp_path / "run" / "model", device="cpu")
    assert segmenter.categories.names == ("square", "sky")
    measured = unimask.evaluate(segmenter, Squares(4), "panoptic")
    assert measured.images == 4
    assert torch.isfinite(torch.tensor(measured.values["PQ"]))
    with pytest.raises(DataError, match=r"Squares\[0\]: has labels"):
        unimask.evaluate(segmenter, Squares(4, labels=[0, 9]), "panoptic")
