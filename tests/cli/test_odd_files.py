"""Files whose names or kinds are odd, and settings that are words or numbers."""

import json
import os
import sys
from pathlib import Path

import pytest
from cli.command_line import picture, refused, unimask

FORMATS = "overlay,png,json,csv,coco,geojson,imagej-roi,labelme,label-studio,yolo"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_no_text_are_written_in_every_format(model: Path, tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    with open(os.path.join(os.fsencode(tmp_path / "odd"), b"\xff\xfe.png"), "wb") as file:
        picture().save(file, "PNG")
    outcome = unimask(
        *("predict", tmp_path / "odd", "--weights", model, "--output", tmp_path / "out"),
        *("--device", "cpu", "--task", "instance", "--format", FORMATS.replace("png,", "")),
    )
    assert outcome.code == 0, outcome.err
    (coco,) = (json.loads(path.read_text("utf-8")) for path in (tmp_path / "out").glob("*coco*.json"))
    assert coco["images"][0]["file_name"] == "\udcff\udcfe.png"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_in_the_place_of_an_image_does_not_wait_for_ever(model: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    options = ("--weights", model, "--output", tmp_path / "out", "--device", "cpu")
    outcome = unimask("predict", tmp_path / "pipe.png", *options)
    assert outcome.code == 2
    assert "pipe.png: is no regular file (a pipe or a device)" in outcome.err.replace("\n", " ")


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("depth", "99", "data.depth: must be 'auto' or must be at most 16; got 99"),
        ("depth", "deep", "data.depth: must be 'auto' or a whole number; got 'deep'"),
        ("page", "0", "data.page: must be 'first' or 'max' or must be at least 1; got 0"),
    ],
)
def test_settings_of_a_word_or_a_number_say_both(
    model: Path, tmp_path: Path, option: str, value: str, reason: str
) -> None:
    picture().save(tmp_path / "a.png")
    options = ("--weights", model, "--output", tmp_path / "out", "--device", "cpu")
    assert reason in refused("predict", tmp_path / "a.png", f"--{option}", value, *options)
