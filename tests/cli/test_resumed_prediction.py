"""Predictions that go on, and files that are nobody's to replace."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from cli.command_line import picture, refused, unimask
from safetensors.torch import load_file, save_file

from unimask.checkpoints.images import load_model
from unimask.inference import resuming
from unimask.inference.resuming import left_of, made_with, settings_digest, shared_again
from unimask.inference.segmenter import Segmenter
from unimask.processes import Team
from unimask.results.found import json_writer, save_result
from unimask.results.ledger import ledger_of


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for number in range(4):
        picture(seed=number).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path / "photos"


def predicted(*given: object) -> tuple[int, Any]:
    """How many images the model saw, and the outcome of the command."""
    seen, find = [], Segmenter.find

    def watched(self: Segmenter, images: Any, *more: Any, **options: Any) -> Any:
        return find(self, (seen.append(1) or one for one in images), *more, **options)

    with mock.patch.object(Segmenter, "find", watched):
        outcome = unimask(*given)
    return len(seen), outcome


def test_what_is_complete_is_left_out(model: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ("predict", photos, "--weights", model, "--output", out, "--task", "instance", "--device", "cpu")
    assert predicted(*given)[0] == 4
    before = {path: path.stat().st_mtime_ns for path in out.glob("[!.]*")}
    (out / "1.overlay.png").unlink()
    with (out / "2.json").open("a") as file:
        file.write(" ")
    message = refused(*given, "--resume")
    assert f"{out / '2.json'}: is there and was not written by unimask, or was changed since" in message
    (out / "2.json").unlink()
    picture(seed=7).save(photos / "3.png")  # another image of the same name
    seen, outcome = predicted(*given, "--resume")
    assert (seen, outcome.code) == (3, 0)
    assert "1 of 4 images had complete results before" in outcome.err
    assert (out / "0.json").stat().st_mtime_ns == before[out / "0.json"]
    assert predicted(*given, "--resume")[0] == 0
    assert predicted(*given, "--resume", "--threshold", "0.3")[0] == 4  # these would be other results
    assert predicted(*given, "--threshold", "0.3")[0] == 4  # results are replaced, as they always were


def test_other_weights_of_the_same_settings_are_another_model(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    mine = Path(shutil.copytree(model, tmp_path / "mine"))
    given = ("predict", photos, "--weights", mine, "--output", tmp_path / "out", "--task", "instance")
    assert predicted(*given)[0] == 4
    assert predicted(*given, "--resume")[0] == 0
    tensors = load_file(mine / "model.safetensors")
    next(one for one in tensors.values() if one.is_floating_point()).view(-1)[0] += 1.0  # one number
    save_file(tensors, mine / "model.safetensors")
    assert predicted(*given, "--resume")[0] == 4


def test_a_model_in_memory_is_told_by_its_numbers(model: Path) -> None:
    network, about = load_model(model)
    first = settings_digest(Segmenter(network, about), "instance")
    assert settings_digest(Segmenter(network, about), "instance") == first
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] += 1.0
    assert settings_digest(Segmenter(network, about), "instance") != first


def test_names_are_given_before_the_complete_ones_are_left_out(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    given = ("predict", photos, "--weights", model, "--output", tmp_path / "out", "--task", "instance")
    picture(seed=8).convert("L").save(photos / "0.jpg")
    assert predicted(*given)[0] == 5
    (tmp_path / "out" / "0_jpg.json").unlink()
    assert predicted(*given, "--resume")[0] == 1
    assert {path.name for path in (tmp_path / "out").glob("*.json")} == {
        *("0_jpg.json", "0_png.json", "1.json", "2.json", "3.json")
    }


def test_a_file_for_all_images_is_joined_once(model: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ("predict", photos, "--weights", model, "--output", out, "--task", "instance", "--format", "csv")
    (photos / "1.png").write_bytes(b"broken")
    seen, outcome = predicted(*given)
    assert (seen, outcome.code) == (3, 2)
    picture(seed=1).save(photos / "1.png")
    assert predicted(*given, "--resume")[0] == 1
    whole = (out / "images.csv").read_text()
    assert {line.partition(",")[0] for line in whole.splitlines()[1:]} == {"0", "1", "2", "3"}
    seen, outcome = predicted(*given, "--resume")
    assert (seen, outcome.code, (out / "images.csv").read_text()) == (0, 0, whole)


def test_labels_beside_the_images_are_not_replaced(model: Path, photos: Path) -> None:
    labels = photos / "2.json"
    labels.write_text('{"version": "5", "shapes": [], "imagePath": "2.png"}')
    before = labels.read_bytes()
    given = ("predict", photos, "--weights", model, "--output", photos, "--device", "cpu")
    seen, outcome = predicted(*given)
    assert (seen, outcome.code) == (0, 2)  # before the work, not after it
    assert f"{labels}: is there and was not written by unimask" in outcome.err
    assert labels.read_bytes() == before
    assert not list(photos.glob("*.overlay.png"))
    assert predicted(*given, "--overwrite")[0] == 4
    assert json.loads(labels.read_text())["task"] == "panoptic"
    seen, outcome = predicted(*given)
    assert (seen, outcome.code) == (4, 0)  # now all of them are results


def test_processes_share_what_is_left(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = [(photos / f"{number}.png", str(number)) for number in range(4)]
    for file, name in named[::2]:
        save_result(tmp_path, name, {f"{name}.json": json_writer({})}, made_with=made_with("s", file))
    ledger = ledger_of(tmp_path)
    teams = [Team(rank=rank, size=2, local_rank=0, meets=True) for rank in range(2)]
    left = [left_of(team.share(named), ledger, "s") for team in teams]
    assert [[name for _, name in one] for one in left] == [[], ["1", "3"]]  # all work is left to one of them
    monkeypatch.setattr(resuming, "gather", lambda mine: left)
    assert [shared_again(team, named, mine) for team, mine in zip(teams, left)] == [[named[1]], [named[3]]]
    apart = Team(rank=1, size=2, local_rank=0, meets=False)
    assert shared_again(apart, named, left[1]) == left[1]
    assert made_with("s", photos / "gone.png") == ""
    assert not ledger.is_complete("")
