"""`unimask ablate`: what it says, its exit codes. The rows themselves are not trained here."""

import json
from pathlib import Path

import pytest
from cli.command_line import refused, unimask

from unimask.training.ablation import row as ablation_row
from unimask.training.ablation import run as ablation

ASKED = ("ablate", "--preset", "tiny", "--data", "shapes", "--device", "cpu")


def leave_results(folder: Path) -> int:
    """In the place of a training."""
    measured = {"completed": True, "memory_of_training": 2**20, "peak_memory": 2**29}
    (folder / "measured.json").write_text(json.dumps(measured))
    (folder / "run").mkdir(exist_ok=True)
    record = {"kind": "evaluation", "step": 5, "values": {"mIoU": 0.5}}
    (folder / "run/metrics.jsonl").write_text(json.dumps(record) + "\n")
    return ablation_row.DONE


def test_the_table_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation, "run_in_process", leave_results)
    given = (
        *ASKED,
        "--task",
        "semantic",
        "--budget",
        5,
        "--rows",
        "maskformer,points",
        "--output",
        tmp_path / "a",
    )
    outcome = unimask(*given)
    assert outcome.code == 0, outcome
    assert "| MaskFormer | 0.500 |" in outcome.out
    assert "row 2 of 2: + points instead of full masks" in outcome.err
    rows = unimask(*given, "--json").json()
    assert [row["name"] for row in rows] == ["maskformer", "points"]


def test_a_row_that_fails_makes_the_exit_code_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation, "run_in_process", lambda folder: -9)
    outcome = unimask(*ASKED, "--budget", 5, "--rows", "points", "--output", tmp_path / "a")
    assert outcome.code == 2
    assert "points: the process was killed" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_stop_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(folder: Path) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(ablation, "run_in_process", stop)
    outcome = unimask(*ASKED, "--budget", 5, "--output", tmp_path / "a")
    assert outcome.code == 130
    assert "the same command goes on" in outcome.err


def test_impossible_requests(tmp_path: Path) -> None:
    assert "no such row" in refused(*ASKED, "--budget", 5, "--rows", "attention", "--output", tmp_path / "a")
    assert "must be at least 1" in refused(*ASKED, "--budget", 0, "--output", tmp_path / "a")
    assert not (tmp_path / "a").exists()
