"""How images are read is decided once for a set or a run, is said, and can be set."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unimask.config.images import Experiment
from unimask.config.overrides import override
from unimask.data.check import check
from unimask.data.decisions import decide_for_run, head_of
from unimask.data.open import open_dataset, open_items
from unimask.data.read import image_files, left_out_of, read_image
from unimask.data.reading import Reading, reading_of, with_reading
from unimask.errors import ConfigError, DataError
from unimask.training.image_data import open_task


def save_turned(path: Path, orientation: int, size: tuple[int, int] = (20, 30)) -> None:
    """An image whose upper left corner is bright as it is stored."""
    pixels = np.full(size, 40, np.uint8)
    pixels[:5, :5] = 250
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, exif=exif)


def save_set(folder: Path, sizes: dict[str, tuple[int, int]], orientations: dict[str, int]) -> Path:
    """COCO, whose images of (height, width) as stated all have one object in the corner of the labels."""
    images, annotations = [], []
    for number, (name, (height, width)) in enumerate(sizes.items()):
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        box = [0, 0, 5, 0, 5, 5, 0, 5]
        annotations.append(
            {"id": number, "image_id": number, "category_id": 1, "bbox": [0, 0, 5, 5], "segmentation": [box]}
        )
    for name, orientation in orientations.items():
        stored = (20, 20) if name.startswith("square") else (20, 30)
        save_turned(folder / "images" / name, orientation, stored)
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
    (folder / "instances_train.json").write_text(json.dumps(content))
    return folder / "instances_train.json"


def corners(path: Path, **settings: object) -> dict[str, int]:
    """What the corner of each image holds that the labels of a set are about."""
    dataset = open_dataset(path, "all", "instance", reading=Reading(**settings))
    samples = [dataset[index] for index in range(len(dataset))]
    return {sample.image_id: int(sample.image[0, 0, 0]) for sample in samples}


def test_labels_in_stored_pixels_are_so_for_the_whole_set(tmp_path: Path) -> None:
    """A square image, and one that stands on its head, tell nothing: the others decide for them."""
    path = save_set(
        tmp_path,
        {"a.png": (20, 30), "square.png": (20, 20), "head.png": (20, 30)},
        {"a.png": 6, "square.png": 6, "head.png": 3},
    )
    assert corners(path) == {"a": 250, "square": 250, "head": 250}
    decided = open_items(path, "all", "instance").decided
    assert decided.reading.orientation == "stored"
    assert "3 images have an EXIF orientation" in decided.said[0]
    assert "data.orientation=stored" in decided.said[0]
    with pytest.raises(DataError, match=r"a\.png: is 20 x 30 pixels, but .* says 30 x 20"):
        corners(path, orientation="exif")


def test_labels_on_turned_images_are_so_for_the_whole_set(tmp_path: Path) -> None:
    path = save_set(tmp_path, {"a.png": (30, 20), "square.png": (20, 20)}, {"a.png": 6, "square.png": 6})
    assert corners(path) == {"a": 40, "square": 40}
    assert open_items(path, "all", "instance").decided.reading.orientation == "exif"


def test_labels_of_both_kinds_are_refused(tmp_path: Path) -> None:
    path = save_set(tmp_path, {"a.png": (20, 30), "b.png": (30, 20)}, {"a.png": 6, "b.png": 6})
    with pytest.raises(DataError, match=r"a\.png: its labels have the size of the stored pixels"):
        corners(path)


def test_where_the_sizes_tell_nothing_it_is_said_and_can_be_set(tmp_path: Path) -> None:
    path = save_set(tmp_path, {"square.png": (20, 20)}, {"square.png": 6})
    assert corners(path) == {"square": 40}
    assert corners(path, orientation="stored") == {"square": 250}
    assert corners(path, undecided="stored") == {"square": 250}
    said = check(path, "instance", override(Experiment(), {"data.background": True})).warnings
    assert any("do not tell whether they were drawn on turned images" in sentence for sentence in said)


def save_deep_set(folder: Path, brightest: list[int]) -> Path:
    sizes = {f"{number}.png": (20, 30) for number in range(len(brightest))}
    path = save_set(folder, sizes, {})
    (folder / "images").mkdir()
    for number, value in enumerate(brightest):
        pixels = np.linspace(0, value, 600).reshape(20, 30).astype(np.uint16)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    return path


def test_the_depth_of_a_set_is_one_and_travels_with_the_model(tmp_path: Path) -> None:
    """Each for itself, the dark images would be 12-bit and the bright one 16-bit."""
    path = save_deep_set(tmp_path, [2000, 4000, 60000])
    dataset = open_dataset(path, "all", "instance")
    assert [int(dataset[index].image.max()) for index in range(3)] == [8, 16, 233]
    task = open_task(tmp_path, "instance", override(Experiment(), {"training.evaluate_every": 0}))
    assert task.reading.depth == 16
    assert with_reading(Experiment(), task.reading).data.depth == 16
    said = check(path, "instance").warnings
    assert any("taken as 16-bit, for the brightest value of 3 of them is 60000" in one for one in said)
    twelve = open_dataset(path, "all", "instance", reading=Reading(depth=12))
    assert int(twelve[1].image.max()) == 249
    with pytest.raises(DataError, match=r"2\.png: has values up to 60000, beyond its depth of 12 bits"):
        twelve[2]


def test_few_levels_of_brightness_are_said(tmp_path: Path) -> None:
    path = save_deep_set(tmp_path, [140, 90])
    items = open_items(path, "all", "instance", reading=Reading(depth=12))
    assert "only about 9 of 256 levels of brightness are used" in items.decided.said[0]


def test_the_depth_of_a_run_is_one(tmp_path: Path) -> None:
    save_deep_set(tmp_path, [2000, 60000])
    files = image_files([tmp_path / "images"])
    reading, said = decide_for_run(files, Reading())
    assert (reading.depth, len(said)) == (16, 1)
    assert decide_for_run(files, Reading(depth=12))[0].depth == 12
    assert (
        decide_for_run([np.full((4, 4), 900, np.uint16), torch.full((4, 4), 9000)], Reading())[0].depth == 16
    )


def test_what_of_a_folder_is_no_image_is_counted(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    for name in ("a.json", "a.overlay.png", "a.segments.png", ".hidden", "notes.txt", "b.json"):
        (tmp_path / name).write_text("x")
    (tmp_path / "below").mkdir()
    (said,) = left_out_of([tmp_path, tmp_path / "a.png"])
    assert said == f"{tmp_path}: 3 files and folders are no images and left out, the first is b.json"


def test_heads(tmp_path: Path) -> None:
    save_turned(tmp_path / "a.png", 6)
    head = head_of(tmp_path / "a.png")
    assert (head.size, head.orientation, head.is_deep, head.pages) == ((20, 30), 6, False, 1)
    (tmp_path / "b.png").write_bytes(b"nothing")
    assert head_of(tmp_path / "b.png").size == (0, 0)


def test_settings_name_what_is_impossible() -> None:
    for path, value in {"depth": 7, "page": 0, "channel": "red", "orientation": "up"}.items():
        with pytest.raises(ConfigError, match=f"data.{path}"):
            override(Experiment(), {f"data.{path}": value})
    experiment = override(Experiment(), {"data.depth": 12, "data.page": "max", "data.channel": 2})
    assert reading_of(experiment.data) == Reading(depth=12, page="max", channel=2)


def test_pages_of_a_set(tmp_path: Path) -> None:
    path = save_set(tmp_path, {"a.tif": (20, 30)}, {})
    (tmp_path / "images").mkdir()
    pages = [Image.fromarray(np.full((20, 30), value, np.uint8)) for value in (10, 90, 200)]
    pages[0].save(tmp_path / "images/a.tif", save_all=True, append_images=pages[1:])
    items = open_items(path, "all", "instance")
    assert "1 images have several pages, and the first is read (data.page): a.tif" in items.decided.said[0]
    for page, value in {"first": 10, 2: 90, "max": 200}.items():
        dataset = open_dataset(path, "all", "instance", reading=Reading(page=page))
        assert int(dataset[0].image.max()) == value
    assert int(read_image(tmp_path / "images/a.tif", Reading(page=3)).min()) == 200
