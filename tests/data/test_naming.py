"""A name in an annotation file leads to exactly one image, inside of the data folder."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from data.dataset_files import annotation, save_json, save_labels, save_picture, square, two_categories

from unimask.data.open import open_dataset, open_items
from unimask.errors import DataError


def save_coco(root: Path, names: list[str]) -> None:
    images = [{"id": n, "file_name": name, "height": 23, "width": 31} for n, name in enumerate(names)]
    entries = [annotation(n, n, [square(2, 3, 8)]) for n in range(len(names))]
    save_json(
        root / "instances_train.json",
        {"images": images, "annotations": entries, "categories": two_categories()},
    )


def save_cvat(root: Path, names: list[str]) -> None:
    images = "".join(
        f'<image name="{name}" width="31" height="23">'
        '<box label="cat" xtl="2" ytl="3" xbr="9" ybr="9"/></image>'
        for name in names
    )
    root.mkdir(parents=True, exist_ok=True)
    (root / "annotations.xml").write_text(f"<annotations>{images}</annotations>")


def save_labelme(root: Path, stem: str, stated: str) -> None:
    shape = {"label": "cat", "points": square_points(), "shape_type": "polygon", "group_id": None}
    save_json(root / f"{stem}.json", {"version": "5", "shapes": [shape], "imagePath": stated})


def square_points() -> list[list[int]]:
    return [[2, 3], [10, 3], [10, 11], [2, 11]]


def files(root: Path) -> list[str]:
    return sorted(str(item.files[0].relative_to(root)) for item in open_items(root, "all", "instance").items)


@pytest.mark.parametrize("save", [save_coco, save_cvat])
@pytest.mark.parametrize("task", ["instance", "detection"])
def test_two_entries_that_reach_one_image_are_refused(tmp_path: Path, save: object, task: str) -> None:
    save(tmp_path, ["video1/0001.png", "video2/0001.png"])
    save_picture(tmp_path / "images/0001.png", 23, 31)
    with pytest.raises(DataError, match=r"0001\.png: two entries of the annotations lead to this image"):
        open_dataset(tmp_path, "all", task)


@pytest.mark.parametrize("save", [save_coco, save_cvat])
def test_sub_folders_are_kept(tmp_path: Path, save: object) -> None:
    names = ["video1/0001.png", "video2\\0001.png", "0001.png"]
    save(tmp_path, names)
    for number, name in enumerate(names):
        save_picture(tmp_path / "images" / name.replace("\\", "/"), 23, 31, 10 * number)
    found = [f"images/{name}".replace("\\", "/") for name in names]
    assert files(tmp_path) == sorted(found)


@pytest.mark.parametrize("save", [save_coco, save_cvat])
@pytest.mark.parametrize(
    ("stated", "there"),
    [
        ("A.JPG", "A.jpg"),
        (unicodedata.normalize("NFC", "Größe.png"), unicodedata.normalize("NFD", "Größe.png")),
        (unicodedata.normalize("NFD", "Größe.png"), unicodedata.normalize("NFC", "Größe.png")),
        ("C:\\Users\\me\\images\\a.png", "a.png"),
        ("a.jfif", "a.jfif"),
    ],
)
def test_each_name_is_resolved_on_its_own(tmp_path: Path, save: object, stated: str, there: str) -> None:
    save_picture(tmp_path / "images/plain.png", 23, 31)
    save_picture(tmp_path / "images/other.png", 23, 31)
    save_picture(tmp_path / "images/x.jpg", 23, 31).rename(tmp_path / "images" / there)
    save(tmp_path, ["plain.png", stated, "other.png"])
    if ":" in stated and save is save_coco:
        save(tmp_path, [stated])
    assert f"images/{there}" in files(tmp_path)


def test_a_name_that_can_be_two_files(tmp_path: Path) -> None:
    for name in ("Ab.png", "aB.png", "c.png"):
        save_picture(tmp_path / "images" / name, 23, 31)
    save_coco(tmp_path, ["c.png", "ab.png"])
    with pytest.raises(DataError, match=r"'ab\.png' can be any of Ab\.png, aB\.png; rename them"):
        open_dataset(tmp_path, "all", "instance")


def test_labelme_that_states_another_image_than_its_own(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png", 23, 31)
    save_picture(tmp_path / "b.png", 23, 31)
    save_labelme(tmp_path, "a", "b.png")
    with pytest.raises(DataError, match=r"a\.json: says that it is for 'b\.png', but 'a\.png' has its own"):
        open_dataset(tmp_path, "all", "instance")
    (tmp_path / "a.png").unlink()
    assert files(tmp_path) == ["b.png"]


def test_labelme_beside_images_of_one_stem(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png", 23, 31)
    save_picture(tmp_path / "a.jpg", 23, 31)
    save_labelme(tmp_path, "a", "a.jpg")
    assert files(tmp_path) == ["a.jpg"]
    save_labelme(tmp_path, "a", "gone.jpg")
    with pytest.raises(DataError, match=r"its image can be any of a\.jpg, a\.png"):
        open_dataset(tmp_path, "all", "instance")


def save_set(root: Path, name: str) -> None:
    save_picture(root / f"images/{name}.png", 13, 11)
    save_labels(root / f"labels/{name}.png", np.eye(13, 11, dtype=np.uint8))


def test_label_folders_with_two_images_of_one_name(tmp_path: Path) -> None:
    save_set(tmp_path, "a")
    save_picture(tmp_path / "images/a.jpg", 13, 11)
    with pytest.raises(DataError, match=r"a\.jpg and a\.png have one name"):
        open_dataset(tmp_path, "all", "semantic")


def test_label_folders_in_sub_folders_are_read_or_said(tmp_path: Path) -> None:
    for name in ("a", "site1/a", "site2/a"):
        save_set(tmp_path, name)
    save_picture(tmp_path / "images/rest/b.png", 13, 11)
    (tmp_path / "images/notes.txt").write_text("x")
    dataset = open_items(tmp_path, "all", "semantic")
    assert [str(item.files[1].relative_to(tmp_path)) for item in dataset.items] == [
        *("labels/a.png", "labels/site1/a.png", "labels/site2/a.png")
    ]
    assert [sentence.split()[0] for sentence in dataset.left_out] == ["1", "1"]
    assert "rest/b.png" in dataset.left_out[0]
    assert "notes.txt" in dataset.left_out[1]


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("save", [save_coco, save_cvat])
def test_names_lead_out_of_the_data_folder_only_if_allowed(
    tmp_path: Path, save: object, absolute: bool
) -> None:
    secret = save_picture(tmp_path / "elsewhere/secret.png", 23, 31)
    root = tmp_path / "set"
    save_picture(root / "images/1.png", 23, 31)
    save(root, [str(secret) if absolute else "../../elsewhere/secret.png", "1.png"])
    with pytest.raises(DataError, match=r"lead out of this folder.*--follow-outside"):
        open_dataset(root, "all", "instance")
    assert len(open_dataset(root, "all", "instance", follow_outside=True)) == 2
    dataset = open_items(root, "all", "instance", follow_outside=True)
    assert "1 files lie outside of the data folder" in dataset.left_out[0]


def test_links_lead_out_of_the_data_folder_only_if_allowed(tmp_path: Path) -> None:
    save_picture(tmp_path / "elsewhere/1.png", 23, 31)
    root = tmp_path / "set"
    save_coco(root, ["1.png"])
    (root / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="lead out of this folder"):
        open_dataset(root, "all", "instance")
    assert len(open_dataset(root, "all", "instance", follow_outside=True)) == 1
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")  # the folder that the user names may be a link
    save_coco(tmp_path / "elsewhere", ["1.png"])
    assert len(open_dataset(tmp_path / "link", "all", "instance")) == 1


@pytest.mark.parametrize("line", ["path: {outside}", "path: ../elsewhere", "train: {outside}/images"])
def test_yolo_leads_out_of_the_data_folder_only_if_allowed(tmp_path: Path, line: str) -> None:
    outside, root = tmp_path / "elsewhere", tmp_path / "set"
    for place in (outside, root):
        (place / "labels").mkdir(parents=True)
        (place / "labels/1.txt").write_text("0 .5 .5 .5 .5\n")
    save_picture(outside / "images/1.png", 23, 31)
    text = "names: [cat]\n" + line.format(outside=outside)
    (root / "data.yaml").write_text(text if "train" in line else f"{text}\ntrain: images\n")
    with pytest.raises(DataError, match="lead out of this folder"):
        open_dataset(root, "train", "instance")
    assert len(open_dataset(root, "all", "instance", follow_outside=True)) == 1


@pytest.mark.parametrize("start", ["/data/local-files/?d={outside}", "/data/local-files/?d=../elsewhere"])
def test_label_studio_leads_out_of_the_data_folder_only_if_allowed(tmp_path: Path, start: str) -> None:
    outside, root = tmp_path / "elsewhere", tmp_path / "set"
    save_picture(outside / "1.png", 23, 31)
    value = {"x": 5, "y": 5, "width": 20, "height": 20, "rectanglelabels": ["cat"]}
    result = {"type": "rectanglelabels", "original_width": 31, "original_height": 23, "value": value}
    name = f"{start.format(outside=outside)}/1.png"
    save_json(root / "p.json", [{"id": 1, "data": {"image": name}, "annotations": [{"result": [result]}]}])
    with pytest.raises(DataError, match="lead out of this folder"):
        open_dataset(root, "all", "instance")
    assert len(open_dataset(root, "all", "instance", follow_outside=True)) == 1


def test_a_json_in_annotations_has_its_images_beside_that_folder(tmp_path: Path) -> None:
    save_coco(tmp_path / "annotations", ["1.png"])
    save_picture(tmp_path / "train/1.png", 23, 31)
    for path in (tmp_path, tmp_path / "annotations", tmp_path / "annotations/instances_train.json"):
        assert len(open_dataset(path, "all", "instance")) == 1
    content = json.loads((tmp_path / "annotations/instances_train.json").read_text())
    assert content["images"][0]["file_name"] == "1.png"


def save_yolo(root: Path, images: list[str]) -> None:
    for name in images:
        save_picture(root / "images" / name, 23, 31)
        label = root / "labels" / Path(name).with_suffix(".txt")
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("0 .5 .5 .5 .5\n")
    (root / "data.yaml").write_text("names: [cat]\ntrain: images\n")


def test_yolo_in_sub_folders_and_two_images_of_one_text(tmp_path: Path) -> None:
    save_yolo(tmp_path, ["a.png", "site/a.png", "site/b.png"])
    assert files(tmp_path) == ["images/a.png", "images/site/a.png", "images/site/b.png"]
    assert all(len(open_dataset(tmp_path, "all", "instance")[n].truth) == 1 for n in range(3))
    save_yolo(tmp_path, ["site/b.jpg"])
    with pytest.raises(DataError, match=r"b\.txt: can be for b\.jpg and for b\.png"):
        open_dataset(tmp_path, "all", "instance")


def test_a_list_that_names_an_image_twice_has_it_once(tmp_path: Path) -> None:
    save_yolo(tmp_path, ["a.png", "b.png"])
    (tmp_path / "train.txt").write_text("./images/a.png\nimages/b.png\n\nimages/a.png\n")
    (tmp_path / "data.yaml").write_text("names: [cat]\ntrain: train.txt\n")
    assert files(tmp_path) == ["images/a.png", "images/b.png"]
