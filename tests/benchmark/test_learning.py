"""`benchmarks/learning.py`: both sides start alike and learn from the same batches; what the report says."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from benchmarks import learning
from benchmarks.learning_report import Run, distance, smoothed, table


def run(side: str, seed: int, losses: tuple[float, ...]) -> Run:
    measured = ((1, 0.1), (2, 0.2 + 0.1 * seed))
    return Run(side=side, seed=seed, losses=losses, measured=measured, seconds_per_step=0.5)


def test_sides_start_alike_and_learn_alike(tmp_path: Path) -> None:
    words = "--data shapes:64x64 --task panoptic --steps 2 --seeds 1 --images 1 --queries 7 --points 400"
    words += " --threads 1 --output"
    assert learning.main([*words.split(), str(tmp_path)]) == 0
    content = json.loads((tmp_path / "panoptic.json").read_text())
    ours, theirs = content["runs"]
    assert (ours["side"], theirs["side"]) == ("unimask", "transformers")
    assert len(ours["losses"]) == 2
    # points at which masks are compared are random; without a common start losses differ by several percent
    assert ours["losses"][0] == pytest.approx(theirs["losses"][0], rel=0.01)
    assert ours["losses"][1] == pytest.approx(theirs["losses"][1], rel=0.03)
    assert ours["losses"] != theirs["losses"]
    ET.parse(tmp_path / "panoptic.svg")


def test_distances_between_sides_and_between_seeds() -> None:
    runs = [
        run("a", 0, (10.0, 8.0)),
        run("b", 0, (10.0, 8.0)),
        run("a", 1, (5.0, 8.0)),
        run("b", 1, (5.0, 6.0)),
    ]
    first = distance(runs, 0, 1)
    assert first.sides == 0.0
    assert first.seeds == pytest.approx(5 / 7.5)
    assert distance(runs, 1, 2).sides == pytest.approx((0 + 2 / 7) / 2)
    assert distance(runs[:2], 0, 2).seeds is None


def test_the_table_has_means_and_spreads() -> None:
    text = table([run("a", 0, (4.0, 2.0)), run("b", 0, (4.0, 2.0)), run("a", 1, (4.0, 4.0))], "PQ")
    assert "| side | loss of the last 2 steps | PQ after 1 | PQ after 2 | processor seconds a step |" in text
    assert "| a | 3.500 ± 0.707 | 0.100 ± 0.000 | 0.250 ± 0.071 | 0.500 ± 0.000 |" in text
    assert "| b | 3.000 | 0.100 | 0.200 | 0.500 |" in text
    assert smoothed([1.0] * 20 + [3.0] * 10) == [(10.0, 1.0), (25.0, 3.0)]
