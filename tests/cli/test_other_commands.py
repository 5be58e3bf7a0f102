"""Help, presets, convert, and weights that do not fit."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer
from cli.command_line import picture, refused, unimask
from safetensors.torch import load_file, save_file

import unimask as package
from unimask.checkpoints.images import CONFIG_NAME, WEIGHTS_NAME
from unimask.cli import app
from unimask.cli.options.parsing import parse_settings
from unimask.config.images import experiment_to_dict
from unimask.config.overrides import override
from unimask.presets import PRESETS, TRANSLATION_PRESETS

COMMANDS = tuple(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_with_an_example(command: str) -> None:
    for word in ("--help", "-h"):
        outcome = unimask(command, word)
        assert (outcome.code, outcome.err) == (0, "")
        examples = outcome.out.split("Examples:")[1].split("╭")[0].split("\n")
        assert any(f"unimask {command} " in line for line in examples)
        for line in filter(str.strip, examples):  # whole in a terminal of 80 columns, to be copied
            assert line.startswith("   ")
            assert len(line.rstrip()) < 80
        for raw in ("list[", "<str", "<bool", "<Path", "Optional", "StrEnum", "[default: /"):
            assert raw not in outcome.out


def test_the_first_help() -> None:
    outcome = unimask("--help")
    assert outcome.code == 0
    assert all(f" {command} " in outcome.out for command in COMMANDS)
    assert "unimask predict photo.jpg" in outcome.out
    groups = ("Options", "Use a model", "Train a model", "Exchange weights", "Study models")
    assert [outcome.out.count(f"─ {group} ─") for group in groups] == [1] * len(groups)
    assert unimask("--version").out == f"unimask {package.__version__}\n"
    assert "is it predict?" in unimask("prdict").err


def test_presets_are_listed_and_shown() -> None:
    table, names = unimask("presets"), unimask("presets", "--json").json()
    assert list(names) == [*PRESETS, *TRANSLATION_PRESETS]
    assert all(name in table.out for name in names)
    assert unimask("presets", "tiny", "--json").json() == experiment_to_dict(PRESETS["tiny"]())
    lines = unimask("presets", "tiny").out.splitlines()
    assert (
        override(PRESETS["small"](), parse_settings(lines)) == PRESETS["tiny"]()
    )  # lines are --set arguments
    assert "tinny: no such preset; is it tiny?" in refused("presets", "tinny")


def test_convert_from_ours_to_ours(model: Path, tmp_path: Path) -> None:
    outcome = unimask("convert", model, tmp_path / "copy", "--json")
    assert outcome.code == 0, outcome.err
    found = outcome.json()
    assert (found["target"], found["categories"]) == (str(tmp_path / "copy"), 3)
    assert (tmp_path / "copy" / WEIGHTS_NAME).read_bytes() == (model / WEIGHTS_NAME).read_bytes()
    assert "categories: 3" in unimask("convert", model, tmp_path / "copy").out


def test_conversions_that_cannot_work(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("a")
    (tmp_path / "broken.pth").write_bytes(b"broken")
    torch.save({"model": {"conv.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    target = tmp_path / "out"
    for source, message in {
        tmp_path / "nowhere": "nowhere: does not exist; give a file of the original release",
        tmp_path / "empty": "empty: holds no config.json",
        tmp_path / "file": "file: is no file of weights",
        tmp_path / "broken.pth": "broken.pth: cannot be read, it may be cut off",
        tmp_path / "other.pth": "other.pth: no name in it is one of a Mask2Former",
    }.items():
        assert message in refused("convert", source, target)
    assert "must be a file that ends with .pth" in refused("convert", model, target, "--to", "original")
    assert "must be a folder" in refused("convert", model, tmp_path / "a.pth")
    assert "no counterpart" in refused("convert", model, target, "--to", "transformers")
    assert "file" in refused("convert", model, tmp_path / "file" / "below")
    assert not target.exists()


# model folders that are not right


def edit_config(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        change(config)
        (folder / CONFIG_NAME).write_text(json.dumps(config), encoding="utf-8")

    return apply


def edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS_NAME)
        change(tensors)
        save_file(tensors, folder / WEIGHTS_NAME)

    return apply


def cut(folder: Path) -> None:
    os.truncate(folder / WEIGHTS_NAME, 1000)


HEAD = "query_decoder.heads.classes.weight"
BROKEN: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "cut off": (cut, WEIGHTS_NAME, "cannot be read, it may be cut off"),
    "no weights": (lambda folder: (folder / WEIGHTS_NAME).unlink(), WEIGHTS_NAME, "there is no such file"),
    "no config": (lambda folder: (folder / CONFIG_NAME).unlink(), CONFIG_NAME, "there is no such file"),
    "no JSON": (lambda folder: (folder / CONFIG_NAME).write_text("{"), CONFIG_NAME, "JSON"),
    "unknown key": (
        edit_config(lambda c: c["experiment"]["model"].update(eyes=2)),
        CONFIG_NAME,
        "model.eyes: no such setting",
    ),
    "of transformers": (
        edit_config(lambda c: (c.clear(), c.update(model_type="detr"))),
        CONFIG_NAME,
        "model_type: is of a model of transformers; `unimask convert FOLDER NEW_FOLDER` makes a model",
    ),
    "wrong type": (
        edit_config(lambda c: c["experiment"]["data"].update(divisor="a")),
        CONFIG_NAME,
        "data.divisor",
    ),
    "impossible": (
        edit_config(lambda c: c["experiment"]["data"].update(divisor=0)),
        CONFIG_NAME,
        "data.divisor: must be at least 1",
    ),
    "fewer categories": (
        edit_config(lambda c: c["categories"].pop()),
        WEIGHTS_NAME,
        "the weights are for 3 classes, config.json lists 2 categories",
    ),
    "missing tensor": (edit_weights(lambda t: t.pop(HEAD)), WEIGHTS_NAME, f"1 missing: {HEAD}"),
    "foreign tensor": (
        edit_weights(lambda t: t.update(eyes=torch.zeros(1))),
        WEIGHTS_NAME,
        "1 unexpected: eyes",
    ),
    "other shape": (
        edit_weights(lambda t: t.update({"query_decoder.query_features.weight": torch.zeros(2, 3)})),
        WEIGHTS_NAME,
        "1 mismatched: query_decoder.query_features.weight (2, 3) instead of (13, 32)",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_models_that_are_not_right(model: Path, tmp_path: Path, case: str) -> None:
    change, file, message = BROKEN[case]
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    change(folder)
    picture().save(tmp_path / "a.png")
    shown = refused("predict", tmp_path / "a.png", "--weights", folder, "--output", tmp_path / "out")
    assert f"{folder / file}: " in shown
    assert message in shown
    assert not (tmp_path / "out").exists()


def test_the_shipped_model_is_the_default(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    outcome = unimask("predict", tmp_path / "a.png", "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert len([path for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")]) == 3
