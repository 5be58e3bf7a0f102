import json
from pathlib import Path

import pytest
import torch
from torch import distributed

from unimask.config.images import experiment_from_dict, experiment_to_dict
from unimask.errors import ConfigError, DataError
from unimask.training.engine import lost_processes_said
from unimask.training.record import RunRecord
from unimask.training.result import LostProcessError
from unimask.training.run_folder import RunFolder, differences


def description(**settings: object) -> dict[str, object]:
    experiment = {"training": {"steps": 10, "seed": 0, **settings}}
    return {"task": "panoptic", "categories": [{"name": "a"}], "images": 7, "experiment": experiment}


def test_a_folder_in_use_is_not_overwritten(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").begin(description(), resume=False)
    with pytest.raises(DataError, match=r"run: is not empty.*--resume"):
        RunFolder(tmp_path / "run").begin(description(), resume=False)
    RunFolder(tmp_path / "run").begin(description(), resume=True)


def test_only_bookkeeping_may_differ_on_resume(tmp_path: Path) -> None:
    RunFolder(tmp_path).begin(description(), resume=False)
    RunFolder(tmp_path).begin(description(steps=20), resume=True)
    assert json.loads((tmp_path / "experiment.json").read_text())["experiment"]["training"]["steps"] == 20
    with pytest.raises(ConfigError, match=r"training.seed: 0 -> 3") as caught:
        RunFolder(tmp_path).begin(description(steps=30, seed=3), resume=True)
    assert "training.steps" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"images: 7 -> 8"):
        RunFolder(tmp_path).begin(description() | {"images": 8}, resume=True)
    with pytest.raises(ConfigError, match=r"task: 'panoptic' -> 'semantic'"):
        RunFolder(tmp_path).begin(description() | {"task": "semantic"}, resume=True)


def test_settings_that_came_later_have_their_defaults(tmp_path: Path) -> None:
    RunFolder(tmp_path).begin(description(), resume=False)
    path = tmp_path / "experiment.json"
    written = json.loads(path.read_text())
    current = experiment_to_dict(experiment_from_dict(written["experiment"]))
    RunFolder(tmp_path).begin(description() | {"experiment": current}, resume=True)
    path.write_text(json.dumps(written))  # as before there were the other settings
    current["model"]["kind"] = "detr"
    with pytest.raises(ConfigError, match="model"):
        RunFolder(tmp_path).begin(description() | {"experiment": current}, resume=True)


def test_differences_name_new_and_lost_settings() -> None:
    old, new = {"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "d": (3, 4)}}
    assert differences(old, new) == ["a.c: 2 -> None", "a.d: None -> (3, 4)"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "thesis.tex").write_text("a")
    with pytest.raises(DataError, match="another output folder"):
        RunFolder(tmp_path).begin(description(), resume=resume)
    assert [item.name for item in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a")
    with pytest.raises(DataError, match="is a file"):
        RunFolder(tmp_path / "run").begin(description(), resume=False)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a")
    with pytest.raises(DataError, match="cannot be made"):
        RunFolder(tmp_path / "file" / "run").begin(description(), resume=False)


def test_a_broken_description_is_named(tmp_path: Path) -> None:
    RunFolder(tmp_path).begin(description(), resume=False)
    (tmp_path / "experiment.json").write_text('{"task": ')
    with pytest.raises(DataError, match=r"experiment\.json: is not valid JSON"):
        RunFolder(tmp_path).begin(description(), resume=True)


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.begin(description(), resume=False)
    assert folder.latest_checkpoint() == {}
    for step in (5, 10, 15):
        folder.save_checkpoint(step, {"step": step, "model": {"a": torch.full((3,), step)}})
    assert sorted(item.name for item in (tmp_path / "checkpoints").iterdir()) == ["step_10", "step_15"]
    assert folder.latest_checkpoint()["step"] == 15


def test_a_half_written_or_broken_checkpoint_does_not_count(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.begin(description(), resume=False)
    for step in (5, 10):
        folder.save_checkpoint(step, {"step": step})
    temporary = tmp_path / "checkpoints" / ".step_15.0123abcd.part"
    temporary.mkdir()
    (temporary / "state.pt").write_bytes(b"half")
    broken = tmp_path / "checkpoints" / "step_10" / "state.pt"
    broken.write_bytes(broken.read_bytes()[:100])
    said: list[str] = []
    assert folder.latest_checkpoint(said.append)["step"] == 5
    assert len(said) == 1
    assert "the one before it is taken" in said[0]
    assert "step_10" in said[0]
    torch.save([1, 2], broken)
    assert folder.latest_checkpoint()["step"] == 5
    folder.begin(description(), resume=True)
    assert not temporary.exists()
    folder.save_checkpoint(10, {"step": 10, "again": True})
    assert folder.latest_checkpoint()["again"]


def test_who_loses_a_process_is_told_the_newest_checkpoint(tmp_path: Path) -> None:
    """Also where the process was lost while the others still wrote it."""
    folder = RunFolder(tmp_path)
    folder.begin(description(), resume=False)
    for step in (0, 4, 12):
        if step:
            folder.save_checkpoint(step, {"step": step})
        with (
            pytest.raises(LostProcessError, match=f"--resume goes on after step {step}$"),
            lost_processes_said(folder.path, folder.newest_step),
        ):
            raise distributed.DistNetworkError("Connection closed by peer [127.0.0.1]:4522")
    with pytest.raises(RuntimeError, match="another fault"), lost_processes_said(tmp_path, lambda: 0):
        raise RuntimeError("another fault")


def test_broken_checkpoints_only(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.begin(description(), resume=False)
    folder.save_checkpoint(5, {"step": 5})
    (tmp_path / "checkpoints" / "step_5" / "state.pt").write_bytes(b"")
    with pytest.raises(DataError, match="no checkpoint can be read"):
        folder.latest_checkpoint()


def test_the_log_is_rewound_to_the_step_of_the_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.begin(description(), resume=False)
    record = RunRecord(folder, 0, "pq", print)
    for step in (1, 2, 3):
        record.log_step(step, {"loss": 1.0 / step})
        record.log_evaluation(step, {"pq": (0.5, 0.9, 0.7)[step - 1], "sq": float("nan")}, 0.1)
    record.log_skip(3, ("mask of a.png",))
    record.close()
    assert (record.best_step(), record.best()["pq"]) == (2, 0.9)
    assert record.last()["pq"] == 0.7
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "step", "st')
    lines = folder.read_metrics()
    assert [line["kind"] for line in lines] == ["step", "evaluation"] * 3 + ["skipped"]
    assert lines[1]["values"] == {"pq": 0.5, "sq": None}
    again = RunRecord(folder, 1, "pq", print)
    again.close()
    assert [line["step"] for line in folder.read_metrics()] == [1, 1]
    assert again.has_evaluation(1)
    assert not again.has_evaluation(2)
    assert again.is_better({"pq": 0.51})
    assert not again.is_better({"pq": 0.5})
    assert not again.is_better({"pq": float("nan")})


def test_what_could_not_be_measured_is_never_the_best(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.begin(description(), resume=False)
    record = RunRecord(folder, 0, "AP", print)
    assert not record.is_better({"AP": None})
    record.log_evaluation(1, {"AP": None, "AR": None}, 0.1)
    assert (record.best_step(), record.best(), record.last()) == (0, {}, {"AP": None, "AR": None})
    assert record.is_better({"AP": 0.0})
    record.log_evaluation(2, {"AP": 0.0, "AR": None}, 0.1)
    record.close()
    again = RunRecord(folder, 2, "AP", print)
    again.close()
    assert (again.best_step(), again.best()) == (2, {"AP": 0.0, "AR": None})
    assert not again.is_better({"AP": None})
