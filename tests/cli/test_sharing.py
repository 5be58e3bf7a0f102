"""Several processes on one folder: each picture once, one table, one exit code."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli.command_line import picture, unimask

from unimask.errors import ConfigError
from unimask.inference.run import _Share
from unimask.processes import Team, find_team


def team_environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun says to a process."""
    about = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    own = {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in about.items()}}
    return {**os.environ, **own}


def free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return int(door.getsockname()[1])


def test_two_processes_give_what_one_gives(model: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(5):
        picture(31 + 4 * index, 37, seed=index).save(photos / f"{index}.png")
    (photos / "3b.png").write_bytes(b"no picture")
    words = [
        "predict", photos, "--weights", model, "--batch-size", 1, "--json", "--device", "cpu", "--output"
    ]  # fmt: skip
    code = "from unimask.cli import main; main()"
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, *map(str, words), str(tmp_path / "two")],
            env=team_environment(rank, 2, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    alone = unimask(*words, tmp_path / "one")
    (out, errors), (other_out, other_errors) = (one.communicate(timeout=600) for one in started)
    assert [one.returncode for one in started] == [2, 0], (errors, other_errors)
    assert alone.code == 2
    assert json.loads(out) == alone.json()
    assert [one["name"] for one in json.loads(out)] == ["0", "1", "2", "3", "4"]
    assert other_out == ""
    assert errors.count("3b.png: ") == 1
    assert "1 of 6 images could not be segmented" in errors
    assert "3b.png" not in other_errors  # the first process says it, whoever read the picture
    one, two = ({path.name: path for path in (tmp_path / name).glob("[!.]*")} for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert len(one) == 15
    assert all(one[name].read_bytes() == two[name].read_bytes() for name in one)


def test_what_keeps_all_from_starting_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture().save(tmp_path / "a.png")
    given = ("predict", tmp_path, "--weights", "no_such_model", "--output", tmp_path / "out")
    monkeypatch.setattr(
        "unimask.inference.run.find_team", lambda: Team(rank=0, size=2, local_rank=0, meets=False)
    )
    monkeypatch.setattr("unimask.inference.run.gather", lambda mine: [mine, _Share(error=mine.error)])
    outcome = unimask(*given)
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.count("no_such_model") == 1
    monkeypatch.setattr("unimask.inference.run.gather", lambda mine: [mine, _Share(error="device: has none")])
    assert "device: has none" in unimask(*given).err


def test_what_the_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert find_team() == Team(rank=0, size=1, local_rank=0, meets=False)
    for name, value in team_environment(5, 7, 1234).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_RANK", "1")
    team = find_team()
    assert team == Team(rank=5, size=7, local_rank=1, meets=True)
    assert not team.speaks
    shares = [Team(rank=rank, size=7, local_rank=0, meets=True).share(range(23)) for rank in range(7)]
    assert sorted(index for share in shares for index in share) == list(range(23))
    monkeypatch.delenv("MASTER_ADDR")
    assert find_team().speaks  # it cannot tell the others
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(ConfigError, match="is '5' of '5' processes"):
        find_team()


def test_each_process_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    team = Team(rank=3, size=4, local_rank=3, meets=True)
    assert [team.device(name) for name in ("auto", "cuda", "cuda:0", "cpu")] == [
        "cuda:1", "cuda:1", "cuda:0", "cpu"
    ]  # fmt: skip
    assert Team(rank=0, size=1, local_rank=0, meets=False).device("auto") == "auto"
