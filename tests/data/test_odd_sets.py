"""Sets that are whole and still not what their user takes them for: read as they are meant, or said."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from data.dataset_files import annotation, save_json, square
from data.test_what_is_said import save_noise, warnings_of
from PIL import Image

from unimask.config.tasks import Task
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


def save_yolo(root: Path, labels: dict[str, str], names: str = "names: [cat, dog]\n") -> Path:
    """Each text in a file of the name, with an image of that name without the suffix."""
    for number, (name, text) in enumerate(labels.items()):
        save_noise(root / "images" / "train" / f"{Path(name).stem}.png", number)
        (root / "labels" / "train").mkdir(parents=True, exist_ok=True)
        (root / "labels" / "train" / name).write_text(text)
    (root / "data.yaml").write_text(f"train: images/train\nval: images/train\n{names}")
    return root


OUTLINE = "0 .1 .1 .5 .1 .5 .6\n"


def test_names_of_yolo_that_do_not_count(tmp_path: Path) -> None:
    root = save_yolo(tmp_path, {"a.txt": OUTLINE}, "nc: 3\nnames: [cat, dog]\n")
    with pytest.raises(DataError, match=r"data.yaml: nc is 3, but names has 2"):
        check(root)
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("cat\n\ndog\n\n")
    with pytest.raises(DataError, match=r"classes.txt: line 2 is empty"):
        check(root)
    (root / "classes.txt").write_text("cat\ndog\n\n")
    assert list(check(root).splits["train"].objects) == ["cat", "dog"]


def test_text_files_of_yolo_that_are_named_otherwise_or_missing(tmp_path: Path) -> None:
    root = save_yolo(tmp_path, {"a.TXT": OUTLINE, "caf\u00e9.txt": OUTLINE, "b.txt": ""})
    (root / "images/train/caf\u00e9.png").rename(root / "images/train/cafe\u0301.png")
    save_noise(root / "images" / "train" / "c.png", 9)
    checked = check(root, "instance").splits["train"]
    assert (checked.objects["cat"], checked.without_objects) == (2, 2)
    assert warned(root, "1 of 4 images have no text file and are taken as without objects: c.png")


def test_boxes_among_polygons_and_boxes_alone(tmp_path: Path) -> None:
    box = "0 .5 .5 .2 .2\n"
    mixed = save_yolo(tmp_path / "mixed", {"a.txt": OUTLINE + box})
    assert warned(mixed, "1 of 2 objects are boxes and not polygons: their masks are filled", "instance")
    alone = save_yolo(tmp_path / "alone", {"a.txt": box})
    assert warned(alone, "all objects are upright rectangles", "instance")
    assert not warned(alone, "rectangles", "detection")
    with pytest.raises(DataError, match="line 1: a box with a score is a prediction"):
        check(save_yolo(tmp_path / "scores", {"a.txt": "0 .5 .5 .2 .2 .9\n"}), "detection").refuse()


COLORS = ((0, 0, 0), (255, 0, 0), (0, 255, 0))


def save_with_palette(path: Path, numbers: Sequence[int], colors: Sequence[tuple[int, int, int]]) -> None:
    with Image.open(save_mask(path, *numbers)) as image:
        image.load()
    shown = Image.fromarray(np.asarray(image), mode="P")
    shown.putpalette([channel for color in colors for channel in color])
    shown.save(path)


def test_palettes_that_differ_are_read_by_their_colours(tmp_path: Path) -> None:
    for name, numbers, colors in (("a", (1, 2, 2), COLORS), ("b", (2, 1, 1), (COLORS[0], *COLORS[:0:-1]))):
        save_noise(tmp_path / "images" / f"{name}.png", ord(name))
        save_with_palette(tmp_path / "labels" / f"{name}.png", numbers, colors)
    classes: list[dict[str, object]] = [
        {"id": number, "name": name} for number, name in enumerate(("ground", "red", "green"))
    ]
    save_json(tmp_path / "classes.json", {"classes": classes})
    with pytest.raises(DataError, match=r"b.png: has \(0, 255, 0\) for 1 in its palette, but a.png has"):
        open_dataset(tmp_path, "all", "semantic")
    for entry, color in zip(classes, COLORS, strict=True):
        entry["color"] = list(color)
    save_json(tmp_path / "classes.json", {"classes": classes})
    dataset = open_dataset(tmp_path, "all", "semantic")
    assert [dataset[index].truth.areas().tolist() for index in (0, 1)] == [[1092, 36, 72]] * 2


def test_palettes_of_voc_are_read_by_the_colours_of_its_table(tmp_path: Path) -> None:
    save_noise(tmp_path / "JPEGImages" / "a.png", 1)
    (tmp_path / "JPEGImages" / "._a.png").write_bytes(b"of a Macintosh")
    save_with_palette(tmp_path / "SegmentationClass" / "a.png", [1], COLORS)
    save_mask(tmp_path / "SegmentationObject" / "a.png", 1)
    (tmp_path / "SegmentationObject" / "._a.png").write_bytes(b"of a Macintosh")
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\nplant:0,255,0::\nfire:255,0,0::\n")
    assert check(tmp_path, "instance").splits["all"].objects == {"plant": 0, "fire": 1}
    save_with_palette(tmp_path / "SegmentationClass" / "a.png", [1], [(0, 0, 0), (1, 1, 1)])
    assert check(tmp_path, "instance").splits["all"].objects == {"plant": 1, "fire": 0}


def test_what_is_guessed_of_label_maps_is_said(tmp_path: Path) -> None:
    save_noise(tmp_path / "images" / "a.png", 1)
    save_mask(tmp_path / "labels" / "a.png", 7, 900, kind=np.uint16)
    assert warned(tmp_path, "label maps of 16 bits are taken as numbers of objects of one class")


def test_masks_of_a_class_that_are_given_as_objects(tmp_path: Path) -> None:
    save_noise(tmp_path / "images" / "a.png", 1)
    save_json(tmp_path / "classes.json", {"kind": "instances", "classes": [{"id": 1, "name": "cell"}]})
    save_mask(tmp_path / "labels" / "a.png", 255)
    assert not warned(tmp_path, "no label map that was looked at numbers more than one object")
    save_mask(tmp_path / "labels" / "a.png", 255, 255)
    assert warned(tmp_path, "no label map that was looked at numbers more than one object")
    save_mask(tmp_path / "labels" / "a.png", 254, 255)
    assert not warned(tmp_path, "no label map that was looked at numbers more than one object")


def save_coco(root: Path, *annotations: dict[str, object]) -> Path:
    save_noise(root / "images" / "a.png", 1)
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "cat"}],
    }
    save_json(root / "instances_train.json", content)
    return root


def test_objects_that_others_cover_are_counted(tmp_path: Path) -> None:
    rings = (square(2, 2, 8), square(2, 2, 4), square(6, 2, 4), square(2, 6, 4), square(6, 6, 4))
    root = save_coco(tmp_path, *(annotation(n, 1, [ring]) for n, ring in enumerate(rings)))
    assert warned(root, "train: 1 object is wholly covered by others", "panoptic")
    assert check(root, "panoptic").splits["train"].covered == 1
    assert check(root, "instance").splits["train"].covered == 0


def test_coordinates_that_are_shares_are_an_error(tmp_path: Path) -> None:
    box = {**annotation(1, 1, [square(2, 2, 8)]), "bbox": [0.1, 0.1, 0.5, 0.4]}
    (error,) = check(save_coco(tmp_path, box), "detection").errors
    assert "all 1 objects have at most one pixel" in error


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"segmentation": "[[2, 2, 9, 2, 9, 9]]"}, "annotation 1: its segmentation is text"),
        ({"category_id": True}, "annotation 1 has category_id True; expected an integer"),
    ],
)
def test_values_of_other_types(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    root = save_coco(tmp_path, {**annotation(1, 1, [square(2, 2, 8)]), **changes})
    assert all(reason in error for error in check(root, "instance").errors)
    assert check(root, "instance").errors
