"""Trainings in processes of their own: killed at any moment, and several at once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training import small_runs
from training.small_runs import SMOOTH, run

PATIENCE = 300.0  # seconds, on a very busy machine; some 20 are normal


def request(
    output: Path,
    changes: dict[str, object],
    *,
    devices: int = 1,
    most: int = 6,
    broken: tuple[int, ...] = (),
    resume: bool = False,
) -> str:
    settings = {"output": str(output), "changes": changes, "devices": devices, "most": most}
    return json.dumps({**settings, "broken": broken, "resume": resume})


def start(*requests: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    command = [sys.executable, small_runs.__file__, *requests]
    return subprocess.Popen(command, env=environment, start_new_session=True)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def finish(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def difference(one: Path, other: Path, name: str = "model") -> float:
    pair = [load_file(folder / name / "model.safetensors") for folder in (one, other)]
    return max(float((pair[0][key].double() - pair[1][key].double()).abs().max()) for key in pair[0])


def python_names(changes: dict[str, object]) -> dict[str, object]:
    return {name.replace(".", "__"): value for name, value in changes.items()}


def signal_at(process: subprocess.Popen[bytes], run_folder: Path, step: int, number: int) -> None:
    """Sends the signal to the process and its workers once it has a checkpoint of this step."""
    deadline = time.monotonic() + PATIENCE
    while not (run_folder / "checkpoints" / f"step_{step}").exists():
        assert process.poll() is None, f"ended before step {step}"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, number)


def test_a_stopped_and_then_killed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    changes: dict[str, object] = {"training.steps": 47, "training.ema_decay": 0.9, "training.workers": 1}
    folder = tmp_path / "killed"
    process = start(request(folder, changes))
    signal_at(process, folder, 6, signal.SIGTERM)
    assert finish(process) == 0
    stopped_at = max(int(item.name.removeprefix("step_")) for item in (folder / "checkpoints").iterdir())
    assert 6 <= stopped_at < 47
    process = start(request(folder, changes, resume=True))
    signal_at(process, folder, 3 * (stopped_at // 3 + 2), signal.SIGKILL)
    process.wait()
    assert not (folder / "results.json").exists()
    run(folder, resume=True, **python_names(changes))
    run(tmp_path / "unbroken", **python_names(changes))
    assert difference(folder, tmp_path / "unbroken") == 0


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this build of torch knows one process only")
def test_two_processes_equal_one(tmp_path: Path) -> None:
    """And where one of them has a loss that is not finite, both skip the step, and the first one tells."""
    changes = {**SMOOTH, "training.steps": 4, "training.evaluate_every": 4}
    together = start(
        request(tmp_path / "two", changes, devices=2, most=0),
        request(tmp_path / "broken", {"training.steps": 3}, devices=2, broken=(1,)),
    )
    assert finish(together) == 0
    run(tmp_path / "one", most=0, **python_names(changes))
    run(tmp_path / "initial", most=0, **python_names(changes | {"training.learning_rate": 1e-12}))
    moved = difference(tmp_path / "one", tmp_path / "initial")
    assert moved > 1e-3
    assert difference(tmp_path / "one", tmp_path / "two") < 0.01 * moved
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["final"] == pytest.approx(one["final"], abs=1e-3)
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert [(line["kind"], line["step"]) for line in two] == [(line["kind"], line["step"]) for line in one]
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-4)
    (skipped,) = (line for line in lines(tmp_path / "broken") if line["kind"] == "skipped")
    assert skipped["step"] == 2
    (problem,) = skipped["problems"]
    assert problem.startswith("mask of shapes_0_")
    assert problem.count("shapes_0_") == 2  # of the second process only
