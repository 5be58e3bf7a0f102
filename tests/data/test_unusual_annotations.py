"""What tools write beside the plain case: each is read as it is meant, left out and said, or refused."""

import base64
import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
from data.dataset_files import (
    annotation,
    coco_instances,
    save_coco_instances,
    save_json,
    save_labels,
    save_picture,
    square,
    two_categories,
)
from PIL import Image

from unimask.data.formats.voc import voc_color
from unimask.data.open import open_dataset, open_items
from unimask.errors import DataError


def save_coco(root: Path, entry: dict[str, object], **image: object) -> Path:
    record = {"id": 1, "file_name": "1.png", "height": 23, "width": 31, **image}
    save_picture(root / "images/1.png", 23, 31)
    content = {"images": [record], "annotations": [entry], "categories": two_categories()}
    return save_json(root / "instances_train.json", content)


def entry(**more: object) -> dict[str, object]:
    return {**annotation(1, 1, [square(2, 3, 8)]), "bbox": [2, 3, 8, 8], **more}


@pytest.mark.parametrize("task", ["instance", "detection"])
@pytest.mark.parametrize("key", ["iscrowd", "difficult"])
@pytest.mark.parametrize(
    ("value", "crowd"), [("0", False), (0, False), (0.0, False), (False, False), ("1", True), (1, True)]
)
def test_crowd_may_be_text(tmp_path: Path, task: str, key: str, value: object, crowd: bool) -> None:
    path = save_coco(tmp_path, entry(**{key: value}))
    assert open_dataset(path, "all", task)[0].truth.is_crowd.tolist() == [crowd]


@pytest.mark.parametrize("value", ["no", 2, -1, None, [], 0.5, "1e0"])
def test_crowd_is_0_or_1(tmp_path: Path, value: object) -> None:
    path = save_coco(tmp_path, entry(iscrowd=value))
    with pytest.raises(DataError, match=r"annotation 1 has iscrowd .*; expected 0 or 1"):
        open_dataset(path, "all", "instance")


def test_ids_may_be_text(tmp_path: Path) -> None:
    path = save_coco(tmp_path, entry(id="1", image_id="1", category_id="7"))
    sample = open_dataset(path, "all", "instance")[0]
    assert sample.truth.labels.tolist() == [1]


@pytest.mark.parametrize(
    "shape",
    [
        square(2, 3, 8),
        [square(2, 3, 8)],
        [[2, 3], [10, 3], [10, 11], [2, 11]],
        [[[2, 3], [10, 3], [10, 11], [2, 11]]],
    ],
)
def test_polygons_flat_and_nested(tmp_path: Path, shape: object) -> None:
    path = save_coco(tmp_path, entry(segmentation=shape))
    truth = open_dataset(path, "all", "instance")[0].truth
    assert truth.areas().tolist() == [64]


def test_boxes_without_height_are_left_out_and_counted(tmp_path: Path) -> None:
    path = save_coco(tmp_path, entry(bbox=[2, 3, 8, 0]))
    dataset = open_items(path, "all", "detection")
    assert len(dataset[0].truth) == 0
    assert dataset.left_out == (
        "1 boxes of instances_train.json have no width or no height and are left out",
    )


def test_boxes_in_a_file_beside_its_folder(tmp_path: Path) -> None:
    save_coco_instances(tmp_path / "detection_train.json", tmp_path / "train")
    assert len(open_dataset(tmp_path, "all", "detection")) == 2


def test_a_size_is_bounded_before_memory_is_asked_for(tmp_path: Path) -> None:
    path = save_coco(tmp_path, entry(), height=50_000, width=50_000)
    with pytest.raises(DataError, match=r"image 1 is 50000 x 50000, more than 178,000,000 pixels"):
        open_dataset(path, "all", "instance")


def test_many_categories_take_no_time(tmp_path: Path) -> None:
    content = coco_instances()
    content["categories"] = [{"id": n, "name": f"name {n}"} for n in range(60_000)]
    path = save_coco_instances(tmp_path / "instances_train.json", tmp_path / "images", content=content)
    start = time.perf_counter()
    assert len(open_dataset(path, "all", "instance").categories) == 60_000
    assert time.perf_counter() - start < 10  # seconds; quadratic time took minutes


def save_yolo(root: Path, line: str, more: str) -> None:
    save_picture(root / "images/train/a.png", 20, 40)
    (root / "labels/train").mkdir(parents=True)
    (root / "labels/train/a.txt").write_text(line)
    (root / "data.yaml").write_text(f"train: images/train\nval: images/train\nnames: [cat]\n{more}\n")


def test_a_set_of_poses_has_boxes(tmp_path: Path) -> None:
    save_yolo(tmp_path, "0 .5 .5 .5 .5 .25 .25 .7 .3 .7 .7 .3 .7\n", "kpt_shape: [4, 2]")
    dataset = open_items(tmp_path, "train", "instance")
    assert dataset[0].truth.areas().tolist() == [200]
    assert "kpt_shape" in dataset.left_out[0]


def test_an_absent_test_split_is_missed_only_by_who_asks_for_it(tmp_path: Path) -> None:
    save_yolo(tmp_path, "0 .5 .5 .5 .5\n", "test: images/test")
    assert len(open_dataset(tmp_path, "train", "instance")) == 1
    with pytest.raises(DataError, match="has no split 'test'; it has 'train', 'val'"):
        open_dataset(tmp_path, "test", "instance")


def test_tasks_that_nobody_has_labelled_are_left_out(tmp_path: Path) -> None:
    value = {"x": 5, "y": 5, "width": 20, "height": 20, "rectanglelabels": ["cat"]}
    result = {"type": "rectanglelabels", "original_width": 31, "original_height": 23, "value": value}
    given = [[{"result": [result]}], [], [{"was_cancelled": True, "result": []}], [{"result": []}]]
    tasks = []
    for number, annotations in enumerate(given):
        save_picture(tmp_path / f"{number}.png", 23, 31)
        tasks.append({"id": number, "data": {"image": f"{number}.png"}, "annotations": annotations})
    save_json(tmp_path / "project.json", tasks)
    dataset = open_items(tmp_path, "all", "instance")
    assert dataset.image_ids == ("0", "3")  # the last one was labelled: nothing is on it
    assert dataset.left_out == ("2 of 4 tasks of project.json have no annotation yet and are left out",)


def test_a_brush_of_many_gigabytes(tmp_path: Path) -> None:
    bits = f"{2**31 - 4:032b}" + "0" * 64
    packed = [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]
    value = {"format": "rle", "rle": packed, "brushlabels": ["cat"]}
    result = {"type": "brushlabels", "original_width": 31, "original_height": 23, "value": value}
    save_picture(tmp_path / "1.png", 23, 31)
    task = {"id": 1, "data": {"image": "1.png"}, "annotations": [{"result": [result]}]}
    save_json(tmp_path / "project.json", [task])
    with pytest.raises(DataError, match=r"a brush holds 536870911 pixels, the image 713"):
        open_dataset(tmp_path, "all", "instance")[0]


def save_cvat(root: Path, shapes: str) -> None:
    save_picture(root / "1.png", 23, 31)
    (root / "annotations.xml").write_text(
        f'<annotations><image name="1.png" width="31" height="23">{shapes}</image></annotations>'
    )


def test_a_run_of_cvat_that_is_larger_than_its_image(tmp_path: Path) -> None:
    save_cvat(
        tmp_path, '<mask label="cat" rle="0,2000000000" left="0" top="0" width="50000" height="40000"/>'
    )
    with pytest.raises(DataError, match=r"its mask of 50000 x 40000 pixels is larger than the image"):
        open_dataset(tmp_path, "all", "instance")[0]
    save_cvat(tmp_path, '<mask label="cat" rle="0,4000000000" left="0" top="0" width="2" height="2"/>')
    with pytest.raises(DataError, match="the runs of a mask do not fill"):
        open_dataset(tmp_path, "all", "instance")


def test_masks_of_one_group_are_one_object(tmp_path: Path) -> None:
    masks = "".join(
        f'<mask label="cat" rle="0,4" left="{left}" top="3" width="2" height="2" group_id="5"/>'
        for left in (2, 9)
    )
    save_cvat(tmp_path, masks)
    assert open_dataset(tmp_path, "all", "instance")[0].truth.areas().tolist() == [8]


def save_class_set(root: Path, mask: np.ndarray, content: dict[str, object]) -> None:
    save_picture(root / "images/a.png", *mask.shape[:2])
    save_labels(root / "labels/a.png", mask)
    save_json(root / "classes.json", content)


def test_masks_of_255_for_a_class_that_is_called_1(tmp_path: Path) -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[5:10] = 255
    classes = [{"id": 0, "name": "ground"}, {"id": 1, "name": "cell"}]
    save_class_set(tmp_path, mask, {"classes": classes})
    with pytest.raises(DataError, match=r"numbers its classes 0 and 1, but the label maps hold 0, 255"):
        open_dataset(tmp_path, "all", "semantic")
    save_class_set(tmp_path, mask, {"classes": classes, "ignore_label": 255})
    assert open_dataset(tmp_path, "all", "semantic")[0].truth.labels.tolist() == [0]


def test_colours_of_class_maps_stand_in_classes_json(tmp_path: Path) -> None:
    mask = np.zeros((20, 30, 3), np.uint8)
    mask[5:10], mask[10:] = (200, 10, 30), (224, 224, 192)
    classes: list[dict[str, object]] = [{"id": 4, "name": "ground"}, {"id": 9, "name": "cell"}]
    save_class_set(tmp_path, mask, {"classes": classes})
    with pytest.raises(DataError, match=r"a\.png: is a label map of colours .* its \"color\""):
        open_dataset(tmp_path, "all", "semantic")[0]
    for one, color in zip(classes, ([0, 0, 0], [200, 10, 30])):
        one["color"] = color
    save_class_set(tmp_path, mask, {"classes": classes})
    dataset = open_dataset(tmp_path, "all", "semantic")
    assert dataset[0].truth.labels.tolist() == [0, 1]
    assert dataset[0].truth.areas().tolist() == [150, 150]  # the rest is void
    mask[0, 0] = 7
    save_class_set(tmp_path, mask, {"classes": classes})
    with pytest.raises(DataError, match=r"has colours that classes\.json does not name: \(7, 7, 7\)"):
        open_dataset(tmp_path, "all", "semantic")[0]


def test_label_maps_in_jpeg_are_the_reason(tmp_path: Path) -> None:
    save_picture(tmp_path / "images/a.png", 20, 30)
    save_picture(tmp_path / "labels/a.jpg", 20, 30)
    with pytest.raises(DataError, match=r"labels: .*JPEG and WebP change the numbers .* save them as PNG"):
        open_dataset(tmp_path, "all", "semantic")


def test_a_small_file_of_a_large_label_map_is_not_unpacked(tmp_path: Path) -> None:
    save_picture(tmp_path / "images/a.png", 20, 30)
    (tmp_path / "labels").mkdir()
    Image.new("1", (12_000, 12_000)).save(tmp_path / "labels/a.png")
    save_json(tmp_path / "classes.json", {"classes": [{"id": 0, "name": "ground"}]})
    with pytest.raises(DataError, match=r"is 12000 x 12000 pixels, but its image a\.png is 30 x 20"):
        open_dataset(tmp_path, "all", "semantic")[0]


def test_colours_of_voc_are_those_of_its_palette(tmp_path: Path) -> None:
    save_picture(tmp_path / "JPEGImages/a.jpg", 20, 30)
    classes, objects = np.zeros((2, 20, 30, 3), np.uint8)
    classes[5:10], classes[12:16] = voc_color(2), voc_color(15)
    objects[5:10], objects[12:16] = voc_color(1), voc_color(2)
    save_labels(tmp_path / "SegmentationClass/a.png", classes)
    save_labels(tmp_path / "SegmentationObject/a.png", objects)
    dataset = open_dataset(tmp_path, "all", "instance")
    assert [dataset.categories.names[n] for n in dataset[0].truth.labels.tolist()] == ["bicycle", "person"]
    classes[0, 0] = (9, 9, 9)
    save_labels(tmp_path / "SegmentationClass/a.png", classes)
    with pytest.raises(DataError, match=r"has colours that Pascal VOC does not name: \(9, 9, 9\)"):
        open_dataset(tmp_path, "all", "instance")[0]


def save_labelme(root: Path, shapes: list[dict[str, object]]) -> None:
    save_picture(root / "a.png", 23, 31)
    plain = {"label": "cat", "shape_type": "polygon", "group_id": None}
    content = {"version": "5", "imagePath": "a.png", "shapes": [{**plain, **shape} for shape in shapes]}
    (root / "a.json").write_text(json.dumps(content), encoding="utf-8-sig")


CORNERS = [[2, 3], [10, 3], [10, 11], [2, 11]]


@pytest.mark.parametrize(
    "shape",
    [
        {"points": CORNERS},
        {"points": [number for corner in CORNERS for number in corner]},
        {"points": [CORNERS]},
        {"points": CORNERS, "shape_type": "rectangle"},
        {"points": CORNERS, "shape_type": "rotation", "direction": 0.5},
        {"points": CORNERS[::2], "shape_type": "rectangle"},
    ],
)
def test_shapes_of_labelme(tmp_path: Path, shape: dict[str, object]) -> None:
    save_labelme(tmp_path, [shape])
    assert open_dataset(tmp_path, "all", "instance")[0].truth.areas().tolist() == [64]


def test_labels_of_labelme_that_are_no_class(tmp_path: Path) -> None:
    ignored = [[20, 3], [25, 3], [25, 8], [20, 8]]
    nothing = [[20, 12], [25, 12], [25, 18], [20, 18]]
    save_labelme(
        tmp_path,
        [
            {"points": CORNERS},
            {"points": ignored, "label": "__ignore__"},
            {"points": nothing, "label": "_background_"},
        ],
    )
    assert open_dataset(tmp_path, "all", "instance").categories.names == ("cat",)
    dataset = open_dataset(tmp_path, "all", "semantic")
    assert dataset.categories.names == ("cat", "background")
    layer = dataset[0].truth.layers[0]
    assert (layer[3:8, 20:25] == 0).all()
    assert (layer == 0).sum() == 25
    assert (dataset[0].truth.areas().tolist()) == [64, 23 * 31 - 64 - 25]


def test_masks_of_labelme_in_one_group_and_too_large(tmp_path: Path) -> None:
    def mask(size: tuple[int, int]) -> str:
        content = io.BytesIO()
        Image.new("1", size, 1).save(content, "PNG")
        return base64.b64encode(content.getvalue()).decode()

    shapes = [
        {"shape_type": "mask", "points": [[x, 4], [x + 2, 6]], "mask": mask((2, 2)), "group_id": "g"}
        for x in (3, 12)
    ]
    save_labelme(tmp_path, shapes)
    assert open_dataset(tmp_path, "all", "instance")[0].truth.areas().tolist() == [8]
    save_labelme(tmp_path, [{**shapes[0], "mask": mask((9000, 9000))}])
    with pytest.raises(DataError, match="its mask of 9000 x 9000 is larger than the image"):
        open_dataset(tmp_path, "all", "instance")[0]


def test_the_old_xml_of_labelme(tmp_path: Path) -> None:
    points = "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in CORNERS)
    objects = "".join(
        f"<object><name>cat</name><deleted>{deleted}</deleted><polygon>{points}</polygon></object>"
        for deleted in (0, 1)
    )
    save_picture(tmp_path / "images/a.png", 23, 31)
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations/a.xml").write_text(
        f"<annotation><filename>a.png</filename>{objects}"
        "<imagesize><nrows>23</nrows><ncols>31</ncols></imagesize></annotation>"
    )
    assert open_dataset(tmp_path, "all", "instance")[0].truth.areas().tolist() == [64]


def test_lists_of_voc_with_comments_and_difficult_objects(tmp_path: Path) -> None:
    box = "<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>10</xmax><ymax>11</ymax></bndbox>"
    for stem in "ab":
        save_picture(tmp_path / f"JPEGImages/{stem}.jpg", 23, 31)
        (tmp_path / "Annotations").mkdir(exist_ok=True)
        (tmp_path / f"Annotations/{stem}.xml").write_text(
            f"<annotation><filename>{stem}.jpg</filename><object><name>cat</name>"
            f"<difficult>{int(stem == 'b')}</difficult>{box}</object></annotation>"
        )
    lists = tmp_path / "ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("# those of May\n\na\n")
    (lists / "val.txt").write_text("b\n\n\n")
    (lists / "test.txt").write_text("secret\n")
    assert open_dataset(tmp_path, "train", "instance")[0].truth.is_crowd.tolist() == [False]
    for task in ("instance", "detection"):
        assert open_dataset(tmp_path, "val", task)[0].truth.is_crowd.tolist() == [True]
    with pytest.raises(DataError, match="has no split 'test'"):
        open_dataset(tmp_path, "test", "instance")


def test_boxes_are_not_rounded_to_pixels(tmp_path: Path) -> None:
    save_yolo(tmp_path, "0 .51 .52 .33 .44\n0 .1 .1 .2 .11 .13 .4\n0 .5 .5 0 0\n", "")
    truth = open_dataset(tmp_path, "train", "detection")[0].truth
    wanted = [[13.8, 6, 27, 14.8], [4, 2, 8, 8]]  # the third has no area
    assert np.allclose(truth.boxes.numpy(), np.array(wanted), atol=1e-5)
    assert np.allclose(truth.areas.numpy(), [13.2 * 8.8, 24], atol=1e-3)
    save_cvat(
        tmp_path / "cvat",
        '<box label="cat" xtl="2.25" ytl="3.5" xbr="9.75" ybr="40"/>'
        '<mask label="cat" rle="0,4" left="2" top="3" width="2" height="2"/>',
    )
    truth = open_dataset(tmp_path / "cvat", "all", "detection")[0].truth
    assert truth.boxes.tolist() == [[2.25, 3.5, 9.75, 23], [2, 3, 4, 5]]
