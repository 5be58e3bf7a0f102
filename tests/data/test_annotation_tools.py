"""Exports of annotation tools, written here as the tools write them, read through `--data`."""

import base64
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from data.dataset_files import save_json, save_picture
from PIL import Image

from unimask.data.formats.label_studio import unpack_brush
from unimask.data.open import open_dataset
from unimask.errors import DataError
from unimask.structures import Sample

HEIGHT, WIDTH = 23, 31
SQUARE = np.zeros((HEIGHT, WIDTH), dtype=bool)
SQUARE[3:11, 2:10] = True  # what the polygon (2, 3) to (10, 11) covers


def masks(sample: Sample) -> np.ndarray:
    return sample.truth.masks().numpy()


def corners(scale: tuple[float, float] = (1, 1)) -> list[list[float]]:
    left, top, right, bottom = 2 / scale[0], 3 / scale[1], 10 / scale[0], 11 / scale[1]
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def save_yolo(root: Path, line: str = "") -> Path:
    numbers = " ".join(f"{x:.6f} {y:.6f}" for x, y in corners((WIDTH, HEIGHT)))
    for split in ("train", "val"):
        for number in range(2):
            save_picture(root / "images" / split / f"{split}{number}.png", HEIGHT, WIDTH)
        labels = root / "labels" / split
        labels.mkdir(parents=True)
        (labels / f"{split}0.txt").write_text(f"1 {numbers}\n\n0 0.5 0.5 0.25 0.5\n{line}")
    (root / "data.yaml").write_text(
        "path: .\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n"
    )
    return root


def test_yolo_polygons_and_boxes_by_split(tmp_path: Path) -> None:
    dataset = open_dataset(save_yolo(tmp_path), "val", "instance")
    assert dataset.categories.names == ("cat", "dog")
    assert [dataset[index].image_id for index in range(2)] == ["val0", "val1"]
    assert dataset[0].truth.labels.tolist() == [1, 0]
    assert (masks(dataset[0])[0] == SQUARE).all()
    assert masks(dataset[0])[1].sum() == pytest.approx(0.25 * WIDTH * 0.5 * HEIGHT, rel=0.15)
    assert len(dataset[1].truth) == 0
    assert len(open_dataset(tmp_path, "train", "panoptic")) == 2
    assert (masks(pickle.loads(pickle.dumps(dataset))[0]) == masks(dataset[0])).all()


@pytest.mark.parametrize("kind", ["yolo", "coco", "voc"])
def test_sets_written_by_supervision(tmp_path: Path, kind: str) -> None:
    """It writes the outlines of masks through the middle of their border pixels."""
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    written = tmp_path / "written"
    drawn = np.zeros((2, 43, 59), dtype=bool)
    drawn[0, 5:21, 7:29] = True
    drawn[1, 24:40, 20:55] = True
    file = str(save_picture(tmp_path / "a.png", 43, 59))
    found = supervision.Detections(
        xyxy=np.array([[7, 5, 29, 21], [20, 24, 55, 40]], dtype=float), mask=drawn, class_id=np.array([1, 0])
    )
    dataset = supervision.DetectionDataset(["cat", "dog"], [file], {file: found})
    if kind == "yolo":
        names = ("images/train", "labels/train", "data.yaml")
        dataset.as_yolo(*(str(written / name) for name in names))
        yaml = (written / "data.yaml").read_text()
        (written / "data.yaml").write_text(yaml + "train: images/train\nval: images/train\n")
    elif kind == "voc":
        dataset.as_pascal_voc(str(written / "JPEGImages"), str(written / "Annotations"))
    else:
        dataset.as_coco(str(written / "train"), str(written / "train" / "_annotations.coco.json"))
    sample = open_dataset(written, "train" if kind == "yolo" else "all", "instance")[0]
    assert sample.image_id in ("a", "a.png", "1")
    assert sample.truth.labels.tolist() == [1, 0]
    for mine, theirs in zip(masks(sample), drawn, strict=True):
        assert (mine & ~theirs).sum() == 0
        assert (mine & theirs).sum() > 0.9 * (theirs.sum() - 2 * (22 + 16 + 35))


@pytest.mark.parametrize("kind", ["voc", "voc_detection", "cvat", "coco", "yolo_ultralytics"])
def test_sets_written_by_datumaro(tmp_path: Path, kind: str) -> None:
    """CVAT writes most of its exports with it. Boxes go where the format has no masks."""
    datumaro = pytest.importorskip("datumaro", reason="datumaro is not installed")
    drawn = np.zeros((2, 43, 59), dtype=bool)
    drawn[0, 5:21, 7:29] = True
    drawn[1, 24:40, 20:55] = True
    found = (
        [
            datumaro.Bbox(7, 5, 22, 16, label=1, id=1, group=1),
            datumaro.Bbox(20, 24, 35, 16, label=0, id=2, group=2),
        ]
        if kind in ("voc_detection", "yolo_ultralytics")
        else [
            datumaro.Mask(drawn[index], label=1 - index, id=index + 1, group=index + 1, z_order=index)
            for index in range(2)
        ]
    )
    items = [
        datumaro.DatasetItem(
            id=split,
            subset=split,
            media=datumaro.Image.from_numpy(data=np.full((43, 59, 3), 90, dtype=np.uint8)),
            annotations=found,
        )
        for split in ("train", "val")
    ]
    written = datumaro.Dataset.from_iterable(items, categories=["cat", "dog"], media_type=datumaro.Image)
    written.export(str(tmp_path / "set"), kind, save_media=True)
    sample = open_dataset(tmp_path / "set", "val", "instance")[0]
    assert sample.truth.labels.tolist() == [1, 0]
    assert (masks(sample) == drawn).all()
    boxes = open_dataset(tmp_path / "set", "val", "detection")[0].truth
    assert boxes.boxes.tolist() == [[7, 5, 29, 21], [20, 24, 55, 40]]


@pytest.mark.parametrize("start", ["./images", "data/images", "/home/somebody/set/images"])
def test_yolo_lists_of_pictures(tmp_path: Path, start: str) -> None:
    """As CVAT and datumaro write them: `train: train.txt`, and in there a path a line."""
    save_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text("train: train.txt\nval: val.txt\nnames: {0: cat, 1: dog}\n")
    for split in ("train", "val"):
        (tmp_path / f"{split}.txt").write_text(f"{start}/{split}/{split}0.png\n")
    dataset = open_dataset(tmp_path, "val", "instance")
    assert len(dataset) == 1
    assert (masks(dataset[0])[0] == SQUARE).all()
    (tmp_path / "val.txt").write_text(f"{start}/val/val0.png\n\n{start}/val/none.png\n")
    with pytest.raises(DataError, match=rf"val\.txt: line 3: there is no image '{start}/val/none\.png' here"):
        open_dataset(tmp_path, "val", "instance")


def test_yolo_names_one_a_line(tmp_path: Path) -> None:
    save_yolo(tmp_path)
    (tmp_path / "data.yaml").rename(tmp_path / "classes.txt")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert open_dataset(tmp_path, "val", "instance").categories.names == ("cat", "dog")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("2 0.1 0.1 0.2 0.2 0.3 0.1", "line 4: class '2' is none of 0 to 1"),
        ("0 0.1 0.1 0.2 0.2", None),
        ("0 0.1 0.1 0.2", "line 4: a polygon has 3 numbers"),
        ("0 0.1 0.1 0.2 x 0.3 0.1", "line 4: a point of a polygon is no number"),
        ("0 0.1 0.1 20 0.2 0.3 0.1", "line 4: a coordinate is 20; expected shares"),
        ("0 0.1 0.1 nan 0.2 0.3 0.1", "line 4: .* no finite number"),
    ],
)
def test_bad_lines_of_yolo_are_named(tmp_path: Path, line: str, reason: str | None) -> None:
    save_yolo(tmp_path, line)
    if reason is None:
        assert len(open_dataset(tmp_path, "val", "instance")[0].truth) == 3
        return
    with pytest.raises(DataError, match=rf"val0\.txt: {reason}"):
        open_dataset(tmp_path, "val", "instance")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("names: [cat, cat]", "all different"),
        ("nc: 2", "names is None"),
        ("names: [cat]\ntrain: elsewhere", "train is 'elsewhere', which is no folder here"),
        ("names: [cat", "is no valid YAML"),
    ],
)
def test_bad_settings_of_yolo(tmp_path: Path, text: str, reason: str) -> None:
    save_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=rf"data\.yaml: .*{reason}"):
        open_dataset(tmp_path, "val", "instance")


def save_labels_png(path: Path, numbers: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(numbers.astype(np.uint8), mode="P")
    picture.putpalette(list(range(256)) * 3)
    picture.save(path)


def save_voc(root: Path) -> Path:
    for stem in ("a", "b"):
        save_picture(root / "JPEGImages" / f"{stem}.jpg", HEIGHT, WIDTH)
        classes, objects = np.zeros((HEIGHT, WIDTH)), np.zeros((HEIGHT, WIDTH))
        classes[3:11, 2:10], objects[3:11, 2:10] = 8, 1  # a cat
        classes[12:20, 5:9], objects[12:20, 5:9] = 8, 2
        classes[2, 2:10] = objects[2, 2:10] = 255
        save_labels_png(root / "SegmentationClass" / f"{stem}.png", classes)
        save_labels_png(root / "SegmentationObject" / f"{stem}.png", objects)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name, stems in (("train", "a\n"), ("val", "b\n"), ("trainval", "a\nb\n")):
        (lists / f"{name}.txt").write_text(stems)
    return root


VOC_XML = """<annotation>
  <filename>{name}</filename><size><width>{width}</width><height>{height}</height><depth>3</depth></size>
  <object><name>dog</name><difficult>0</difficult>
    <bndbox><xmin>3</xmin><ymin>4</ymin><xmax>10</xmax><ymax>11</ymax></bndbox></object>
  <object><name>cat</name>
    <bndbox><xmin>8</xmin><ymin>6</ymin><xmax>20</xmax><ymax>23</ymax></bndbox>
    <part><name>head</name><bndbox><xmin>8</xmin><ymin>6</ymin><xmax>9</xmax><ymax>7</ymax></bndbox></part></object>
</annotation>"""


def save_voc_boxes(pictures: Path, annotations: Path, stem: str, xml: str = VOC_XML) -> None:
    save_picture(pictures / f"{stem}.jpg", HEIGHT, WIDTH)
    annotations.mkdir(parents=True, exist_ok=True)
    text = xml.format(name=f"{stem}.jpg", width=WIDTH, height=HEIGHT)
    (annotations / f"{stem}.xml").write_text(text)


@pytest.mark.parametrize("layout", ["lists", "folders"])
def test_voc_boxes(tmp_path: Path, layout: str) -> None:
    for stem, split in (("a", "train"), ("b", "val")):
        if layout == "folders":  # Roboflow
            save_voc_boxes(tmp_path / split, tmp_path / split, stem)
            continue
        root = tmp_path / "VOCdevkit" / "VOC2012"
        save_voc_boxes(root / "JPEGImages", root / "Annotations", stem)
        lists = root / "ImageSets" / "Main"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text(f"{stem}\n")
        (lists / f"cat_{split}.txt").write_text(f"{stem}  1\n")
        (lists / "trainval.txt").write_text("a\nb\n")
    found = open_dataset(tmp_path, "val", "detection")[0]
    assert found.image_id == "b"
    assert found.truth.boxes.tolist() == [[2, 3, 10, 11], [7, 5, 20, 23]]
    assert found.truth.labels.tolist() == [1, 0]
    dataset = open_dataset(tmp_path, "train", "instance")
    assert dataset.categories.names == ("cat", "dog")
    assert (masks(dataset[0])[0] == SQUARE).all()
    assert masks(dataset[0])[1].sum() == 13 * 18


def test_detection_takes_the_boxes_of_voc_and_segmentation_its_masks(tmp_path: Path) -> None:
    save_voc(tmp_path)
    for stem in ("a", "b", "c"):  # the last one has boxes only, as most of VOC
        save_voc_boxes(tmp_path / "JPEGImages", tmp_path / "Annotations", stem)
    assert len(open_dataset(tmp_path, "all", "detection")) == 3
    segments = open_dataset(tmp_path, "val", "instance")[0].truth
    assert segments.areas().tolist() == [64, 32]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("</annotation>", "", "is no valid XML"),
        ("<name>dog</name>", "", "object 1 has no name"),
        ("<xmax>10</xmax>", "", r"object 1 \('dog'\): its bndbox has no four numbers xmin, ymin, xmax, ymax"),
        ("<xmax>10</xmax>", "<xmax>1</xmax>", r"its box goes from \(3, 4\) to \(1, 11\), backwards"),
        ("{height}", "half", "its size is 31 x half; expected whole numbers"),
        ("{height}", "99", "is for an image of 31 x 99 pixels, but val.jpg has 31 x 23"),
    ],
)
def test_bad_boxes_of_voc_are_named(tmp_path: Path, old: str, new: str, reason: str) -> None:
    save_voc_boxes(tmp_path / "train", tmp_path / "train", "train")
    save_voc_boxes(tmp_path / "val", tmp_path / "val", "val", VOC_XML.replace(old, new))
    with pytest.raises(DataError, match=rf"val\.xml: .*{reason}"):
        open_dataset(tmp_path, "val", "instance")[0]


def test_a_list_of_voc_that_names_nothing(tmp_path: Path) -> None:
    save_voc_boxes(tmp_path / "JPEGImages", tmp_path / "Annotations", "a")
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\nz\n")
    with pytest.raises(DataError, match=r"train\.txt: line 2: 'z' has no Annotations/z\.xml"):
        open_dataset(tmp_path, "train", "instance")


@pytest.mark.parametrize("below", ["", "VOC2012", "VOCdevkit/VOC2007"])
def test_voc_objects(tmp_path: Path, below: str) -> None:
    save_voc(tmp_path / below)
    dataset = open_dataset(tmp_path, "val", "instance")
    assert dataset[0].image_id == "b"
    names = dataset.categories.names
    assert [names[label] for label in dataset[0].truth.labels.tolist()] == ["cat", "cat"]
    assert (masks(dataset[0])[0] == SQUARE).all()
    panoptic = open_dataset(tmp_path, "train", "panoptic")[0].truth
    assert len(panoptic) == 3
    assert (panoptic.layers[0, 2, 2:10] == 0).all()  # the border is void
    assert int(panoptic.areas()[2]) == HEIGHT * WIDTH - 64 - 32 - 8


def test_voc_in_colours_with_a_label_map(tmp_path: Path) -> None:
    save_voc(tmp_path)
    palette = {0: (0, 0, 0), 8: (64, 128, 0), 255: (224, 224, 192), 1: (128, 0, 0), 2: (0, 128, 0)}
    for folder in ("SegmentationClass", "SegmentationObject"):
        for path in (tmp_path / folder).glob("*.png"):
            numbers = np.asarray(Image.open(path))
            colors = np.zeros((*numbers.shape, 3), dtype=np.uint8)
            for number, color in palette.items():
                colors[numbers == number] = color
            Image.fromarray(colors).save(path)
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ntabby:64,128,0::\n"
    )
    dataset = open_dataset(tmp_path, "val", "instance")
    assert dataset.categories.names == ("tabby",)
    assert len(dataset[0].truth) == 2
    assert (masks(dataset[0])[0] == SQUARE).any() or (masks(dataset[0])[1] == SQUARE).all()
    names = [f"class {number}" for number in range(1, 11)]
    (tmp_path / "labelmap.txt").write_text("".join(f"{name}:::\n" for name in ["background", *names]))
    dataset = open_dataset(tmp_path, "val", "instance")  # datumaro: colours of VOC's palette
    assert [dataset.categories.names[label] for label in dataset[0].truth.labels.tolist()] == ["class 10"] * 2
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\ntabby\n")
    with pytest.raises(DataError, match=r"labelmap\.txt: line 2: 'tabby'; expected name:red,green,blue::"):
        open_dataset(tmp_path, "val", "instance")
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\ntabby:1,2,3::\n")
    with pytest.raises(
        DataError, match=r"b\.png: has colours that labelmap.txt does not name: \(64, 128, 0\)"
    ):
        open_dataset(tmp_path, "val", "instance")[0]


def test_bad_voc_is_named(tmp_path: Path) -> None:
    save_voc(tmp_path)
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text("b\nmissing\n")
    with pytest.raises(DataError, match=r"val\.txt: line 2: 'missing' has no SegmentationObject/missing.png"):
        open_dataset(tmp_path, "val", "instance")
    save_labels_png(tmp_path / "SegmentationClass" / "a.png", np.zeros((HEIGHT, WIDTH)))
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text("b\n")
    with pytest.raises(DataError, match=r"a\.png: object 1 has no class in SegmentationClass"):
        open_dataset(tmp_path, "train", "instance")[0]


def labelme(shapes: list[dict[str, object]], name: str) -> dict[str, object]:
    return {
        "version": "5.4.1",
        "shapes": shapes,
        "imagePath": name,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }


def save_labelme(root: Path) -> Path:
    patch = io.BytesIO()
    Image.fromarray(np.full((8, 8), 255, dtype=np.uint8)).convert("1").save(patch, format="PNG")
    shapes: list[dict[str, object]] = [
        {"label": "dog", "points": corners(), "group_id": None, "shape_type": "polygon"},
        {"label": "cat", "points": [[20, 2], [14, 8]], "group_id": 4, "shape_type": "rectangle"},
        {"label": "cat", "points": [[20, 12], [22, 12]], "group_id": 4, "shape_type": "circle"},
        {
            "label": "dog",
            "points": [[2, 3], [9, 10]],
            "shape_type": "mask",
            "mask": base64.b64encode(patch.getvalue()).decode(),
        },
        {"label": "dog", "points": [[2, 3], [9, 10]], "shape_type": "line"},
    ]
    for split in ("train", "val"):
        save_picture(root / split / f"{split}.png", HEIGHT, WIDTH)
        save_json(
            root / split / f"{split}.json", labelme(shapes if split == "val" else shapes[:1], f"{split}.png")
        )
    return root


def test_labelme_shapes(tmp_path: Path) -> None:
    dataset = open_dataset(save_labelme(tmp_path), "val", "instance")
    assert dataset.categories.names == ("cat", "dog")
    assert dataset[0].truth.labels.tolist() == [1, 0, 1]
    found = masks(dataset[0])
    assert (found[0] == SQUARE).all()
    assert (found[2] == SQUARE).all()
    assert found[1].sum() == pytest.approx(36 + 4 * np.pi, abs=5)  # the group is one object
    train = open_dataset(tmp_path, "train", "instance")
    assert train.categories.names == ("cat", "dog")  # the sets share their names


def test_a_file_written_by_labelme(tmp_path: Path) -> None:
    pytest.importorskip("labelme", reason="labelme is not installed")
    from labelme._label_file import LabelFile
    from labelme.utils import img_arr_to_b64

    save_picture(tmp_path / "a.png", HEIGHT, WIDTH)
    common = {"group_id": None, "description": "", "flags": {}}
    shapes = [
        {"label": "dog", "points": corners(), "shape_type": "polygon", "mask": None, **common},
        {"label": "dog", "points": corners(), "shape_type": "oriented_rectangle", "mask": None, **common},
        {"label": "cat", "points": [[2.0, 3.0], [9.0, 10.0]], "shape_type": "mask", **common,
         "mask": img_arr_to_b64(np.ones((8, 8), dtype=np.uint8))},
    ]  # fmt: skip
    LabelFile().save(
        filename=str(tmp_path / "a.json"),
        shapes=shapes,
        image_path="a.png",
        image_height=HEIGHT,
        image_width=WIDTH,
    )
    sample = open_dataset(tmp_path, "all", "instance")[0]
    assert sample.truth.labels.tolist() == [1, 1, 0]
    assert all((one == SQUARE).all() for one in masks(sample))


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"label": "cat", "points": [[1, 1], [2, 2]], "shape_type": "polygon"}, "a polygon has 4 numbers"),
        ({"label": "cat", "points": [[1, 1]], "shape_type": "circle"}, "a circle has 1 points; expected 2"),
        ({"label": "cat", "points": [1, 2, 3], "shape_type": "polygon"}, r"points is no list of \[x, y\]"),
        ({"label": "cat", "points": [[1, 1], [2, 2]], "shape_type": "mask", "mask": "AAA="}, "is no image"),
        ({"label": "cat", "points": [[1, 1], [2, 2]], "shape_type": "star"}, "'star' are not known"),
        ({"points": corners(), "shape_type": "polygon"}, "has no label"),
    ],
)
def test_bad_shapes_of_labelme_are_named(tmp_path: Path, shape: dict[str, object], reason: str) -> None:
    save_picture(tmp_path / "a.png", HEIGHT, WIDTH)
    good = {"label": "cat", "points": corners(), "shape_type": "polygon"}
    save_json(tmp_path / "a.json", labelme([good, shape], "a.png"))
    with pytest.raises(DataError, match=rf"a\.json: shape 2 .*{reason}"):
        open_dataset(tmp_path, "all", "instance")


def test_labelme_on_a_picture_of_another_size(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png", HEIGHT, WIDTH + 1)
    save_json(tmp_path / "a.json", labelme([{"label": "cat", "points": corners()}], "a.png"))
    with pytest.raises(DataError, match=r"a\.json: is for an image of 31 x 23 pixels, but a.png has 32 x 23"):
        open_dataset(tmp_path, "all", "instance")[0]


def studio(kind: str, value: dict[str, object], label: str) -> dict[str, object]:
    return {
        "type": kind, "from_name": "label", "to_name": "image", "original_width": WIDTH,
        "original_height": HEIGHT, "image_rotation": 0, "value": {**value, kind: [label]},
    }  # fmt: skip


def save_label_studio(root: Path, results: list[dict[str, object]]) -> Path:
    save_picture(root / "images" / "one.png", HEIGHT, WIDTH)
    cancelled = {"was_cancelled": True, "result": [studio("polygonlabels", {"points": []}, "bird")]}
    tasks = [
        {"id": 7, "data": {"image": "/data/upload/1/0a1b2c3d-one.png"},
         "annotations": [cancelled, {"result": results}]},
    ]  # fmt: skip
    return save_json(root / "project-1.json", tasks)


def percent(points: list[list[float]]) -> list[list[float]]:
    return [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in points]


def test_label_studio_shapes(tmp_path: Path) -> None:
    box = {"x": 200 / WIDTH, "y": 300 / HEIGHT, "width": 800 / WIDTH, "height": 800 / HEIGHT, "rotation": 0}
    ellipse = {"x": 50, "y": 50, "radiusX": 400 / WIDTH, "radiusY": 400 / HEIGHT, "rotation": 30}
    results = [
        studio("polygonlabels", {"points": percent(corners())}, "dog"),
        studio("rectanglelabels", box, "cat"),
        studio("ellipselabels", ellipse, "cat"),
        {"type": "choices", "value": {"choices": ["sharp"]}},
    ]
    path = save_label_studio(tmp_path, results)
    for place in (path, tmp_path):
        dataset = open_dataset(place, "all", "instance")
        assert dataset.categories.names == ("cat", "dog")
        assert dataset[0].truth.labels.tolist() == [1, 0, 0]
        found = masks(dataset[0])
        assert (found[0] == SQUARE).all()
        assert (found[1] == SQUARE).all()
        assert found[2].sum() == pytest.approx(16 * np.pi, abs=6)


def pack_brush(values: list[int]) -> list[int]:
    """Literal stretches of at most four values, and one repeated one, as bits."""
    bits = f"{len(values):032b}" + f"{7:05b}" + "".join(f"{size - 1:04b}" for size in (2, 4, 8, 16))
    start = 0
    while start < len(values):
        run = 1
        while start + run < len(values) and values[start + run] == values[start] and run < 65536:
            run += 1
        if run > 4:
            bits += "1" + "11" + f"{run - 1:016b}" + f"{values[start]:08b}"
        else:
            bits += "0" + "00" + f"{run - 1:02b}" + "".join(f"{v:08b}" for v in values[start : start + run])
        start += run
    bits += "0" * (-len(bits) % 8)
    return [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]


def test_label_studio_brush(tmp_path: Path) -> None:
    values = np.repeat(SQUARE.ravel() * 255, 4).tolist()
    packed = pack_brush(values)
    assert unpack_brush(packed, len(values)).tolist() == values
    save_label_studio(tmp_path, [studio("brushlabels", {"format": "rle", "rle": packed}, "cat")])
    assert (masks(open_dataset(tmp_path, "all", "instance")[0])[0] == SQUARE).all()
    save_label_studio(tmp_path, [studio("brushlabels", {"format": "rle", "rle": packed[:20]}, "cat")])
    with pytest.raises(
        DataError, match=r"project-1\.json: task 7, result 1: the runs of a brush are cut off"
    ):
        open_dataset(tmp_path, "all", "instance")[0]


def test_label_studio_brush_of_the_sdk() -> None:
    brush = pytest.importorskip(
        "label_studio_sdk.converter.brush", reason="label-studio-sdk is not installed"
    )
    mask = np.random.default_rng(0).integers(0, 2, (37, 53), dtype=np.uint8) * 255
    mask[10:30, 10:40] = 255
    packed = brush.mask2rle(mask)
    assert (unpack_brush(packed, 4 * mask.size)[3::4].reshape(37, 53) == mask).all()


def test_bad_label_studio_is_named(tmp_path: Path) -> None:
    path = save_label_studio(tmp_path, [studio("polygonlabels", {"points": [[1, 2], [3, 4]]}, "cat")])
    with pytest.raises(DataError, match=r"project-1\.json: task 7, result 1: a polygon has 4 numbers"):
        open_dataset(path, "all", "instance")
    path.write_text(json.dumps([{"image": "a.png", "label": []}]))
    with pytest.raises(DataError, match="export as JSON, not as JSON-MIN"):
        open_dataset(path, "all", "instance")
    path.write_text("[{")
    with pytest.raises(DataError, match="is not valid JSON"):
        open_dataset(path, "all", "instance")


def save_cvat(root: Path, extra: str = "") -> Path:
    runs = "0,8,56"  # the first row, in runs row by row
    points = ";".join(f"{x},{y}" for x, y in corners())
    for name in ("one.png", "two.png"):
        save_picture(root / "images" / name, HEIGHT, WIDTH)
    (root / "annotations.xml").write_text(
        f"""<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><job><labels>
<label><name>dog</name></label><label><name>cat</name></label>
</labels></job></meta>
<image id="0" name="one.png" subset="Train" width="{WIDTH}" height="{HEIGHT}">
<polygon label="cat" points="{points}" z_order="0"/>
<mask label="dog" rle="{runs}" left="2" top="3" width="8" height="8"/>
<box label="dog" xtl="2" ytl="3" xbr="10" ybr="11"/>
<ellipse label="dog" cx="15" cy="11" rx="4" ry="4"/>
<polyline label="dog" points="1,1;2,2"/>
{extra}</image>
<image id="1" name="two.png" subset="Validation" width="{WIDTH}" height="{HEIGHT}"/>
</annotations>"""
    )
    return root


def test_cvat_shapes_by_subset(tmp_path: Path) -> None:
    save_cvat(tmp_path)
    dataset = open_dataset(tmp_path, "train", "instance")
    assert dataset.categories.names == ("dog", "cat")
    assert dataset[0].truth.labels.tolist() == [1, 0, 0, 0]
    found = masks(dataset[0])
    assert (found[0] == SQUARE).all()
    assert found[1].sum() == 8
    assert found[1][3, 2:10].all()
    assert (found[2] == SQUARE).all()
    assert found[3].sum() == pytest.approx(16 * np.pi, abs=6)
    assert len(open_dataset(tmp_path / "annotations.xml", "val", "instance")[0].truth) == 0


def test_cvat_with_a_file_for_each_split(tmp_path: Path) -> None:
    """As datumaro writes them."""
    text = (save_cvat(tmp_path) / "annotations.xml").read_text()
    (tmp_path / "annotations.xml").rename(tmp_path / "train.xml")
    (tmp_path / "val.xml").write_text(text)
    assert open_dataset(tmp_path, "val", "instance")[0].truth.labels.tolist() == [1, 0, 0, 0]
    (tmp_path / "val.xml").write_text(
        text.replace("<label><name>cat</name></label>", "").replace("cat", "dog")
    )
    with pytest.raises(DataError, match=r"val\.xml: has other labels than train\.xml"):
        open_dataset(tmp_path, "train", "instance")


@pytest.mark.parametrize(
    ("element", "reason"),
    [
        ('<polygon label="cat" points="1,2;3"/>', "line 11: a polygon has 3 numbers"),
        ('<polygon label="cat" points="1,2;3,x;4,4"/>', "line 11: a point of a polygon is no number"),
        ('<mask label="cat" rle="3" left="0" top="0" width="2" height="2"/>', "line 11: the runs of a mask"),
        ('<box label="cat" xtl="1" ytl="?" xbr="2" ybr="2"/>', "line 11: ytl is '\\?'; expected a number"),
        ('<box xtl="1" ytl="1" xbr="2" ybr="2"/>', "line 11: a box has no label"),
        ('<box label="fox" xtl="1" ytl="1" xbr="2" ybr="2"/>', "labels that it does not list: fox"),
        ("<box", "line 11: is no valid XML"),
    ],
)
def test_bad_elements_of_cvat_are_named(tmp_path: Path, element: str, reason: str) -> None:
    save_cvat(tmp_path, element)
    with pytest.raises(DataError, match=rf"annotations\.xml: .*{reason}"):
        open_dataset(tmp_path, "train", "instance")


def test_pictures_that_are_missing_are_named(tmp_path: Path) -> None:
    save_cvat(tmp_path)
    (tmp_path / "images" / "one.png").unlink()
    with pytest.raises(DataError, match=r"annotations\.xml: its image 'one.png' is not found; looked in"):
        open_dataset(tmp_path, "train", "instance")


def test_real_voc_pictures(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "voc2007_mini"
    for name, ours in (("segclass", "SegmentationClass"), ("segobject", "SegmentationObject")):
        (tmp_path / ours).symlink_to(source / name)
    (tmp_path / "JPEGImages").symlink_to(source / "images")
    dataset = open_dataset(tmp_path, "all", "panoptic", follow_outside=True)
    reference = open_dataset(source / "panoptic_val.json", "val", "panoptic")
    by_id = {dataset[index].image_id: index for index in range(len(dataset))}
    for index in range(3):
        truth = reference[index]
        ours = dataset[by_id[truth.image_id]]
        assert torch.equal(ours.truth.layers > 0, truth.truth.layers > 0)
        assert sorted(ours.truth.areas().tolist()) == sorted(truth.truth.areas().tolist())
