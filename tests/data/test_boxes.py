"""Boxes: from COCO's files, around segments, through augmentation and into batches."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from unimask.config.data import DataConfig, ScaleJitter
from unimask.data.augmentation import augment
from unimask.data.formats.coco_instances import open_boxes
from unimask.data.formats.shapes import shapes_dataset
from unimask.data.loader import training_loader
from unimask.data.open import open_dataset
from unimask.data.seeds import seeded_generator
from unimask.data.views import match_categories
from unimask.errors import DataError
from unimask.ops.boxes import boxes_around
from unimask.structures import BoxTargets, Categories, Segments

CONFIG = DataConfig(
    crop=(41, 53),
    jitter=ScaleJitter(low=0.7, high=1.5),
    horizontal_flip=0.5,
    vertical_flip=0.5,
    color=0.0,
    divisor=1,
)


def annotation(number: int, **changes: object) -> dict[str, object]:
    entry = {"id": number, "image_id": 7, "category_id": 3, "bbox": [2.5, 1, 4, 5], "iscrowd": 0, "area": 11}
    return {**entry, **changes}


def write_set(folder: Path, *annotations: dict[str, object], name: str = "detection_train.json") -> Path:
    (folder / "images").mkdir(exist_ok=True)
    Image.new("RGB", (23, 17)).save(folder / "images" / "a.png")
    content = {
        "images": [{"id": 7, "file_name": "a.png", "height": 17, "width": 23}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
        "annotations": list(annotations),
    }
    (folder / name).write_text(json.dumps(content))
    return folder / name


def test_boxes_are_those_of_the_file(tmp_path: Path) -> None:
    path = write_set(
        tmp_path,
        annotation(1),
        annotation(2, bbox=[20, -3, 10, 9.0], category_id=5, area=0),
        annotation(3, iscrowd=1),
        annotation(4, difficult=1),
    )
    dataset = open_boxes(path)
    found = dataset[0].truth
    assert dataset.image_ids == ("a",)
    assert found.boxes.tolist()[:2] == [[2.5, 1.0, 6.5, 6.0], [20.0, 0.0, 23.0, 6.0]]  # cut off at the border
    assert found.areas.tolist()[:2] == [11.0, 18.0]  # as stated, else of the box
    assert found.labels.tolist() == [0, 1, 0, 0]
    assert found.is_crowd.tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bbox": [1, 2, 3]}, "annotation 1 has bbox"),
        ({"bbox": None}, "annotation 1 has bbox"),
        ({"bbox": [1, 2, float("nan"), 3]}, "annotation 1 has bbox"),
        ({"bbox": [1, 2, -1, 3]}, "-1 x 3 pixels"),
        ({"bbox": [30, 2, 5, 3]}, "lies outside"),
        ({"image_id": 8}, "image 8"),
        ({"category_id": 8}, "category 8"),
    ],
)
def test_a_wrong_box_is_named(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    path = write_set(tmp_path, annotation(1, **changes))
    with pytest.raises(DataError, match=words) as error:
        open_boxes(path)
    assert str(path) in str(error.value)


def test_a_folder_gives_boxes_before_masks(tmp_path: Path) -> None:
    write_set(tmp_path, annotation(1))
    write_set(tmp_path, annotation(1), annotation(2), name="detection_val.json")
    assert len(open_dataset(tmp_path, "train", "detection")[0].truth) == 1
    assert len(open_dataset(tmp_path, "val", "detection")[0].truth) == 2
    with pytest.raises(DataError, match="no split 'test'"):
        open_dataset(tmp_path, "test", "detection")
    with pytest.raises(DataError, match="no such file"):
        open_dataset(tmp_path / "other", "train", "detection")


def test_boxes_around_the_things_of_a_generated_set() -> None:
    dataset = open_dataset("shapes:48x64", "val", "detection")
    assert dataset.categories.names == ("circle", "square", "triangle")
    segments = shapes_dataset(size=(48, 64), count=5, seed=1)
    for index in range(5):
        found, truth = dataset[index].truth, segments[index].truth
        things = truth.masks()[truth.labels < 3]
        assert len(found) == len(things)
        for mask, (left, top, right, bottom) in zip(things, found.boxes.int().tolist(), strict=True):
            rows, columns = mask.nonzero().unbind(1)
            assert (left, top) == (columns.min(), rows.min())
            assert (right, bottom) == (columns.max() + 1, rows.max() + 1)


def test_segments_without_pixels_have_no_box() -> None:
    segments = Segments(
        layers=torch.tensor([[[0, 2], [0, 2]]], dtype=torch.int16),
        labels=torch.tensor([4, 1]),
        scores=torch.tensor([0.5, 0.25]),
        is_crowd=torch.tensor([False, True]),
    )
    found = boxes_around(segments)
    assert found.boxes.tolist() == [[1.0, 0.0, 2.0, 2.0]]
    assert (found.labels.tolist(), found.scores.tolist(), found.is_crowd.tolist()) == ([1], [0.25], [True])


def test_boxes_move_as_their_segments_do() -> None:
    dataset = shapes_dataset(size=(48, 64), count=30, seed=2)
    compared = 0
    for index in range(30):
        sample = dataset[index]
        boxes = replace(sample, truth=boxes_around(sample.truth))
        moved = augment(sample, CONFIG, seeded_generator(1, index))
        moved_boxes = augment(boxes, CONFIG, seeded_generator(1, index))
        assert torch.equal(moved.image, moved_boxes.image)
        around = boxes_around(moved.truth)
        for box, label in zip(around.boxes, around.labels.tolist(), strict=True):
            same = moved_boxes.truth.boxes[moved_boxes.truth.labels == label]
            # the box of what is left of a cut shape may be smaller than what is left of its box
            inside = (same[:, :2] - 1.6 <= box[:2]).all(1) & (same[:, 2:] + 1.6 >= box[2:]).all(1)
            assert bool(inside.any()) or bool(((box[2:] - box[:2]) < 2).any())
            compared += 1
    assert compared > 60


def test_crowd_is_not_learned_from() -> None:
    sample = open_dataset("shapes:48x64", "train", "detection")[3]
    crowd = replace(sample.truth, is_crowd=torch.ones(len(sample.truth), dtype=torch.bool))
    assert len(sample.truth) > 0
    assert len(augment(replace(sample, truth=crowd), CONFIG, seeded_generator(0)).truth) == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_hold_boxes_in_units_of_the_valid_picture(workers: int) -> None:
    loader = training_loader(
        open_dataset("shapes:48x64", "train", "detection"),
        replace(CONFIG, divisor=32),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        batch_size=5,
        seed=0,
        workers=workers,
    )
    batch = next(loader)
    loader.close()
    assert batch.images.pixels.shape == (5, 3, 64, 64)
    assert sum(len(target) for target in batch.targets) > 3
    for target in batch.targets:
        assert isinstance(target, BoxTargets)
        low, high = (
            target.boxes[:, :2] - target.boxes[:, 2:] / 2,
            target.boxes[:, :2] + target.boxes[:, 2:] / 2,
        )
        assert bool((low >= -1e-6).all())
        assert bool((high <= 1 + 1e-6).all())


def test_labels_become_those_of_the_model() -> None:
    dataset = open_dataset("shapes:48x64", "val", "detection")
    other = Categories(
        names=("triangle", "x", "square", "circle"),
        is_thing=(True,) * 4,
        file_ids=(1, 2, 3, 4),
        colors=((0, 0, 0),) * 4,
    )
    matched = match_categories(dataset, other, "detection")
    expected = [{0: 3, 1: 2, 2: 0}[label] for label in dataset[0].truth.labels.tolist()]
    assert matched[0].truth.labels.tolist() == expected
    with pytest.raises(DataError, match="circle"):
        match_categories(dataset, replace(other, names=("triangle", "x", "square", "y")), "detection")


def test_real_boxes(shared_data: Path) -> None:
    dataset = open_dataset(shared_data / "voc2007_mini", "val", "detection")
    assert (len(dataset), len(dataset.categories)) == (86, 20)
    sample = dataset[0]
    assert bool((sample.truth.boxes[:, 2] <= sample.image.shape[2]).all())
