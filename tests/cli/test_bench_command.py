"""`unimask bench`: the table, the JSON, and what it refuses."""

from pathlib import Path

import pytest
from cli.command_line import refused, unimask

from unimask.benchmark import measure
from unimask.benchmark.memory import Peak
from unimask.benchmark.sides import STAGES

SMALL = ("--size", "64x96", "--device", "cpu", "--threads", 1, "--rounds", 2)


@pytest.fixture(autouse=True)
def without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    peak = Peak(before=0.0, highest=12.5 * 2**20)
    monkeypatch.setattr(measure, "peak_in_fresh_process", lambda *_: peak)


def test_the_shipped_model() -> None:
    outcome = unimask("bench", "--weights", "nuclei", *SMALL)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("nuclei, panoptic, 64x96, cpu, 1 threads")
    for stage in (*STAGES, "total"):
        assert f"{stage} ms" in outcome.out
    assert "12.5" in outcome.out
    assert "forward ratio" not in outcome.out  # nothing to compare with


def test_json_and_two_precisions(model: Path) -> None:
    outcome = unimask("bench", "--weights", model, *SMALL, "--precision", "bf16-mixed", "--json")
    assert outcome.code == 0, outcome.err
    found = outcome.json()
    assert list(found["sides"]) == ["unimask", "unimask bf16-mixed"]
    assert found["versions"]["torch"]
    table = unimask(
        "bench", "--weights", model, *SMALL, "--precision", "bf16-mixed", "--task", "semantic"
    ).out
    assert "forward ratio" in table
    assert "unimask bf16-mixed" in table


def test_what_is_refused(model: Path) -> None:
    assert "size: expected HEIGHTxWIDTH" in refused("bench", "--weights", model, "--size", "640")
    assert "multiples of 32" in refused("bench", "--weights", model, "--size", "64x65")
    assert "no model of this name" in refused("bench", "--weights", "nothing here", *SMALL)
    message = refused("bench", "--weights", model, *SMALL, "--compare", "transformers")
    assert "cannot be compared with transformers" in message
