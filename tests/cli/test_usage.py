"""What people type by the habits of other libraries, or wrongly, is answered with what to type here."""

import json
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest
import typer
from cli.command_line import refused, unimask

import unimask as package
from unimask.cli import COMMANDS as GROUPS
from unimask.cli import app
from unimask.config.tasks import ALL_TASKS
from unimask.errors import nearest
from unimask.inference.segmenter import AUTOCAST
from unimask.results.writing import FORMATS

SYNONYMS = Path(package.__file__).with_name("synonyms.json")
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
TYPED = {
    "predict a.png --save-dir x": "--save-dir: no such option of `unimask predict`; is it --output?",
    "predict a.png -o x": "-o: no such option of `unimask predict`; is it --output?",
    "predict a.png --model x": "is it --weights?",
    "predict a.png --conf 0.3": "is it --threshold?",
    "predict a.png --treshold 0.3": "is it --threshold?",
    "predict a.png --imgsz 640": "`unimask predict`; it is called as in `unimask predict photo.jpg`;",
    "predict --source a.png": "--source: no such option of `unimask predict`; it is called as in `",
    "predict a.png --task segment": "--task: 'segment' does not exist; is it instance? there are: panoptic,",
    "predict a.png --task panoptc": "--task: 'panoptc' does not exist; is it panoptic?",
    "predict a.png --precision fp16": "is it 16-mixed?",
    "predict a.png --engine rya": "is it ray? there are: local, ray",
    "predict a.png --every x": "--every: input should be a valid integer",
    "predict a.png --batch-size 0": "--batch-size: must be at least 1; `unimask predict --help` says more",
    "predict a.png --tile -1": "--tile: must be at least 0;",
    "serve --port 70000": "--port: must be from 0 to 65535;",
    "predict a.png --weights": "'--weights' requires an argument",
    "predict": "IMAGE_OR_FOLDER: is missing; it is called as in `unimask predict photo.jpg`;",
    "train data.yaml": "--data: is missing; it is called as in `unimask train --data my_data`;",
    "train data.yaml --data x": "unexpected extra argument(s) (data.yaml); it is called as in",
    "train --data x --model y": "is it --initial?",
    "train --data x --batch-size 3": "is it --set training.batch_size=NUMBER?",
    "export --weights nuclei --output a --format onx": "is it onnx? there are: onnx, onnx-int8, pt2",
    "segment a.png": "segment: no such command; is it predict? `unimask --help` lists them",
    "prdict a.png": "prdict: no such command; is it predict?",
    "xyz": "xyz: no such command; `unimask --help` lists them",
    "--versio": "is it --version?",
}


@pytest.mark.parametrize("typed", TYPED)
def test_the_way_out_is_named(typed: str) -> None:
    assert TYPED[typed] in refused(*typed.split())


def test_every_whole_number_has_its_range() -> None:
    numbers = 0
    for command in (one for group in GROUPS.values() for one in group):
        for name, given in get_type_hints(command, include_extras=True).items():
            if get_origin(given) is Annotated and get_args(given)[0] in (int, int | None):
                numbers += 1
                assert get_args(given)[1].min is not None, f"{command.__name__}: {name}"
    assert numbers > 15


def test_nothing_shows_the_help() -> None:
    outcome = unimask()
    assert (outcome.code, outcome.err) == (2, "")
    assert "unimask predict photo.jpg" in outcome.out


def test_synonyms_are_of_names_that_exist() -> None:
    known = {option for command in COMMANDS.values() for one in command.params for option in one.opts}
    known |= {*COMMANDS, *ALL_TASKS, *FORMATS, *AUTOCAST, "cuda"}
    for wrong, meant in json.loads(SYNONYMS.read_text(encoding="utf-8")).items():
        assert wrong == wrong.casefold()
        for word in meant:
            assert word.partition(" ")[0] in known, wrong


def test_a_synonym_goes_before_what_looks_alike() -> None:
    assert nearest("segment", ALL_TASKS) == "is it instance? "
    assert nearest("segment", ["predict", "segments"]) == "is it predict? "
    assert nearest("Instanc", ALL_TASKS) == "is it instance? "
    assert nearest("--imgsz", ["--weights", "--tile"]) == ""
