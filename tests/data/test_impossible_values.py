"""Values that no file can mean end in one sentence: what a campaign of hostile files found."""

import json
from pathlib import Path

import pytest
from PIL import Image

from unimask.config.images import experiment_from_dict
from unimask.config.values import settings_to_dict
from unimask.data.open import open_dataset
from unimask.errors import ConfigError, DataError
from unimask.presets.own_data import tiny

LONG = "1" * 5000


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (31, 23)).save(path)


def test_an_encoding_that_does_not_exist(tmp_path: Path) -> None:
    image(tmp_path / "images/one.png")
    (tmp_path / "annotations.xml").write_text('<?xml version="1.0" encoding="utf-4000"?>\n<annotations/>')
    with pytest.raises(DataError, match=r"annotations.xml: is no valid XML \(unknown encoding: utf-4000\)"):
        open_dataset(tmp_path, "all", "instance")


def test_a_folder_with_a_name_longer_than_names_can_be(tmp_path: Path) -> None:
    image(tmp_path / "images/train/a.png")
    (tmp_path / "labels/train").mkdir(parents=True)
    (tmp_path / "labels/train/a.txt").write_text("0 .1 .1 .5 .1 .5 .6\n")
    (tmp_path / "data.yaml").write_text(f"train: images/{'a' * 300}\nval: images/train\nnames: [cell]\n")
    with pytest.raises(DataError, match="is no folder here"):
        open_dataset(tmp_path, "train", "instance")


@pytest.mark.parametrize("kind", ["instances", "panoptic"])
def test_ids_and_names_of_thousands_of_digits(tmp_path: Path, kind: str) -> None:
    image(tmp_path / "images/1.png")
    annotation = {"id": 1, "image_id": 1, "category_id": LONG, "iscrowd": 0, "bbox": [1, 1, 5, 5]}
    segments = {"file_name": LONG, "segments_info": [{**annotation, "category_id": 1}]}
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": 23, "width": 31}],
        "annotations": [{**annotation, **(segments if kind == "panoptic" else {})}],
        "categories": [{"id": 1, "name": "cell", "isthing": 1}],
    }
    (tmp_path / f"{kind}_train.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path, "train", "panoptic" if kind == "panoptic" else "instance")[0]
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("setting", ["pixel_decoder.layers", "query_decoder.queries", "query_decoder.layers"])
def test_sizes_are_bounded_before_memory_is_asked_for(setting: str) -> None:
    settings = settings_to_dict(tiny())
    part, name = setting.split(".")
    settings["model"][part][name] = 2**63  # type: ignore[index]
    with pytest.raises(ConfigError, match=rf"model\.{setting}"):
        experiment_from_dict(settings)
