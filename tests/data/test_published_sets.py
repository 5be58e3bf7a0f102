"""Cityscapes, ADE20K, Mapillary Vistas and COCO as they are unzipped: exact segments for every task."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data.dataset_files import (
    annotation,
    save_coco_instances,
    save_json,
    save_labels,
    save_panoptic,
    save_picture,
)
from data.published_files import (
    CITY_KINDS,
    SIZE,
    rows,
    save_ade20k,
    save_ade20k_json,
    save_ade20k_objects,
    save_cityscapes,
    save_vistas,
    save_vistas_panoptic,
)
from PIL import Image

from unimask.config.tasks import Task
from unimask.data.category_tables import load_categories
from unimask.data.formats.cityscapes import number_scheme
from unimask.data.open import open_dataset
from unimask.errors import DataError
from unimask.structures import Dataset

WIDTH = SIZE[1]


def found(dataset: Dataset, index: int = 0) -> list[tuple[str, bool, int]]:
    """Name, crowd and rows of each segment (pixels, where they are no whole rows)."""
    segments = dataset[index].truth
    assert segments.layers.shape == (1, *SIZE)
    labels, crowd, areas = segments.labels.tolist(), segments.is_crowd.tolist(), segments.areas().tolist()
    return [
        (dataset.categories.names[k], c, a // WIDTH if a % WIDTH == 0 else a)
        for k, c, a in zip(labels, crowd, areas)
    ]


# Cityscapes


CITY_TRUTH: dict[Task, list[tuple[str, bool, int]]] = {
    "panoptic": [
        ("road", False, 3),
        ("sky", False, 16),
        ("person", True, 3),
        ("person", False, 3),
        ("person", False, 3),
        ("car", False, 3),
    ],
    "instance": [("person", True, 3), ("person", False, 3), ("person", False, 3), ("car", False, 3)],
    "semantic": [
        ("road", False, 3),
        ("sky", False, 16),
        ("person", False, 3),
        ("car", False, 3),
        ("bicycle", False, 3),
    ],
}


@pytest.mark.parametrize("task", CITY_TRUTH)
def test_cityscapes(tmp_path: Path, task: Task) -> None:
    save_cityscapes(tmp_path, CITY_KINDS)
    for split in ("train", "val"):
        dataset = open_dataset(tmp_path, split, task)
        assert len(dataset) == 3
        assert dataset[2].image_id == f"ulm_{split}0_000019_leftImg8bit"
        for index in range(3):
            assert sorted(found(dataset, index)) == sorted(CITY_TRUTH[task])
        names = load_categories("cityscapes").names
        assert dataset.categories.names == (names[11:] if task == "instance" else names)
    layer = open_dataset(tmp_path, "val", "panoptic")[0].truth.layers[0, :, 5].tolist()
    assert layer[15:21] == [0] * 6  # caravan and static are void
    assert len(pickle.loads(pickle.dumps(dataset))) == 3


def test_cityscapes_boxes_are_around_its_things(tmp_path: Path) -> None:
    save_cityscapes(tmp_path, CITY_KINDS)
    boxes = open_dataset(tmp_path, "val", "detection")[0].truth
    assert boxes.boxes.tolist() == [[0, top, 53, top + 3] for top in (3, 6, 9, 12)]
    assert boxes.is_crowd.tolist() == [True, False, False, False]


def test_cityscapes_with_train_ids_alone_is_semantic(tmp_path: Path) -> None:
    save_cityscapes(tmp_path, {"labelTrainIds": CITY_KINDS["labelTrainIds"]})
    dataset = open_dataset(tmp_path, "val", "semantic")
    assert sorted(found(dataset)) == sorted(CITY_TRUTH["semantic"])
    assert dataset.categories == load_categories("cityscapes")
    message = (
        r"aachen: has no \*_gtFine_instanceIds\.png, which the task 'panoptic' needs; .* 'semantic' only"
    )
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path, "val", "panoptic")


def test_places_that_stand_for_cityscapes(tmp_path: Path) -> None:
    root = tmp_path / "cityscapes"
    save_cityscapes(root, CITY_KINDS)
    made = save_json(root / "gtFine" / "cityscapes_panoptic_val.json", {})
    for path in (root, root / "gtFine", root / "leftImg8bit", made):
        assert len(open_dataset(path, "val", "panoptic")) == 3


def test_what_is_wrong_with_cityscapes_is_said(tmp_path: Path) -> None:
    save_cityscapes(tmp_path, CITY_KINDS, ("train", "val", "test"))
    with pytest.raises(DataError, match=r"test: the ground truth .* is not public; evaluate on 'val'"):
        open_dataset(tmp_path, "test", "semantic")
    city = tmp_path / "gtFine" / "val" / "aachen"
    wrong = CITY_KINDS["instanceIds"].copy()
    wrong[9, 9] = 34001
    save_labels(city / "aachen_val0_000019_gtFine_instanceIds.png", wrong)
    with pytest.raises(
        DataError, match=r"val0_000019_gtFine_instanceIds\.png: .* no class: 34001; .*copy it again"
    ):
        open_dataset(tmp_path, "val", "instance")[0]
    (city / "aachen_val1_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(DataError, match=r"aachen: 1 of 2 label maps are missing, the first is 'aachen_val1_"):
        open_dataset(tmp_path, "val", "semantic")
    save_labels(city / "aachen_val1_000019_gtFine_labelIds.png", rows(7)[:, :50])
    with pytest.raises(DataError, match="is 50 x 37 pixels, but its image"):
        open_dataset(tmp_path, "val", "semantic")[1]
    shutil.rmtree(tmp_path / "gtFine" / "val")
    with pytest.raises(DataError, match=r"gtFine/val: no labels; unzip gtFine_trainvaltest\.zip beside"):
        open_dataset(tmp_path, "val", "semantic")


def test_every_label_of_cityscapes_is_a_class_or_void() -> None:
    for kind in ("labelIds", "instanceIds"):
        scheme = number_scheme(kind)
        assert sorted((*scheme.classes, *scheme.ignored)) == list(range(34))
        assert len(scheme.classes) == 19


def test_files_are_opened_only_when_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_cityscapes(tmp_path / "city", CITY_KINDS)
    save_ade20k(tmp_path / "ade")
    save_vistas(tmp_path / "vistas", "v1.2")
    opened: list[object] = []
    real: Callable[..., Image.Image] = Image.open
    monkeypatch.setattr(Image, "open", lambda path, *rest: opened.append(path) or real(path, *rest))
    for name in ("city", "ade", "vistas"):
        dataset = open_dataset(tmp_path / name, "val", "semantic")
        assert opened == []
        dataset[0]  # the heads of all image files are looked at once
        opened.clear()
        dataset[1]
        assert len(set(opened)) == 2
        opened.clear()


# ADE20K


def test_ade20k_semantic(tmp_path: Path) -> None:
    save_ade20k(tmp_path / "ADEChallengeData2016")
    truth = [
        ("wall", False, 3),
        ("sky", False, 22),
        ("bed", False, 3),
        ("person", False, 3),
        ("flag", False, 3),
    ]
    for path in (tmp_path, tmp_path / "ADEChallengeData2016"):
        for split, name in (("train", "ADE_train_00000002"), ("val", "ADE_val_00000002")):
            dataset = open_dataset(path, split, "semantic")
            assert dataset.categories == load_categories("ade20k")
            assert (len(dataset), dataset[1].image_id) == (2, name)
            assert sorted(found(dataset)) == sorted(truth)


def test_ade20k_in_detectron2s_numbers(tmp_path: Path) -> None:
    save_ade20k(tmp_path)
    save_ade20k_json(tmp_path, "validation", "val")
    raw = found(open_dataset(tmp_path, "val", "semantic"))
    for path in sorted((tmp_path / "annotations").glob("*/*.png")):
        numbers = np.array(Image.open(path)) - np.uint8(1)
        save_labels(tmp_path / "annotations_detectron2" / path.parent.name / path.name, numbers)
    assert found(open_dataset(tmp_path, "val", "semantic")) == raw
    shutil.rmtree(tmp_path / "annotations")
    assert found(open_dataset(tmp_path, "val", "semantic")) == raw
    shutil.rmtree(tmp_path / "annotations_detectron2")
    of_json = [("wall", False, 9), ("person", False, 11)]
    assert sorted(found(open_dataset(tmp_path, "val", "semantic"))) == sorted(of_json)


def test_ade20k_objects_over_classes(tmp_path: Path) -> None:
    save_ade20k(tmp_path)
    save_ade20k_objects(tmp_path)
    truth = [
        *[("wall", False, 3), ("sky", False, 22 * WIDTH - 20)],
        *[("bed", False, 3), ("person", False, 2), ("person", False, 20), ("flag", False, 3)],
    ]
    dataset = open_dataset(tmp_path, "train", "panoptic")
    assert sorted(found(dataset)) == sorted(truth)
    assert dataset[0].truth.layers[0, 7].tolist() == [0] * WIDTH  # a thing's class without an object
    things = open_dataset(tmp_path, "train", "instance")
    assert len(things.categories) == 100
    assert sorted(found(things)) == sorted(truth[2:])
    assert len(open_dataset(tmp_path, "val", "detection")[0].truth) == 4
    path = tmp_path / "annotations_instance" / "training" / "ADE_train_00000001.png"
    for red, message in ((101, "has class 101; there are 1 to 100"), (0, "object 5 has no class")):
        Image.fromarray(np.stack([rows(red), rows(5), rows(0)], -1)).save(path)
        with pytest.raises(DataError, match=f"ADE_train_00000001.png: {message}"):
            dataset[0]


def test_ade20k_json_of_detectron2(tmp_path: Path) -> None:
    save_ade20k(tmp_path)
    for word, short in (("training", "train"), ("validation", "val")):
        save_ade20k_json(tmp_path, word, short)
    for split in ("train", "val"):
        panoptic = open_dataset(tmp_path, split, "panoptic")
        assert found(panoptic) == [("wall", False, 9), ("person", False, 220), ("person", False, 363)]
        assert panoptic.categories.names == ("wall", "sky", "bed", "window", "person", "flag")
        instance = open_dataset(tmp_path, split, "instance")
        assert found(instance) == [("window", False, 74)]  # the scripts call it "windowpane" here
        assert instance[1].image_id == f"ADE_{split}_00000002"
        assert open_dataset(tmp_path, split, "detection")[0].truth.boxes.tolist() == [[3, 0, 5, 37]]
    named = tmp_path / "ade20k_panoptic_val.json"
    assert sorted(found(open_dataset(named, "train", "instance"))) == [
        ("person", False, 220),
        ("person", False, 363),
    ]
    assert len(open_dataset(named, "all", "panoptic")) == 2
    content = json.loads(named.read_text())
    content["categories"][1]["id"] = 150
    save_json(named, content)
    with pytest.raises(DataError, match="category 'sky' has id 150; expected 0 to 149"):
        open_dataset(tmp_path, "val", "panoptic")


def test_what_is_wrong_with_ade20k_is_said(tmp_path: Path) -> None:
    save_ade20k(tmp_path)
    with pytest.raises(
        DataError, match=r"annotations_instance/validation: .* ade20k_panoptic_val\.json: the task"
    ):
        open_dataset(tmp_path, "val", "panoptic")
    path = tmp_path / "annotations" / "validation" / "ADE_val_00000001.png"
    save_labels(path, rows(1, 151))
    with pytest.raises(DataError, match=r"ADE_val_00000001\.png: has labels that are no class: 151; "):
        open_dataset(tmp_path, "val", "semantic")[0]
    path.unlink()
    with pytest.raises(DataError, match=r"1 of 2 images in .* have no label map"):
        open_dataset(tmp_path, "val", "semantic")
    shutil.rmtree(tmp_path / "annotations" / "validation")
    with pytest.raises(DataError, match="annotations/validation: no such folder; unzip"):
        open_dataset(tmp_path, "val", "semantic")
    with pytest.raises(DataError, match="no split 'test'"):
        open_dataset(tmp_path, "test", "semantic")


def test_a_set_of_ones_own_in_folders_like_those_of_ade20k_keeps_its_classes(tmp_path: Path) -> None:
    save_ade20k(tmp_path)
    classes = [{"id": n, "name": f"class {n}"} for n in (0, 1, 3, 8, 13, 150)]
    save_json(tmp_path / "classes.json", {"classes": classes})
    assert open_dataset(tmp_path, "val", "semantic").categories.names[0] == "class 0"


# Mapillary Vistas


VISTAS_TRUTH: dict[Task, list[tuple[str, bool, int]]] = {
    "panoptic": [
        ("Bird", False, 3),
        ("Curb", False, 3),
        ("Sky", False, 3),
        ("Car", False, 3),
        ("Car", False, 3),
    ],
    "instance": [("Bird", False, 3), ("Car", False, 3), ("Car", False, 3)],
    "semantic": [("Bird", False, 3), ("Curb", False, 3), ("Sky", False, 3), ("Car", False, 6)],
}


@pytest.mark.parametrize("task", VISTAS_TRUTH)
@pytest.mark.parametrize("version", ["v1.2", "", "v2.0"])
def test_vistas_in_pictures_of_labels_and_instances(tmp_path: Path, task: Task, version: str) -> None:
    save_vistas(tmp_path, version)
    for split in ("train", "val"):
        dataset = open_dataset(tmp_path, split, task)
        assert dataset[0].image_id == "_-1aBc"
        assert dataset.categories.names == (
            ("Bird", "Car") if task == "instance" else ("Bird", "Curb", "Sky", "Car")
        )
        assert sorted(found(dataset, 1)) == sorted(VISTAS_TRUTH[task])


@pytest.mark.parametrize("version", ["v1.2", "", "v2.0"])
def test_vistas_in_panoptic_json(tmp_path: Path, version: str) -> None:
    save_vistas(tmp_path, version)
    save_vistas_panoptic(tmp_path, version)
    dataset = open_dataset(tmp_path, "val", "panoptic")
    curb = [("Curb", False, 2)] * (version != "v2.0")  # the group of 2.0 is not evaluated
    things = [("Bird", False, 4), ("Car", False, 5), ("Car", False, 7)]
    assert found(dataset) == things + curb
    assert dataset.categories.names == ("Bird", "Curb", "Sky", "Car")
    assert found(open_dataset(tmp_path, "val", "instance")) == things
    assert sorted(found(open_dataset(tmp_path, "val", "semantic"))) == sorted(VISTAS_TRUTH["semantic"])
    (tmp_path / (f"config_{version}.json" if version else "config.json")).unlink()
    if version != "v2.0":  # where names are not readable without the configuration
        assert found(open_dataset(tmp_path, "val", "panoptic")) == things + curb
        assert len(found(open_dataset(tmp_path, "val", "semantic"))) == 3


def test_version_1_2_unless_the_path_says_otherwise(tmp_path: Path) -> None:
    for version in ("v2.0", "v1.2"):
        save_vistas(tmp_path, version)
        save_vistas_panoptic(tmp_path, version)
    new, old = tmp_path / "validation" / "v2.0", tmp_path / "validation" / "v1.2"
    for path in (tmp_path, tmp_path / "config_v1.2.json", old, old / "panoptic" / "panoptic_2018.json"):
        assert len(found(open_dataset(path, "val", "panoptic"))) == 4
        assert len(open_dataset(path, "train", "panoptic")) == 2
    for path in (tmp_path / "config_v2.0.json", new, new / "panoptic" / "panoptic_2020.json"):
        assert len(found(open_dataset(path, "val", "panoptic"))) == 3
        assert len(open_dataset(path, "train", "panoptic")) == 2


def test_what_is_wrong_with_vistas_is_said(tmp_path: Path) -> None:
    save_vistas(tmp_path, "v1.2", ("training", "validation"))
    save_picture(tmp_path / "testing" / "images" / "t.jpg", *SIZE)
    with pytest.raises(DataError, match=r"testing: the ground truth .* is not public"):
        open_dataset(tmp_path, "test", "panoptic")
    folder = tmp_path / "validation" / "v1.2"
    save_labels(folder / "labels" / "xY_2.png", rows(0, 6))
    with pytest.raises(
        DataError, match=r"xY_2\.png: has labels that are no class: 6; .* config_v1\.2\.json of one"
    ):
        open_dataset(tmp_path, "val", "semantic")[1]
    (folder / "instances" / "xY_2.png").unlink()
    with pytest.raises(DataError, match=r"1 of 2 images in .* have no label map, the first is 'xY_2'"):
        open_dataset(tmp_path, "val", "instance")
    save_vistas_panoptic(tmp_path, "v1.2")
    labels = json.loads((tmp_path / "config_v1.2.json").read_text())["labels"]
    save_json(tmp_path / "config_v1.2.json", {"labels": labels[:2]})
    with pytest.raises(DataError, match=r"has category 3, config_v1\.2\.json has 2 labels"):
        open_dataset(tmp_path, "val", "panoptic")
    save_json(tmp_path / "config_v1.2.json", {"labels": [labels[0], labels[0]]})
    with pytest.raises(DataError, match="two have the same one"):
        open_dataset(tmp_path, "val", "semantic")
    (tmp_path / "config_v1.2.json").unlink()
    with pytest.raises(DataError, match=r"config_v1\.2\.json: no such file; it comes with the data set"):
        open_dataset(tmp_path, "train", "semantic")
    shutil.rmtree(tmp_path / "training" / "v1.2" / "instances")
    with pytest.raises(DataError, match=r"v1\.2: has neither instances/ nor panoptic/panoptic_2018\.json"):
        open_dataset(tmp_path, "train", "panoptic")


# COCO


def save_coco(root: Path) -> None:
    for split, count in (("train", 3), ("val", 2)):
        pictures = root / f"{split}2017"
        save_panoptic(
            root / "annotations" / f"panoptic_{split}2017.json",
            root / "annotations" / f"panoptic_{split}2017",
            pictures,
            count,
        )
        images = [{"id": n, "file_name": f"p{n}.jpg", "height": 17, "width": 19} for n in range(count)]
        categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
        content = {
            "images": images,
            "annotations": [annotation(1, 0, [[2, 2, 9, 2, 9, 9, 2, 9]])],
            "categories": categories,
        }
        save_coco_instances(root / "annotations" / f"instances_{split}2017.json", pictures, count, content)
        for other in ("captions", "person_keypoints", "stuff"):
            save_json(root / "annotations" / f"{other}_{split}2017.json", {"annotations": []})


def test_coco_as_its_zips_unpack(tmp_path: Path) -> None:
    save_coco(tmp_path)
    areas: dict[Task, list[int]] = {"panoptic": [95, 95, 95], "semantic": [95, 95, 95], "instance": [49]}
    for task, wanted in areas.items():
        for split, count in (("train", 3), ("val", 2)):
            dataset = open_dataset(tmp_path, split, task)
            assert len(dataset) == count
            assert dataset[0].truth.areas().tolist() == wanted
    assert len(open_dataset(tmp_path, "val", "detection")[0].truth) == 1


def test_coco_stuff(tmp_path: Path) -> None:
    for word in ("train2017", "val2017"):
        save_picture(tmp_path / word / "000000000139.jpg", *SIZE)
        save_labels(tmp_path / "stuffthingmaps" / word / "000000000139.png", rows(0, 91, 181, 255))
    truth = [("person", False, 3), ("banner", False, 3), ("wood", False, 3)]
    for path in (tmp_path, tmp_path / "stuffthingmaps"):
        dataset = open_dataset(path, "val", "semantic")
        assert found(dataset) == truth
        assert dataset.categories == load_categories("coco_stuff")
    with pytest.raises(DataError, match="stuffthingmaps: serves the task 'semantic' only"):
        open_dataset(tmp_path / "stuffthingmaps", "val", "panoptic")
    save_labels(tmp_path / "stuffthingmaps" / "val2017" / "000000000139.png", rows(182))
    with pytest.raises(DataError, match="no class: 182"):
        open_dataset(tmp_path, "val", "semantic")[0]
    save_coco(tmp_path / "coco")
    shutil.copytree(tmp_path / "stuffthingmaps", tmp_path / "coco" / "stuffthingmaps")
    assert open_dataset(tmp_path / "coco", "val", "semantic").categories.names == ("cat", "dog", "grass")


def test_coco_whose_inner_zip_is_still_packed(tmp_path: Path) -> None:
    save_coco(tmp_path)
    shutil.rmtree(tmp_path / "annotations" / "panoptic_val2017")
    (tmp_path / "annotations" / "panoptic_val2017.zip").touch()
    with pytest.raises(
        DataError, match=r"PNGs \('p0\.png', \.\.\.\) are not found; .*; unzip panoptic_val2017\.zip"
    ):
        open_dataset(tmp_path, "val", "panoptic")
