import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from data.dataset_files import (
    annotation,
    coco_instances,
    save_coco_instances,
    save_ids,
    save_json,
    save_panoptic,
    save_picture,
    square,
)
from PIL import Image

from unimask.data.formats.coco_instances import open_instances
from unimask.data.formats.coco_panoptic import open_panoptic
from unimask.errors import DataError

Change = Callable[[dict], object]


def test_instances_overlap_in_layers_and_keep_their_order(tmp_path: Path) -> None:
    dataset = open_instances(save_coco_instances(tmp_path / "instances_train.json", tmp_path / "images"))
    assert dataset.categories.names == ("cat", "dog")
    assert dataset.categories.file_ids == (3, 7)
    assert dataset.categories.is_thing == (True, True)
    assert dataset.image_ids == ("p0", "p1")
    sample = dataset[1]
    assert sample.image.shape == (3, 23, 31)
    assert sample.image_id == "p1"
    segments = sample.truth
    assert segments.layers.shape == (2, 23, 31)
    assert segments.labels.tolist() == [0, 1, 0]
    assert segments.is_crowd.tolist() == [False, False, True]
    masks = segments.masks()
    assert bool(masks[0, 3:11, 2:10].all())
    assert int(masks[0].sum()) == 64
    assert int(masks[1].sum()) == 81 + 16
    assert bool((masks[0] & masks[1]).any())
    assert masks[2].nonzero().tolist() == [[row, 29] for row in range(5)]


def test_masks_equal_pycocotools(tmp_path: Path) -> None:
    from pycocotools import mask as reference

    content = coco_instances(1)
    content["annotations"][0]["segmentation"] = [[-5.5, -3, 40, 4.25, 12, 99], square(20, 1, 8.5)]
    dataset = open_instances(save_coco_instances(tmp_path / "a.json", tmp_path / "images", 1, content))
    masks = dataset[0].truth.masks()
    for mask, entry in zip(masks, content["annotations"]):
        packed = reference.frPyObjects(entry["segmentation"], 23, 31)
        packed = reference.merge(packed) if isinstance(packed, list) else packed
        assert int(mask.sum()) == int(reference.area(packed))
        assert (
            reference.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))["counts"] == packed["counts"]
        )


def test_pictures_without_instances_and_instances_without_pixels(tmp_path: Path) -> None:
    content = coco_instances(2)
    content["annotations"] = [
        annotation(1, 10, [[1, 1, 5, 1, 9, 1]]),
        annotation(2, 10, [square(1, 1, 5)], category=7),
    ]
    dataset = open_instances(save_coco_instances(tmp_path / "a.json", tmp_path / "images", 2, content))
    assert dataset[0].truth.labels.tolist() == [1]
    assert len(dataset[1].truth) == 0
    assert dataset[1].truth.layers.shape == (1, 23, 31)


def test_roboflow_parent_category_is_left_out(tmp_path: Path) -> None:
    content = coco_instances(1)
    content["categories"] = [
        {"id": 0, "name": "animals", "supercategory": "none"},
        {"id": 3, "name": "cat", "supercategory": "animals"},
        {"id": 7, "name": "dog", "supercategory": "animals"},
    ]
    path = save_coco_instances(tmp_path / "train" / "_annotations.coco.json", tmp_path / "train", 1, content)
    assert open_instances(path).categories.names == ("cat", "dog")
    content["annotations"][0]["category_id"] = 0
    assert open_instances(save_json(path, content)).categories.names == ("animals", "cat", "dog")


def test_stored_orientation_is_used_where_the_json_was_made_without_exif(tmp_path: Path) -> None:
    path = save_coco_instances(tmp_path / "a.json", tmp_path / "images", 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.arange(23 * 31, dtype=np.uint32).reshape(23, 31).astype(np.uint8)
    Image.fromarray(stored).save(tmp_path / "images" / "p0.png", exif=exif)
    assert np.array_equal(open_instances(path)[0].image[0].numpy(), stored)


def _edit_first(key: str, value: object) -> Change:
    return lambda content: content["annotations"][0].__setitem__(key, value)


BAD_INSTANCES: dict[str, tuple[Change, str]] = {
    "no annotations": (lambda c: c.pop("annotations"), "no list of objects 'annotations'"),
    "empty annotations": (lambda c: c.__setitem__("annotations", []), "'annotations' is empty"),
    "no images": (lambda c: c.__setitem__("images", []), "'images' is empty"),
    "twice annotation": (_edit_first("id", 2), "annotation id 2 occurs twice"),
    "twice image": (lambda c: c["images"].append(dict(c["images"][0])), "image id 10 occurs twice"),
    "twice category": (
        lambda c: c["categories"].append({"id": 3, "name": "x"}),
        "category id 3 occurs twice",
    ),
    "twice name": (
        lambda c: c["categories"].append({"id": 4, "name": "cat"}),
        "'cat' is empty or occurs twice",
    ),
    "unknown image": (_edit_first("image_id", 99), "annotation 1 is for image 99, which is not in 'images'"),
    "unknown category": (_edit_first("category_id", 4), "annotation 1 has category 4"),
    "text category": (_edit_first("category_id", "cat"), "annotation 1 has category_id 'cat'"),
    "only a box": (_edit_first("segmentation", []), "annotation 1 has no mask, only a box"),
    "no segmentation": (lambda c: c["annotations"][0].pop("segmentation"), "annotation 1 has no mask"),
    "two points": (_edit_first("segmentation", [[1, 2, 3, 4]]), "annotation 1: a polygon has 4 numbers"),
    "odd polygon": (_edit_first("segmentation", [[1, 2, 3, 4, 5, 6, 7]]), "annotation 1: a polygon has 7"),
    "text polygon": (
        _edit_first("segmentation", [["a"] * 6]),
        "annotation 1: a polygon is no list of numbers",
    ),
    "outside polygon": (
        _edit_first("segmentation", [square(200, 2, 5), square(2, -90, 5)]),
        r"annotation 1 lies outside of its image \(31 x 23 pixels\)",
    ),
    "nan polygon": (_edit_first("segmentation", [[float("nan")] * 6]), "annotation 1: .* no finite"),
    "other size": (
        _edit_first("segmentation", {"size": [5, 5], "counts": [25]}),
        r"annotation 1: .*\[5, 5\]",
    ),
    "bad counts": (_edit_first("segmentation", {"size": [23, 31], "counts": 5}), "annotation 1: run lengths"),
    "no size": (lambda c: c["images"][0].pop("height"), "image 10 has height None"),
    "zero size": (lambda c: c["images"][0].__setitem__("width", 0), "image 10 is 0 x 23"),
}


@pytest.mark.parametrize("case", BAD_INSTANCES)
def test_bad_entries_are_named(tmp_path: Path, case: str) -> None:
    change, message = BAD_INSTANCES[case]
    path = save_coco_instances(tmp_path / "a.json", tmp_path / "images")
    content = coco_instances()
    change(content)
    save_json(path, content)
    with pytest.raises(DataError, match=message) as caught:
        open_instances(path)
    assert caught.value.path == str(path)


def test_bad_run_lengths_are_named_when_they_are_decoded(tmp_path: Path) -> None:
    path = save_coco_instances(tmp_path / "a.json", tmp_path / "images")
    for counts in ("zz~~~", [1, 5000], [3, -2, 5]):
        content = coco_instances()
        content["annotations"][4]["segmentation"] = {"size": [23, 31], "counts": counts}
        dataset = open_instances(save_json(path, content))
        assert len(dataset[0].truth) == 3
        with pytest.raises(DataError, match=r"a\.json: annotation 102: .*run lengths"):
            dataset[1]


def test_missing_and_wrong_pictures(tmp_path: Path) -> None:
    path = save_coco_instances(tmp_path / "a.json", tmp_path / "images")
    save_picture(tmp_path / "images" / "p1.png", 5, 9)
    with pytest.raises(DataError, match=r"p1\.png: is 9 x 5 pixels, but a\.json says 31 x 23 \(image 11\)"):
        open_instances(path)[1]
    (tmp_path / "images" / "p1.png").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"p1\.png: is not an image"):
        open_instances(path)[1]
    (tmp_path / "images" / "p1.png").unlink()
    with pytest.raises(DataError, match=r"1 of 2 images are missing in .*images, the first is 'p1.png'"):
        open_instances(path)
    (tmp_path / "images" / "p0.png").unlink()
    with pytest.raises(DataError, match=r"images are not found \('p0.png', \.\.\.\); looked in"):
        open_instances(path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"images": 5}', "\x00"])
def test_files_that_are_no_coco(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=r"a\.json"):
        open_instances(tmp_path / "a.json")
    with pytest.raises(DataError, match=r"a\.json"):
        open_panoptic(tmp_path / "a.json")


def test_pictures_are_found_by_convention(tmp_path: Path) -> None:
    layouts = {
        "annotations/instances_train2017.json": "train2017",
        "annotations/instances_val2014.json": "images/val2014",
        "instances_train.json": "train/images",
        "annotations/instances_default.json": "images/default",
        "instances_val.json": "images",
        "train/_annotations.coco.json": "train",
        "valid/_annotations.coco.json": "valid/images",
    }
    for index, (annotations, pictures) in enumerate(layouts.items()):
        root = tmp_path / str(index)
        assert len(open_instances(save_coco_instances(root / annotations, root / pictures))) == 2, annotations


def test_file_names_with_folders(tmp_path: Path) -> None:
    content = coco_instances(1)
    content["images"][0]["file_name"] = "train2017/p0.png"
    save_coco_instances(tmp_path / "a.json", tmp_path, 1, content)
    assert open_instances(tmp_path / "a.json")[0].image_id == "p0"
    save_picture(tmp_path / "b" / "images" / "p0.png", 23, 31)
    content["images"][0]["file_name"] = "C:\\data\\p0.png"
    assert open_instances(save_json(tmp_path / "b" / "a.json", content))[0].image_id == "p0"


def test_panoptic_sample(tmp_path: Path) -> None:
    save_panoptic(tmp_path / "panoptic_val.json", tmp_path / "panoptic", tmp_path / "images")
    dataset = open_panoptic(tmp_path / "panoptic_val.json")
    assert dataset.categories.is_thing == (True, True, False)
    assert dataset.categories.colors[2] == (1, 2, 3)
    segments = dataset[1].truth
    assert segments.layers.shape == (1, 17, 19)
    assert segments.layers[0, :, 7].tolist() == [1] * 5 + [2] * 5 + [3] * 5 + [0] * 2
    assert segments.labels.tolist() == [0, 1, 2]
    assert segments.is_crowd.tolist() == [False, True, False]
    assert segments.areas().tolist() == [95, 95, 95]


def test_panoptic_pictures_without_annotation_are_left_out(tmp_path: Path) -> None:
    content = save_panoptic(tmp_path / "p.json", tmp_path / "panoptic", tmp_path / "images", 3)
    content["annotations"].pop(1)
    assert open_panoptic(save_json(tmp_path / "p.json", content)).image_ids == ("p0", "p2")


def test_panoptic_folders_by_convention(tmp_path: Path) -> None:
    layouts = [
        ("annotations/panoptic_train2017.json", "annotations/panoptic_train2017", "train2017"),
        ("panoptic.json", "panoptic", "images"),
        ("annotations/panoptic_val.json", "panoptic_val", "images/val"),
        ("panoptic_val.json", "panoptic/val", "val"),
    ]
    for index, (path, pngs, pictures) in enumerate(layouts):
        root = tmp_path / str(index)
        save_panoptic(root / path, root / pngs, root / pictures)
        assert len(open_panoptic(root / path)[0].truth) == 3


def _edit_segment(key: str, value: object) -> Change:
    return lambda content: content["annotations"][0]["segments_info"][0].__setitem__(key, value)


BAD_PANOPTIC: dict[str, tuple[Change, str]] = {
    "unknown category": (_edit_segment("category_id", 4), "segment 5 of image 0 has category 4"),
    "twice id": (_edit_segment("id", 257), "image 0 has id 257 twice"),
    "zero id": (_edit_segment("id", 0), "image 0 has id 0 twice, or not from 1"),
    "large id": (_edit_segment("id", 2**24), "image 0 has id 16777216"),
    "text id": (_edit_segment("id", "5a"), "a segment of image 0 has id '5a'"),
    "unknown image": (
        lambda c: c["annotations"][0].__setitem__("image_id", 44),
        "annotation is for image 44",
    ),
    "twice image": (lambda c: c["annotations"][0].__setitem__("image_id", 1), "image 1 has two annotations"),
    "no segments": (
        lambda c: c["annotations"][0].pop("segments_info"),
        "image 0 has no list 'segments_info'",
    ),
    "missing png": (lambda c: c["annotations"][0].__setitem__("file_name", "q.png"), r"q\.png: no such file"),
}


@pytest.mark.parametrize("case", BAD_PANOPTIC)
def test_bad_panoptic_entries_are_named(tmp_path: Path, case: str) -> None:
    change, message = BAD_PANOPTIC[case]
    content = save_panoptic(tmp_path / "p.json", tmp_path / "panoptic", tmp_path / "images")
    change(content)
    with pytest.raises(DataError, match=message):
        open_panoptic(save_json(tmp_path / "p.json", content))


def test_panoptic_png_that_does_not_fit(tmp_path: Path) -> None:
    save_panoptic(tmp_path / "p.json", tmp_path / "panoptic", tmp_path / "images", 1)
    dataset = open_panoptic(tmp_path / "p.json")
    png = tmp_path / "panoptic" / "p0.png"
    ids = np.zeros((17, 19), dtype=np.int64)
    ids[:3], ids[3:6], ids[6:9] = 5, 70000, 257
    ids[12, 4] = 8
    save_ids(png, ids)
    with pytest.raises(DataError, match=r"p0\.png: has 1 segment ids that p\.json does not list .* is 8;"):
        dataset[0]
    ids[ids == 8], ids[ids == 257] = 0, 0
    save_ids(png, ids)
    with pytest.raises(DataError, match=r"no pixel of 1 segments that p\.json lists for image 0, .* is 257"):
        dataset[0]
    save_ids(png, ids[:5])
    with pytest.raises(DataError, match=r"p0\.png: is 19 x 5 pixels, but its image is 19 x 17"):
        dataset[0]
    Image.new("L", (19, 17)).save(png)
    with pytest.raises(DataError, match="mode L"):
        dataset[0]
    for path in (tmp_path / "panoptic").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"panoptic PNGs \('p0.png', \.\.\.\) are not found"):
        open_panoptic(tmp_path / "p.json")


def test_readers_are_lazy(tmp_path: Path) -> None:
    path = save_coco_instances(tmp_path / "a.json", tmp_path / "images")
    for picture in (tmp_path / "images").iterdir():
        picture.write_bytes(b"")
    assert len(open_instances(path)) == 2
    content = save_panoptic(tmp_path / "p.json", tmp_path / "panoptic", tmp_path / "images")
    for picture in (tmp_path / "panoptic").iterdir():
        picture.write_bytes(b"")
    assert len(open_panoptic(tmp_path / "p.json")) == len(content["images"])
    assert json.loads(path.read_text())["images"]


def test_scores_of_a_truth_are_one(tmp_path: Path) -> None:
    path = save_coco_instances(tmp_path / "a.json", tmp_path / "images")
    assert torch.equal(open_instances(path)[0].truth.scores, torch.ones(3))
