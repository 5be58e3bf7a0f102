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
    output: Path, changes: dict[str, object], *, devices: int = 1, most: int = 6, broken: tuple[int, ...] = ()
) -> str:
    return json.dumps(
        {"output": str(output), "changes": changes, "devices": devices, "most": most, "broken": broken}
    )


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


def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    changes: dict[str, object] = {"training.steps": 23, "training.ema_decay": 0.9, "training.workers": 1}
    process = start(request(tmp_path / "killed", changes))
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "killed" / "checkpoints" / "step_6").exists():
        assert process.poll() is None, "ended before its sixth step"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "results.json").exists()
    run(tmp_path / "killed", resume=True, **python_names(changes))
    run(tmp_path / "unbroken", **python_names(changes))
    assert difference(tmp_path / "killed", tmp_path / "unbroken") == 0


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
