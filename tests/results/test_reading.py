"""What was saved is read back as it was."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from results.found_shapes import boxes, segments

from unimask.errors import DataError
from unimask.results.reading import read_result
from unimask.results.result import Result


def panoptic() -> Result:
    """As `segments`, without overlaps: the second segment has no pixel, so ids have a gap."""
    one = segments()
    flat = one.prediction.layers.amax(dim=0, keepdim=True)
    return replace(one, task="panoptic", prediction=replace(one.prediction, layers=flat))


@pytest.mark.parametrize(
    "one",
    [
        segments(),
        segments(empty=True),
        boxes(),
        boxes(count=0),
        panoptic(),
        replace(panoptic(), task="semantic"),
    ],
    ids=["instance", "nothing", "detection", "no boxes", "panoptic", "semantic"],
)
def test_a_result_is_read_back(tmp_path: Path, one: Result) -> None:
    one.save(tmp_path)
    read = read_result(tmp_path / "one.json", one.image)
    assert (read.task, read.name, read.categories) == (one.task, one.name, one.categories)
    assert read.segments == one.segments
    assert np.array_equal(read.boxes, one.boxes)
    assert read.to_json() == one.to_json()
    if one.task != "detection":
        assert np.array_equal(read.masks, one.masks)
        assert np.array_equal(read.id_maps(), one.id_maps())


def saved(folder: Path, one: Result, **changed: object) -> Path:
    one.save(folder, formats=("json",) if one.task == "instance" else ("json", "png"))
    path = folder / "one.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    return path


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"height": 40}, "is the result of an image of 59 x 40 pixels, but the image has 59 x 43"),
        ({"task": "depth"}, r"is no result of unimask \(task: "),
        ({"segments": [{"id": 1}]}, r"is no result of unimask \(segments\.0\.category_id: Field required\)"),
        ({"categories": []}, "it lists no category 7"),
        ({"segments": 2 * [{"id": 1, "category_id": 7, "score": 1}]}, "two segments have one id"),
        (
            {"segments": [{"id": 1, "category_id": 7, "score": 1}]},
            "segment 1 has no mask of the image's size",
        ),
        (
            {
                "segments": [
                    {"id": 1, "category_id": 7, "score": 1, "segmentation": {"size": [43, 59], "counts": "P"}}
                ]
            },
            "segment 1: the compressed run lengths are damaged",
        ),
    ],
)
def test_what_is_no_result_is_named(tmp_path: Path, changed: dict[str, object], said: str) -> None:
    path = saved(tmp_path, segments(), **changed)
    with pytest.raises(DataError, match=rf"one\.json: .*{said}"):
        read_result(path, segments().image)


def test_pixels_that_do_not_belong_to_it_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path, panoptic())
    pixels = tmp_path / "one.segments.png"
    Image.new("RGB", (59, 43), (2, 0, 0)).save(pixels)
    with pytest.raises(DataError, match=r"one\.segments\.png: does not belong to one\.json"):
        read_result(path, panoptic().image)
    pixels.unlink()
    with pytest.raises(DataError, match=r"one\.segments\.png: no such file"):
        read_result(path, panoptic().image)
    Image.new("L", (59, 43)).save(tmp_path / "one.segments.tif")
    with pytest.raises(DataError, match="of an image larger than memory, which is not read back"):
        read_result(path, panoptic().image)


def test_the_image_may_be_a_file(tmp_path: Path) -> None:
    one = segments()
    one.save(tmp_path)
    Image.fromarray(one.image.permute(1, 2, 0).numpy()).save(tmp_path / "one.png")
    assert torch.equal(read_result(tmp_path / "one.json", tmp_path / "one.png").image, one.image)
    (tmp_path / "one.json").write_text("[")
    with pytest.raises(DataError, match=r"one\.json: is not valid JSON"):
        read_result(tmp_path / "one.json", one.image)
