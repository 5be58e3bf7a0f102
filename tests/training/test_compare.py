"""Several runs beside each other, from their folders alone."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from cli.command_line import refused, unimask

from unimask.cli import output
from unimask.errors import DataError
from unimask.training.compare import compare, comparison_figure
from unimask.training.run_folder import RunFolder


def write_run(folder: Path, *, rate: float, best: float | None, task: str = "semantic") -> Path:
    run = RunFolder(folder)
    settings: dict[str, object] = {
        "training": {"learning_rate": rate, "steps": 20},
        "data": {"crop": [64, 64]},
    }
    about = {
        "task": task,
        "data": "shapes",
        "images": 7,
        "categories": [{"name": "sky"}],
        "experiment": settings,
    }
    run.begin(about, resume=False)
    for step in (10, 20):
        run.append_metrics(
            {"kind": "step", "step": step, "loss": 30 / step, "seconds": step, "images_per_second": 2.5}
        )
    if best is not None:
        for step, value in ((10, best), (20, best / 2)):
            values = {"mIoU": value, "pixel_accuracy": 0.9}
            run.append_metrics({"kind": "evaluation", "step": step, "seconds": 1.0, "values": values})
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder of two runs, and other things."""
    write_run(tmp_path / "runs" / "slow", rate=1e-4, best=0.5)
    write_run(tmp_path / "runs" / "fast", rate=1e-3, best=None)
    (tmp_path / "runs" / "notes.txt").write_text("a")
    return tmp_path / "runs"


def test_only_what_differs_is_listed(runs: Path) -> None:
    found = compare(sorted(runs.iterdir()))
    assert [run.name for run in found.runs] == ["fast", "slow"]
    assert found.skipped == (str(runs / "notes.txt"),)
    assert found.settings == {"training.learning_rate": (1e-3, 1e-4)}
    assert found.data == {}
    results = {
        "mIoU (best evaluation)": (None, 0.5),
        "pixel_accuracy (best evaluation)": (None, 0.9),
        "step (best evaluation)": (None, 10),
        "steps done": (20, 20),
        "last loss": (1.5, 1.5),
        "images per second": (2.5, 2.5),
        "seconds": (20, 20),
    }
    assert found.results == results
    assert found.to_json()["settings"] == {"training.learning_rate": {"fast": 1e-3, "slow": 1e-4}}
    figure = comparison_figure(found.runs)
    assert figure.width == 1200  # mIoU and the loss


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / name / "run", rate=1e-3, best=0.5, task=name)
        for name in ("semantic", "instance")
    ]
    found = compare([*folders, folders[0]])
    assert [run.name for run in found.runs] == ["semantic/run", "instance/run"]
    assert found.data == {"task": ("semantic", "instance")}
    best = [name.endswith("(best evaluation)") for name in found.results]
    assert sum(best) > 4
    assert best == sorted(best, reverse=True)  # together, though tasks have other measures


def test_a_folder_of_runs_stands_for_them(runs: Path) -> None:
    found = compare([runs, runs / "fast"])
    assert [run.name for run in found.runs] == ["fast", "slow"]
    assert found.skipped == ()


def test_long_values_keep_their_ends(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = runs / "slow" / "experiment.json"
    path.write_text(path.read_text().replace('"shapes"', f'"/data/{"long/" * 20}end"'))
    monkeypatch.setattr(output.screen, "width", 60)
    assert "…" not in unimask("compare", runs, "--output", runs / "curves.svg").out


def test_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run is there"):
        compare([tmp_path])
    (tmp_path / "experiment.json").write_text("{")
    with pytest.raises(DataError, match=r"experiment\.json: is not valid JSON"):
        compare([tmp_path])


def test_the_command(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = unimask("compare", *sorted(runs.iterdir()))
    assert outcome.code == 0, outcome.err
    words = outcome.out.replace("│", " ").split()
    assert {"fast", "slow", "training.learning_rate", "0.001", "0.0001", "0.5000"} <= set(words)
    assert "data: no difference" in outcome.out
    assert "notes.txt: no run, left out" in outcome.err
    assert (tmp_path / "compare.png").stat().st_size > 1000
    outcome = unimask("compare", runs / "fast", runs / "slow", "--json", "--output", "curves.svg")
    assert json.loads(outcome.out)["runs"] == {"fast": str(runs / "fast"), "slow": str(runs / "slow")}
    ElementTree.parse(tmp_path / "curves.svg")
    assert "no run is there" in refused("compare", tmp_path)
    assert "is a folder; name a file" in refused("compare", runs / "fast", "--output", runs)
