"""Sets that are whole and still not what their user takes them for: read as they are meant, or said."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from data.dataset_files import save_json
from data.test_what_is_said import save_noise, warnings_of
from PIL import Image

from unimask.config.images import Task
from unimask.data.check import check
from unimask.data.open import labelled_task, open_dataset
from unimask.data.packing import write_shards
from unimask.errors import DataError

HEIGHT, WIDTH = 30, 40
POLYGON = [[3.0, 4.0], [20.0, 4.0], [20.0, 18.0]]
RECTANGLE = {"x": 10, "y": 10, "width": 50, "height": 50}


def warned(root: Path, words: str, task: Task | None = None) -> bool:
    return any(words in one for one in warnings_of(check(root, task)))


def save_mask(path: Path, *values: int, kind: type[np.generic] = np.uint8) -> Path:
    """A map of squares of 6 x 6 pixels with these numbers on 0."""
    numbers = np.zeros((HEIGHT, WIDTH), kind)
    for index, value in enumerate(values):
        numbers[4:10, 2 + 8 * index : 8 + 8 * index] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(numbers).save(path)
    return path


def save_cvat(root: Path, subsets: Sequence[str]) -> Path:
    images = ""
    for number, subset in enumerate(subsets):
        save_noise(root / "images" / f"{number}.png", number)
        shape = '<polygon label="cat" points="3,4;20,4;20,18"/>'
        images += f'<image name="{number}.png" subset="{subset}" width="40" height="30">{shape}</image>'
    (root / "annotations.xml").write_text(f"<annotations>{images}</annotations>")
    return root


def test_splits_of_other_names_are_looked_at_and_said(tmp_path: Path) -> None:
    root = save_cvat(tmp_path / "alone", ["batch1", "batch1"])
    assert labelled_task(root) == "instance"
    assert check(root).splits["batch1"].objects == {"cat": 2}
    assert warned(root, "batch1: splits of such names")
    with pytest.raises(DataError, match="batch1: splits of such names"):
        write_shards(root, tmp_path / "none")

    root = save_cvat(tmp_path / "beside", ["train", "val", "extra"])
    assert list(check(root).splits) == ["train", "val", "extra"]
    assert warned(root, "extra: splits of such names")
    written = write_shards(root, tmp_path / "shards")
    assert list(written.images) == ["train", "val"]
    assert "extra" in written.left_out[0]


def save_label_studio(root: Path, results: Sequence[dict[str, object]], **data: str) -> Path:
    about = {"original_width": WIDTH, "original_height": HEIGHT, "to_name": "image"}
    task = {
        "id": 1,
        "data": data or {"image": "a.png"},
        "annotations": [{"result": [{**about, **result} for result in results]}],
    }
    for number, name in enumerate(task["data"].values()):
        save_noise(root / name, number)
    save_json(root / "tasks.json", [task])
    return root


def test_a_shape_of_label_studio_and_its_label_in_two_results(tmp_path: Path) -> None:
    results = [
        {"id": "one", "type": "rectangle", "value": RECTANGLE},
        {"id": "one", "type": "labels", "value": {**RECTANGLE, "labels": ["cat"]}},
        {"id": "two", "type": "polygonlabels", "value": {"points": POLYGON, "polygonlabels": ["dog"]}},
        {"type": "ellipse", "value": {"x": 50, "y": 50, "radiusX": 9, "radiusY": 9}},
    ]
    root = save_label_studio(tmp_path, results)
    checked = check(root, "instance")
    assert checked.splits["all"].objects == {"cat": 1, "dog": 1}
    assert warned(root, "1 shapes of tasks.json have no label and are left out")
    assert not warned(root, "without an area")


def test_a_shape_of_label_studio_with_several_labels(tmp_path: Path) -> None:
    results = [{"type": "rectanglelabels", "value": {**RECTANGLE, "rectanglelabels": ["cat", "black"]}}]
    root = save_label_studio(tmp_path, results)
    assert warned(root, "1 shapes of tasks.json have several labels, of which the first is taken: cat, black")


def test_a_task_of_label_studio_with_several_images(tmp_path: Path) -> None:
    shape = {"type": "rectanglelabels", "value": {**RECTANGLE, "rectanglelabels": ["cat"]}}
    root = save_label_studio(tmp_path / "small", [shape], thumbnail="small.png", image="large.png")
    assert open_dataset(root, "all", "instance")[0].image_id == "large"
    both = [{**shape, "to_name": "left"}, {**shape, "to_name": "right"}]
    root = save_label_studio(tmp_path / "both", both, left="l.png", right="r.png")
    with pytest.raises(
        DataError, match=r"names the images l.png, r.png, and its shapes are drawn on left, right"
    ):
        open_dataset(root, "all", "instance")


def save_labelme(folder: Path, name: str) -> None:
    save_noise(folder / f"{name}.png", ord(name))
    shapes = [{"label": "cat", "points": POLYGON, "shape_type": "polygon"}]
    content = {"shapes": shapes, "imagePath": f"{name}.png", "imageHeight": HEIGHT, "imageWidth": WIDTH}
    save_json(folder / f"{name}.json", content)


def test_what_lies_in_sub_folders_and_is_not_read_is_counted(tmp_path: Path) -> None:
    save_labelme(tmp_path, "a")
    save_labelme(tmp_path / "more", "b")
    save_labelme(tmp_path / "more" / "inner", "c")
    save_json(tmp_path / "more" / "results.json", {"mean": 1})
    assert warned(tmp_path, f"2 images in {tmp_path} belong to no split and are left out: more/b.png, ")
    assert warned(tmp_path, f"2 label files in {tmp_path} belong to no split and are left out: more/b.json, ")


def test_label_maps_below_the_images_are_no_images_that_were_left_out(tmp_path: Path) -> None:
    save_noise(tmp_path / "a.png", 1)
    numbers = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    numbers[..., 0] = 1
    (tmp_path / "panoptic_train").mkdir()
    Image.fromarray(numbers).save(tmp_path / "panoptic_train" / "a.png")
    entry = {"image_id": 1, "file_name": "a.png", "segments_info": [{"id": 1, "category_id": 3}]}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
        "annotations": [entry],
        "categories": [{"id": 3, "name": "cat", "isthing": 1}],
    }
    save_json(tmp_path / "panoptic_train.json", content)
    assert not warned(tmp_path, "belong to no split")
