import json
from pathlib import Path

import numpy as np
import pytest
from data.dataset_files import annotation, save_coco_instances, save_json, save_labels, save_picture, square
from PIL import Image

from unimask.config.images import Experiment
from unimask.config.overrides import override
from unimask.data.check import check
from unimask.errors import DataError


def coco(root: Path, *annotations: dict[str, object], count: int = 2) -> Path:
    images = [{"id": n, "file_name": f"p{n}.png", "height": 40, "width": 60} for n in range(count)]
    for n in range(count):
        save_picture(root / "images" / f"p{n}.png", 40, 60, value=90 + n)
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    content = {"images": images, "annotations": list(annotations), "categories": categories}
    save_json(root / "instances_train.json", content)
    save_json(root / "instances_val.json", content)
    return root


def test_objects_sizes_and_crowd_are_counted(tmp_path: Path) -> None:
    root = coco(
        tmp_path,
        annotation(1, 0, [square(2, 3, 8)]),
        annotation(2, 0, [square(20, 3, 20)]),
        annotation(3, 0, {"size": [40, 60], "counts": [2000, 80, 320]}, crowd=1),
    )
    said = check(root, "instance", override(Experiment(), {"data.resize": {"kind": "scale", "factor": 2.0}}))
    train = said.splits["train"]
    assert (train.images, train.read, train.without_objects, train.crowd) == (2, 2, 1, 1)
    assert train.objects == {"cat": 2, "dog": 0}
    assert train.images_of == {"cat": 1, "dog": 0}
    assert train.sizes == {"10 %": 16.0, "50 %": 40.0, "90 %": 40.0}
    assert (train.most_objects, train.tiny, train.void_share) == (2, 0, 0.0)
    assert not said.errors
    assert "train: dog never occurs" in said.warnings
    assert "train: in fewer than 10 images: cat (1)" in said.warnings
    assert [sample.image_id for sample in said.samples] == ["p0", "p0"]
    json.dumps(said.as_json(), allow_nan=False)


def test_a_set_without_objects_or_of_crowd_alone_is_an_error(tmp_path: Path) -> None:
    for split in ("train", "val"):
        save_picture(tmp_path / f"none/images/{split}/{split}.png", 40, 60)
        (tmp_path / f"none/labels/{split}").mkdir(parents=True)
        (tmp_path / f"none/labels/{split}/{split}.txt").touch()
    (tmp_path / "none/data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat]\n")
    said = check(tmp_path / "none", "instance")
    assert [error.count("has 1 images and no labels") for error in said.errors] == [1, 1]
    crowd = annotation(1, 0, {"size": [40, 60], "counts": [0, 40, 2360]}, crowd=1)
    said = check(coco(tmp_path / "crowd", crowd), "instance")
    assert said.errors[0] == "train: all 1 objects are crowd, so there is nothing to find"


def test_every_broken_file_is_named(tmp_path: Path) -> None:
    root = coco(tmp_path, annotation(1, 0, [square(2, 3, 8)]), count=4)
    for n in (1, 3):
        path = root / "images" / f"p{n}.png"
        path.write_bytes(path.read_bytes()[:60])
    said = check(root, "instance")
    assert len(said.errors) == 4  # in train and in val
    assert {path for path in ("p1.png", "p3.png") if any(path in one for one in said.errors)} == {
        "p1.png",
        "p3.png",
    }
    assert said.splits["train"].read == 2


def test_objects_too_small_to_see_and_too_many_for_the_queries_are_told(tmp_path: Path) -> None:
    squares = [annotation(n + 1, 0, [square(2 + 6 * (n % 9), 3 + 6 * (n // 9), 2)]) for n in range(20)]
    few = override(
        Experiment(), {"model.query_decoder.queries": 12, "data.resize": {"kind": "scale", "factor": 0.5}}
    )
    said = check(coco(tmp_path, *squares), "instance", few)
    assert said.splits["train"].tiny == 20
    assert any("20 objects have at most one pixel" in one for one in said.warnings)
    assert any("a view has 20 objects, the model finds at most 12" in one for one in said.warnings)
    tiles = override(few, {"data.view": {"kind": "tiles", "size": 24, "overlap": 4}})
    assert check(tmp_path, "instance", tiles).splits["train"].most_objects == 10


def test_void_and_classes_without_a_pixel(tmp_path: Path) -> None:
    numbers = np.zeros((20, 30), np.uint8)
    numbers[5:10] = 255
    for name in "ab":
        save_picture(tmp_path / "images" / f"{name}.png", 20, 30, value=60 + ord(name) % 7)
        save_labels(tmp_path / "labels" / f"{name}.png", numbers)
    classes = [{"id": 0, "name": "ground"}, {"id": 1, "name": "cell"}]
    save_json(tmp_path / "classes.json", {"classes": classes, "ignore_label": 255})
    said = check(tmp_path, "semantic")
    assert said.splits["train"].void_share == 0.25
    assert "train: cell never occurs; 25% of the pixels are void" in said.warnings


def test_the_same_image_twice_is_told(tmp_path: Path) -> None:
    root = coco(tmp_path, annotation(1, 0, [square(2, 3, 8)]), count=3)
    Image.open(root / "images" / "p0.png").save(root / "images" / "p2.png")
    said = check(root, "instance")
    assert said.splits["train"].duplicates == (("p0", "p2"),) or said.splits["train"].duplicates == (
        ("p2", "p0"),
    )


def test_a_part_of_a_large_set_is_spread_over_it(tmp_path: Path) -> None:
    save_coco_instances(tmp_path / "instances_train.json", tmp_path / "images", count=30)
    said = check(tmp_path / "instances_train.json", "instance", seconds=0.0)
    assert {name: one.read for name, one in said.splits.items()} == {"train": 1, "val": 1}
    assert sum(one.images for one in said.splits.values()) == 30
    assert any("train: 1 of " in one and "images were read" in one for one in said.warnings)


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected one of"):
        check(tmp_path, "instance")


def test_a_set_of_one_image_is_read_whole(tmp_path: Path) -> None:
    root = coco(tmp_path, annotation(1, 0, [square(2, 3, 8)]), count=1)
    (root / "instances_val.json").unlink()
    said = check(root, "instance")
    assert not said.errors
    assert {name: one.images for name, one in said.splits.items()} == {"train": 1}
