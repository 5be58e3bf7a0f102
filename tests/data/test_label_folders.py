from pathlib import Path

import numpy as np
import pytest
from data.dataset_files import CLASSES, class_map, save_json, save_labels, save_picture
from PIL import Image

from unimask.data.formats.folders import find_folders, label_dataset
from unimask.data.formats.folders_pairs import pair_up, read_splits
from unimask.data.formats.folders_scheme import read_scheme
from unimask.data.items import ItemDataset
from unimask.errors import DataError


def save_set(root: Path, numbers: np.ndarray, count: int = 2) -> None:
    for n in range(count):
        save_picture(root / "images" / f"p{n}.jpg", *numbers.shape)
        save_labels(root / "labels" / f"p{n}.png", numbers)


def open_set(root: Path) -> ItemDataset:
    pairs = pair_up(root / "images", root / "labels")
    return label_dataset(pairs, read_scheme(root, pairs))


def test_semantic_labels(tmp_path: Path) -> None:
    save_set(tmp_path, class_map())
    save_json(tmp_path / "classes.json", CLASSES)
    dataset = open_set(tmp_path)
    assert dataset.categories.names == ("road", "car", "tree")
    assert dataset.categories.is_thing == (False, False, False)
    assert dataset.image_ids == ("p0", "p1")
    segments = dataset[0].truth
    assert segments.labels.tolist() == [0, 1, 2]
    assert segments.layers[0, :, 3].tolist() == [1] * 4 + [2] * 4 + [3] * 4 + [0]  # 255 is void


def test_class_ids_need_not_count_from_zero(tmp_path: Path) -> None:
    numbers = np.array([[40, 7, 0, 9]], dtype=np.uint8)
    save_set(tmp_path, numbers)
    classes = {"classes": [{"id": 40, "name": "a"}, {"id": 7, "name": "b"}], "ignore_label": [0, 9]}
    save_json(tmp_path / "classes.json", classes)
    segments = open_set(tmp_path)[0].truth
    assert segments.layers.tolist() == [[[2, 1, 0, 0]]]
    assert segments.labels.tolist() == [1, 0]


def test_labels_out_of_range_are_named(tmp_path: Path) -> None:
    numbers = class_map()
    numbers[5, 5] = 3
    save_set(tmp_path, numbers)
    save_json(tmp_path / "classes.json", CLASSES)
    message = r"p0\.png: has labels that are no class: 3; the classes are 0, 1, 2; ignored are 255"
    with pytest.raises(DataError, match=message):
        open_set(tmp_path)[0]
    save_json(tmp_path / "classes.json", {**CLASSES, "ignore_label": 3})
    with pytest.raises(DataError, match="no class: 255"):
        open_set(tmp_path)[0]


def test_sixteen_bit_labels_are_instances(tmp_path: Path) -> None:
    numbers = np.array([[0, 700, 700], [3, 0, 65535]], dtype=np.uint16)
    save_set(tmp_path, numbers)
    dataset = open_set(tmp_path)
    assert dataset.categories.names == ("object",)
    assert dataset.categories.is_thing == (True,)
    segments = dataset[1].truth
    assert segments.layers.tolist() == [[[0, 2, 2], [1, 0, 3]]]
    assert segments.labels.tolist() == [0, 0, 0]


def test_instances_with_an_ignored_number_keep_void_apart_from_background(tmp_path: Path) -> None:
    numbers = np.array([[0, 1, 1], [2, 255, 0]], dtype=np.uint8)
    save_set(tmp_path, numbers)
    cells = {"kind": "instances", "classes": [{"id": 1, "name": "cell"}], "ignore_label": 255}
    save_json(tmp_path / "classes.json", cells)
    dataset = open_set(tmp_path)
    assert dataset.categories.names == ("cell", "background")
    assert dataset.categories.is_thing == (True, False)
    assert dataset[0].truth.layers.tolist() == [[[3, 1, 1], [2, 0, 3]]]
    assert dataset[0].truth.labels.tolist() == [0, 0, 1]
    del cells["ignore_label"]
    save_json(tmp_path / "classes.json", cells)
    assert open_set(tmp_path).categories.names == ("cell",)
    assert open_set(tmp_path)[0].truth.layers.tolist() == [[[0, 1, 1], [2, 3, 0]]]


@pytest.mark.parametrize("high", [1, 255])
def test_two_valued_labels_are_foreground_and_background(tmp_path: Path, high: int) -> None:
    save_set(tmp_path, np.array([[0, high]], dtype=np.uint8))
    dataset = open_set(tmp_path)
    assert dataset.categories.names == ("background", "foreground")
    assert dataset[0].truth.labels.tolist() == [0, 1]


def test_labels_that_do_not_say_what_they_mean(tmp_path: Path) -> None:
    save_set(tmp_path, class_map())
    with pytest.raises(
        DataError, match=r"classes\.json: no such file, .*numbers 0, 1, 2, 255.*\"kind\": \"semantic\""
    ):
        open_set(tmp_path)


BAD_CLASSES = {
    "kind": ({**CLASSES, "kind": "panoptic"}, "kind is 'panoptic'"),
    "many": ({**CLASSES, "kind": "instances"}, "has 3 classes"),
    "empty": ({"classes": []}, "'classes' is empty"),
    "absent": ({"names": ["road"]}, "no list of objects 'classes'"),
    "twice": ({"classes": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "class id 1 occurs twice"),
    "same": ({"classes": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, "same name"),
    "name": ({"classes": [{"id": 1}]}, "class 1 has the name None"),
    "id": ({"classes": [{"id": "x", "name": "a"}]}, "class 'a' has id 'x'"),
    "ignore": ({**CLASSES, "ignore_label": 2}, "ignore_label is 2"),
    "ignore text": ({**CLASSES, "ignore_label": "void"}, "ignore_label is 'void'"),
}


@pytest.mark.parametrize("case", BAD_CLASSES)
def test_bad_classes_file(tmp_path: Path, case: str) -> None:
    content, message = BAD_CLASSES[case]
    save_set(tmp_path, class_map())
    save_json(tmp_path / "classes.json", content)
    with pytest.raises(DataError, match=message) as caught:
        open_set(tmp_path)
    assert caught.value.path.endswith("classes.json")


def test_pictures_and_labels_must_pair_up(tmp_path: Path) -> None:
    save_set(tmp_path, class_map(), 3)
    (tmp_path / "labels" / "p1.png").unlink()
    with pytest.raises(DataError, match=r"1 of 3 images in .*images have no label map, the first is 'p1'"):
        open_set(tmp_path)
    (tmp_path / "images" / "p1.jpg").unlink()
    (tmp_path / "images" / "p2.jpg").unlink()
    with pytest.raises(DataError, match=r"1 label maps in .*labels have no image here, the first is 'p2'"):
        open_set(tmp_path)


def test_label_names_may_have_an_ending(tmp_path: Path) -> None:
    save_picture(tmp_path / "images" / "a.jpg", 3, 4)
    save_picture(tmp_path / "images" / "a_b.jpg", 3, 4)
    save_labels(tmp_path / "labels" / "a_mask.png", np.zeros((3, 4), np.uint8))
    save_labels(tmp_path / "labels" / "a_b_mask.png", np.ones((3, 4), np.uint8))
    pairs = pair_up(tmp_path / "images", tmp_path / "labels")
    assert [(p.image.name, p.labels.name) for p in pairs] == [
        ("a.jpg", "a_mask.png"),
        ("a_b.jpg", "a_b_mask.png"),
    ]


def test_sizes_must_agree(tmp_path: Path) -> None:
    save_set(tmp_path, class_map())
    save_json(tmp_path / "classes.json", CLASSES)
    save_picture(tmp_path / "images" / "p0.jpg", 5, 6)
    with pytest.raises(DataError, match=r"labels/p0\.png: is 11 x 13 pixels, but its image p0\.jpg is 6 x 5"):
        open_set(tmp_path)[0]
    save_labels(tmp_path / "labels" / "p0.png", np.zeros((5, 6, 3), dtype=np.uint8))
    with pytest.raises(DataError, match=r"p0\.png: is a label map of colours"):
        open_set(tmp_path)[0]


def test_folders_are_found(tmp_path: Path) -> None:
    layouts = [
        ("images/train", "labels/train", "train"),
        ("images/training", "annotations/training", "train"),
        ("train/images", "train/masks", "train"),
        ("train", "trainannot", "train"),
        ("val", "val_labels", "val"),
        ("img", "masks", ""),
        ("JPEGImages", "SegmentationClass", ""),
    ]
    for index, (pictures, labels, split) in enumerate(layouts):
        root = tmp_path / str(index)
        save_picture(root / pictures / "a.png", 3, 4)
        save_labels(root / labels / "a.png", np.zeros((3, 4), np.uint8))
        assert find_folders(root) == {split: (root / pictures, root / labels)}
    (tmp_path / "none" / "images").mkdir(parents=True)
    (tmp_path / "none" / "labels").mkdir()
    assert find_folders(tmp_path / "none") == {}


def test_splits_file(tmp_path: Path) -> None:
    assert read_splits(tmp_path) == {}
    save_json(tmp_path / "splits.json", {"train": ["a.jpg", "b.v2"], "val": []})
    assert read_splits(tmp_path) == {"train": ["a", "b.v2"], "val": []}
    save_json(tmp_path / "splits.json", {"train": 5})
    with pytest.raises(DataError, match="'train' is no list"):
        read_splits(tmp_path)


def test_palette_labels_are_indices(tmp_path: Path) -> None:
    save_picture(tmp_path / "images" / "p0.jpg", 1, 2)
    palette = Image.new("P", (2, 1))
    palette.putpalette([128, 0, 0, 0, 128, 0, 0, 0, 128])
    palette.putdata([2, 1])
    (tmp_path / "labels").mkdir()
    palette.save(tmp_path / "labels" / "p0.png")
    save_json(tmp_path / "classes.json", CLASSES)
    assert open_set(tmp_path)[0].truth.labels.tolist() == [1, 2]
