"""What a data set holds and nothing reads, and what can hardly be meant, is said by `unimask check`."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from data.dataset_files import annotation, save_json, square
from PIL import Image

from unimask.config.tasks import Task
from unimask.data.check import DataCheck, check
from unimask.data.open import labelled_task
from unimask.errors import DataError

POLYGON = [[3.0, 4.0], [20.0, 4.0], [20.0, 18.0]]


def save_noise(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def said(root: Path, words: str, task: Task | None = None) -> str:
    """The only warning about the data that has these words."""
    found = [one for one in warnings_of(check(root, task)) if words in one]
    assert len(found) == 1, (words, check(root, task).warnings)
    return found[0]


def warnings_of(checked: DataCheck) -> list[str]:
    assert not checked.errors
    return [one for one in checked.warnings if "fewer than" not in one]


def save_coco(
    root: Path,
    annotations: Sequence[dict[str, object]],
    names: Sequence[str] = ("cat",),
    split: str = "train",
) -> Path:
    numbers = {int(str(one["image_id"])) for one in annotations}
    images = [{"id": n, "file_name": f"{n}.png", "height": 30, "width": 40} for n in sorted(numbers)]
    for number in numbers:
        save_noise(root / "images" / f"{number}.png", number)
    categories = [{"id": 3 + index, "name": name} for index, name in enumerate(names)]
    content = {"images": images, "annotations": list(annotations), "categories": categories}
    save_json(root / f"instances_{split}.json", content)
    return root


def plain(number: int, image: int = 1) -> dict[str, object]:
    return annotation(number, image, [square(2 + number, 3, 8)]) | {"bbox": [2 + number, 3, 8, 8]}


@pytest.mark.parametrize(
    ("box", "wrong"),
    [([6, 3, 8, 8], False), ([6, 2, 9, 9], False), ([6, 3, 14, 11], True), ([3.0, 1.5, 4, 4], True)],
)
def test_boxes_that_are_not_those_of_their_masks(tmp_path: Path, box: list[float], wrong: bool) -> None:
    """The mask reaches from (6, 3) to (14, 11): its box, one with a margin, two corners, half the size."""
    others = [plain(number, number) for number in range(5, 13)]
    save_coco(tmp_path, [plain(4) | {"bbox": box}, *others])
    warned = [one for one in warnings_of(check(tmp_path, "detection")) if "those of their masks" in one]
    assert len(warned) == 2 * wrong  # train and val are of one file
    assert all(
        "1 of 9 boxes of instances_train.json" in one and f"annotation 4: {box}" in one for one in warned
    )
    assert not [one for one in warnings_of(check(tmp_path, "instance")) if "those of their masks" in one]


def test_files_of_another_form_are_answered_with_their_own(tmp_path: Path) -> None:
    for name in ("images", "labels"):
        save_noise(tmp_path / name / "1.png", 1)
    (tmp_path / "classes.json").write_text('[{"id": 0, "name": "cell"}]')
    assert 'expected {"kind": "semantic", "classes": ' in check(tmp_path, "semantic").errors[0]


def test_images_of_the_train_split_in_the_val_split(tmp_path: Path) -> None:
    save_coco(tmp_path, [plain(1, 1), plain(2, 2), plain(3, 3)])
    save_coco(tmp_path, [plain(1, 2), plain(2, 9)], split="val")
    assert "val: 1 image has the same pixels as one of train" in said(tmp_path, "same pixels")


def test_objects_that_are_there_twice(tmp_path: Path) -> None:
    twice = [plain(1), plain(2), {**plain(1), "id": 7}, {**plain(1), "id": 8}]
    assert "train: 2 objects lie exactly on another" in said(
        save_coco(tmp_path, twice), "exactly", "instance"
    )
    assert "train: 2 objects lie exactly on another" in said(tmp_path, "exactly", "detection")


def test_names_of_categories_that_can_hardly_be_meant_as_two(tmp_path: Path) -> None:
    names = ("cat", "dog", "Cat ", "caf\u00e9", "cafe\u0301")
    for number, name in enumerate(names):
        save_noise(tmp_path / f"{number}.png", number)
        shapes = [{"label": name, "points": POLYGON, "shape_type": "polygon"}]
        content = {"shapes": shapes, "imagePath": f"{number}.png", "imageHeight": 30, "imageWidth": 40}
        save_json(tmp_path / f"{number}.json", content)
    found = [one for one in check(tmp_path, "instance").warnings if "differ in case" in one]
    assert [one.partition(" differ")[0].removeprefix("the categories ") for one in found] == [
        "'Cat ' and 'cat'",
        "'cafe\u0301' and 'caf\u00e9'",
    ]


def test_what_reaches_beyond_the_images_is_counted(tmp_path: Path) -> None:
    far = annotation(2, 1, [square(30, 20, 300)]) | {"bbox": [30, 20, 300, 300]}
    near = annotation(3, 1, [square(31, 21, 9.5)]) | {"bbox": [31, 21, 9.5, 9.5]}  # by rounding
    root = save_coco(tmp_path / "coco", [plain(1), far, near])
    for task in ("instance", "detection"):
        found = said(root, "1 object reaches beyond its image, and what is outside is cut off", task)
        assert "(the first is in instances_train.json)" in found
    for number in range(2):
        save_noise(tmp_path / "labelme" / f"{number}.png", number)
        shapes = [
            {"label": "cat", "points": POLYGON, "shape_type": "polygon"},
            {"label": "cat", "points": [[5, 5], [600, 300]], "shape_type": "rectangle"},
        ]
        content = {"shapes": shapes, "imagePath": f"{number}.png", "imageHeight": 30, "imageWidth": 40}
        save_json(tmp_path / "labelme" / f"{number}.json", content)
    found = [one for one in check(tmp_path / "labelme", "instance").warnings if "beyond" in one]
    assert len(found) == 2  # train and val
    assert all("2 objects reach beyond their images" in one for one in found)  # of both files


def test_images_and_label_files_that_belong_to_nothing(tmp_path: Path) -> None:
    for split, numbers in (("train", (0, 1)), ("val", (2,))):
        for number in numbers:
            save_noise(tmp_path / "images" / split / f"{number}.png", number)
            label = tmp_path / "labels" / split / f"{number}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat]\n")
    assert not [one for one in check(tmp_path).warnings if "belong" in one]
    shutil.copy(tmp_path / "labels" / "train" / "0.txt", tmp_path / "labels" / "train" / "gone.txt")
    (tmp_path / "labels" / "train" / "classes.txt").write_text("cat\n")
    found = said(tmp_path, "belong to no split")
    assert found.startswith("1 label files in ")
    assert found.endswith("labels/train belong to no split and are left out: gone.txt")

    root = save_coco(tmp_path / "coco", [plain(1)])
    save_coco(root, [plain(1, 2)], split="val")
    save_noise(root / "images" / "extra.png", 99)
    assert said(root, "belong to no split").endswith("belong to no split and are left out: extra.png")


def test_shapes_without_an_area_are_counted(tmp_path: Path) -> None:
    shapes = [
        {"label": "cat", "points": POLYGON, "shape_type": "polygon"},
        {"label": "wire", "points": POLYGON, "shape_type": "linestrip"},
        {"label": "wire", "points": [[1, 1]], "shape_type": "point"},
    ]
    for number in range(2):
        save_noise(tmp_path / "labelme" / "train" / f"{number}.png", number)
        content = {"shapes": shapes, "imagePath": f"{number}.png", "imageHeight": 30, "imageWidth": 40}
        save_json(tmp_path / "labelme" / "train" / f"{number}.json", content)
    found = check(tmp_path / "labelme", "instance").splits["train"].left_out
    assert any(one.startswith("shapes without an area are left out: ") for one in found)
    assert any("of kind linestrip" in one and "of kind point" in one for one in found)

    save_noise(tmp_path / "cvat" / "a.png", 1)
    elements = (
        '<polygon label="cat" points="3,4;20,4;20,18"/><polyline label="cat" points="1,1;9,9"/>'
        '<skeleton label="cat"><points label="cat" points="1,1"/></skeleton><tag label="cat"/>'
    )
    (tmp_path / "cvat" / "annotations.xml").write_text(
        f'<annotations><image id="0" name="a.png" width="40" height="30">{elements}</image></annotations>'
    )
    kinds = "1 of kind polyline, 1 of kind skeleton, 1 of kind tag"
    assert f"elements of annotations.xml without an area are left out: {kinds}" in said(
        tmp_path / "cvat", "without an area"
    )


def test_results_and_annotations_of_label_studio_that_are_not_taken(tmp_path: Path) -> None:
    region = {
        "type": "polygonlabels",
        "original_width": 40,
        "original_height": 30,
        "value": {"points": [[10, 10], [50, 10], [50, 60]], "polygonlabels": ["cat"]},
    }
    point = {"type": "keypointlabels", "value": {"x": 1, "y": 1, "keypointlabels": ["cat"]}}
    save_noise(tmp_path / "0.png", 0)
    annotations = [{"id": 1, "result": [region, point]}, {"id": 2, "result": []}]
    tasks = [{"id": 0, "data": {"image": "0.png"}, "annotations": annotations}]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    said(tmp_path, "1 tasks of tasks.json have several annotations, of which the first is taken")
    said(tmp_path, "results of tasks.json without an area are left out: 1 of kind keypointlabels")


def test_objects_that_cover_no_pixel_are_counted(tmp_path: Path) -> None:
    thin = annotation(2, 1, [[20, 20, 30, 20, 30, 20.01]])
    assert "1 object covers no pixel" in said(save_coco(tmp_path / "one", [plain(1), thin]), "no pixel")
    shares = [annotation(n, 1, [[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]]) for n in (1, 2)]
    checked = check(save_coco(tmp_path / "all", shares), "instance")
    (reason,) = set(checked.errors)
    assert "none of the 1 images has an object; 2 objects cover no pixel" in reason
    assert "in other units than pixels" in reason


def test_a_broken_mask_does_not_make_a_set_one_of_boxes(tmp_path: Path) -> None:
    root = save_coco(tmp_path, [plain(1, 1), plain(2, 2) | {"segmentation": []}])
    with pytest.raises(DataError, match="annotation 2 has no mask, only a box"):
        labelled_task(root)


@pytest.mark.parametrize("tool", ["yolo", "labelme", "voc"])
def test_a_set_of_rectangles_is_one_of_boxes(tmp_path: Path, tool: str) -> None:
    for number in range(2):
        save_noise(tmp_path / "images" / f"{number}.png", number)
    name = "labels/0.txt" if tool == "yolo" else "images/0.json" if tool == "labelme" else "Annotations/0.xml"
    first = tmp_path / name
    first.parent.mkdir(exist_ok=True)
    shapes = [{"label": "cat", "points": [[3, 4], [20, 18]], "shape_type": "rectangle"}]
    content = {"shapes": shapes, "imagePath": "0.png", "imageHeight": 30, "imageWidth": 40}
    corners = "<xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>18</ymax>"
    text = f"<annotation><object><name>cat</name><bndbox>{corners}</bndbox></object></annotation>"
    (tmp_path / "classes.txt").write_text("cat\n")
    first.write_text({"yolo": "0 0.5 0.5 0.2 0.3\n", "labelme": json.dumps(content), "voc": text}[tool])
    root = tmp_path / "images" if tool == "labelme" else tmp_path
    assert labelled_task(root) == "detection"
    if tool == "yolo":
        first.write_text("0 0.5 0.5 0.2 0.3\n0 0.1 0.1 0.5 0.1 0.5 0.5\n")  # and a polygon
        assert labelled_task(root) == "instance"
