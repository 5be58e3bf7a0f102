import pickle
from pathlib import Path

import numpy as np
import pytest
from data.dataset_files import (
    CLASSES,
    class_map,
    coco_instances,
    save_coco_instances,
    save_json,
    save_labels,
    save_panoptic,
    save_picture,
)

from unimask.data.open import LAYOUTS, held_out, open_dataset
from unimask.errors import DataError
from unimask.structures import Dataset


def ids(dataset: Dataset) -> list[str]:
    return [dataset[index].image_id for index in range(len(dataset))]


def save_folder_set(root: Path, split: str, count: int = 2, labels: str = "labels") -> None:
    for n in range(count):
        save_picture(root / "images" / split / f"{split}{n}.png", 13, 11)
        save_labels(root / labels / split / f"{split}{n}.png", class_map())
    save_json(root / "classes.json", CLASSES)


@pytest.mark.parametrize(
    ("train", "val", "pictures"),
    [
        ("instances_train.json", "instances_val.json", "images"),
        ("annotations/instances_train2017.json", "annotations/instances_val2017.json", "images"),
        ("train/_annotations.coco.json", "valid/_annotations.coco.json", ""),
        ("train.json", "val.json", "images"),
        ("train/annotations.json", "validation/annotations.json", "images"),
    ],
)
def test_coco_instances_by_split(tmp_path: Path, train: str, val: str, pictures: str) -> None:
    for path, count in ((train, 3), (val, 2)):
        folder = tmp_path / pictures if pictures else (tmp_path / path).parent
        save_coco_instances(tmp_path / path, folder, count)
    assert len(open_dataset(tmp_path, "train", "instance")) == 3
    assert len(open_dataset(str(tmp_path), "val", "instance")) == 2
    assert len(open_dataset(tmp_path / val, "val", "instance")) == 2
    assert len(open_dataset(tmp_path / val, "train", "instance")) == 3
    assert len(open_dataset(tmp_path / train, "all", "instance")) == 3
    with pytest.raises(DataError, match="has no split 'test'; it has 'train', 'val'"):
        open_dataset(tmp_path, "test", "instance")


def test_instances_are_preferred_for_instance_segmentation_and_panoptic_for_the_rest(tmp_path: Path) -> None:
    for split in ("train", "val"):
        save_coco_instances(tmp_path / f"instances_{split}.json", tmp_path / "images")
        save_panoptic(tmp_path / f"panoptic_{split}.json", tmp_path / "panoptic", tmp_path / "images")
        save_json(tmp_path / f"captions_{split}.json", {})
        save_json(tmp_path / f"person_keypoints_{split}2017.json", {})
    assert open_dataset(tmp_path, "val", "instance")[0].truth.size == (23, 31)
    assert open_dataset(tmp_path, "val", "panoptic")[0].truth.size == (17, 19)
    assert open_dataset(tmp_path, "val", "semantic")[0].truth.size == (17, 19)


def test_one_set_is_held_out_in_part(tmp_path: Path) -> None:
    path = save_coco_instances(tmp_path / "annotations.json", tmp_path / "images", 60)
    for where in (tmp_path, path):
        train, val = (open_dataset(where, split, "instance") for split in ("train", "val"))
        assert 1 <= len(val) <= 15
        assert sorted(ids(train) + ids(val)) == sorted(f"p{n}" for n in range(60))
        assert len(open_dataset(where, "all", "instance")) == 60
    again = open_dataset(path, "val", "instance")
    assert ids(again) == ids(val)
    save_coco_instances(path, tmp_path / "images", 70)
    assert set(ids(val)) <= set(ids(open_dataset(path, "val", "instance")))


def test_hold_out_is_a_tenth_and_never_empty() -> None:
    assert 70 <= sum(held_out([f"picture_{n}" for n in range(1000)])) <= 130
    for count in range(1, 20):
        assert sum(held_out([f"x{n}" for n in range(count)])) >= 1


def test_a_single_picture_cannot_be_held_out(tmp_path: Path) -> None:
    save_coco_instances(tmp_path / "annotations.json", tmp_path / "images", 1)
    with pytest.raises(DataError, match="has one image"):
        open_dataset(tmp_path, "train", "instance")


def test_only_a_val_set_cannot_train(tmp_path: Path) -> None:
    save_coco_instances(tmp_path / "instances_val.json", tmp_path / "images")
    assert len(open_dataset(tmp_path, "val", "instance")) == 2
    with pytest.raises(DataError, match="has no split 'train'; it has 'val'"):
        open_dataset(tmp_path, "train", "instance")


def test_label_folders_by_split(tmp_path: Path) -> None:
    save_folder_set(tmp_path, "train", 3)
    save_folder_set(tmp_path, "val", 2)
    assert ids(open_dataset(tmp_path, "train", "semantic")) == ["train0", "train1", "train2"]
    assert ids(open_dataset(tmp_path, "val", "semantic")) == ["val0", "val1"]
    assert len(open_dataset(tmp_path, "val", "panoptic")) == 2
    with pytest.raises(
        DataError, match=r"has only stuff \(road, car, tree\); instance segmentation needs things"
    ):
        open_dataset(tmp_path, "val", "instance")


def test_label_folders_in_one_set(tmp_path: Path) -> None:
    save_folder_set(tmp_path, "", 25, labels="masks")
    assert (
        len(open_dataset(tmp_path, "train", "semantic")) + len(open_dataset(tmp_path, "val", "semantic"))
        == 25
    )
    save_json(tmp_path / "splits.json", {"train": ["1", "2"], "validation": ["7.png"], "test": ["9"]})
    assert ids(open_dataset(tmp_path, "train", "semantic")) == ["1", "2"]
    assert ids(open_dataset(tmp_path, "val", "semantic")) == ["7"]
    save_json(tmp_path / "splits.json", {"train": ["1", "99"], "val": ["7"]})
    with pytest.raises(DataError, match="1 images of the split are missing, the first is '99'"):
        open_dataset(tmp_path, "train", "semantic")


def test_instance_labels_get_a_background(tmp_path: Path) -> None:
    for n in range(2):
        save_picture(tmp_path / "images" / f"{n}.png", 3, 4)
        save_labels(tmp_path / "labels" / f"{n}.png", np.eye(3, 4, dtype=np.uint16) * 500)
    panoptic = open_dataset(tmp_path, "all", "panoptic")
    assert panoptic.categories.names == ("object", "background")
    assert panoptic[0].truth.areas().tolist() == [3, 9]
    assert open_dataset(tmp_path, "all", "panoptic", background=False)[0].truth.areas().tolist() == [3]
    assert open_dataset(tmp_path, "all", "instance")[0].truth.areas().tolist() == [3]


def test_what_is_not_recognised_says_what_is_there_and_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "stuff").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"found notes\.txt, stuff/; expected one of") as caught:
        open_dataset(tmp_path, "train", "panoptic")
    for layout in ("panoptic_train.json", "_annotations.coco.json", "labels/train/", "shapes"):
        assert layout in str(caught.value)
    with pytest.raises(DataError, match="found an empty folder"):
        open_dataset(tmp_path / "stuff", "train", "panoptic")
    with pytest.raises(DataError, match="no such file or folder; expected one of"):
        open_dataset(tmp_path / "none", "train", "panoptic")
    with pytest.raises(DataError, match="is a file, but no JSON"):
        open_dataset(tmp_path / "notes.txt", "train", "panoptic")


def test_several_annotations_of_one_split(tmp_path: Path) -> None:
    for year in ("2014", "2017"):
        save_coco_instances(tmp_path / f"annotations/instances_train{year}.json", tmp_path / "images")
        save_coco_instances(tmp_path / f"annotations/instances_val{year}.json", tmp_path / "images", 3)
    with pytest.raises(
        DataError, match=r"several annotations for train: .*2014\.json, .*2017\.json; name one"
    ):
        open_dataset(tmp_path, "train", "instance")
    assert len(open_dataset(tmp_path / "annotations/instances_train2014.json", "val", "instance")) == 3


def test_json_without_masks(tmp_path: Path) -> None:
    content = coco_instances(2)
    for entry in content["annotations"]:
        del entry["segmentation"]
    path = save_coco_instances(tmp_path / "detection_train.json", tmp_path / "images", 2, content)
    with pytest.raises(DataError, match="annotation 1 has no mask, only a box"):
        open_dataset(path, "all", "instance")
    with pytest.raises(DataError, match=r"found detection_train\.json, images/; expected"):
        open_dataset(tmp_path, "train", "instance")


def test_shapes_by_name() -> None:
    train, val = open_dataset("shapes", "train", "panoptic"), open_dataset("shapes:37x53", "val", "instance")
    assert (len(train), len(val)) == (10_000, 100)
    assert train[0].truth.size == (96, 128)
    assert val[0].truth.size == (37, 53)
    assert val.categories.names == ("circle", "square", "triangle")
    for wrong in ("shapes:0x5", "shapes:12", "shapes:ax4"):
        with pytest.raises(DataError, match="HEIGHTxWIDTH"):
            open_dataset(wrong, "train", "panoptic")
    with pytest.raises(DataError, match="no split 'all'"):
        open_dataset("shapes", "all", "panoptic")


def test_data_sets_can_be_sent_to_other_processes(tmp_path: Path) -> None:
    save_coco_instances(tmp_path / "annotations.json", tmp_path / "images", 12)
    for task in ("panoptic", "instance", "semantic"):
        dataset = open_dataset(tmp_path, "train", task)
        assert len(pickle.loads(pickle.dumps(dataset))) == len(dataset)


@pytest.mark.parametrize("place", ["nowhere", "", "file.txt"])
def test_every_layout_is_listed(tmp_path: Path, place: str) -> None:
    """Uncut, also after the error has gone to another process."""
    (tmp_path / "file.txt").write_text("a")
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path / place, "train", "instance")
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert str(error).endswith(LAYOUTS)
