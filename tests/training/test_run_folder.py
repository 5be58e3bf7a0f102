import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed

from unimask.config.images import experiment_from_dict, experiment_to_dict
from unimask.errors import ConfigError, DataError, WeightsError
from unimask.training.engine import lost_processes_said
from unimask.training.record import RunRecord
from unimask.training.restoring import PARTS, check_description, check_parts
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


@pytest.mark.parametrize("name", ["best", "model", "checkpoints"])
def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path, name: str) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.begin(description(), resume=False)
    folder.close()
    if (folder.path / name).is_dir():
        (folder.path / name).rmdir()
    (folder.path / name).write_text("a")
    with pytest.raises(DataError, match=rf"run/{name}: is a file"):
        folder.begin(description(), resume=True)
    assert (folder.path / name).read_text() == "a"


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


# what a run can become between two resumes

HOLDER = """
import sys
from pathlib import Path
from unimask.locks import hold
hold(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="files are not held there")
def test_one_process_trains_in_a_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.begin(description(), resume=False)
    folder.close()
    assert not (tmp_path / ".lock").exists()
    command = [sys.executable, "-c", HOLDER, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(
            DataError, match=rf"in use by another training \(process {other.pid} on .*stop it"
        ):
            folder.begin(description(), resume=True)
        other.kill()
    assert (tmp_path / ".lock").exists()
    folder.begin(description(), resume=True)
    folder.close()
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("left", ["model", "results.json"])
def test_a_run_whose_checkpoints_are_gone_does_not_begin_again(left: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.begin(description(), resume=False)
    (tmp_path / "checkpoints" / ".step_3.0123abcd.part").mkdir()
    folder.begin(description(), resume=True)  # killed in its first checkpoint
    (tmp_path / left).mkdir()
    with pytest.raises(DataError, match=r"checkpoints: holds no checkpoint any more.*--initial"):
        folder.begin(description(), resume=True)
    (tmp_path / "checkpoints").rmdir()
    with pytest.raises(DataError, match=r"checkpoints: holds no checkpoint any more"):
        folder.begin(description(), resume=True)
    folder.save_checkpoint(3, {"step": 3})
    folder.begin(description(), resume=True)
    folder.close()


def test_a_checkpoint_under_another_name_is_not_taken(tmp_path: Path) -> None:
    """It would stay the newest for ever."""
    folder = RunFolder(tmp_path)
    folder.begin(description(), resume=False)
    for step in (4, 5):
        folder.save_checkpoint(step, {"step": step})
    (tmp_path / "checkpoints" / "step_4").rename(tmp_path / "checkpoints" / "step_9")
    (tmp_path / "checkpoints" / "step_\u00b2").mkdir()
    said: list[str] = []
    assert folder.latest_checkpoint(said.append)["step"] == 5
    assert "it is the state after step 4: the folder was renamed" in said[0]
    folder.close()


def test_lines_that_cannot_be_read_are_named_and_the_others_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.begin(description(), resume=False)
    for step in (1, 2, 3):
        folder.append_metrics({"kind": "step", "step": step, "name": "a\u2028b\x85c"})
    lines = (tmp_path / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    odd = [b"null", b'{"step": 2}', b'{"kind": "evaluation", "step": 2}', b"\xff", lines[1][:9]]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([lines[0], *odd, *lines[1:], b'{"kind']))
    said: list[str] = []
    assert [line["step"] for line in folder.rewind_metrics(3, said.append)] == [1, 2, 3]
    assert said == [f"{tmp_path / 'metrics.jsonl'}: lines that cannot be read are left out: 2, 3, 4, 5, 6"]
    assert (tmp_path / "metrics.jsonl").read_bytes().split(b"\n")[:-1] == lines
    folder.close()


def test_the_best_evaluation_survives_the_loss_of_the_log(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.begin(description(), resume=False)
    record = RunRecord(folder, 0, "pq", print)
    assert record.best_line() is None
    for step, value in ((1, 0.5), (2, 0.9), (3, 0.7)):
        record.log_evaluation(step, {"pq": value, "sq": 0.1}, 0.1)
    record.close()
    best = record.best_line()
    folder.metrics.unlink()
    said: list[str] = []
    again = RunRecord(folder, 3, "pq", said.append, best=best)
    again.close()
    assert "the best evaluation, after step 2, is missing" in said[0]
    assert (again.best_step(), again.best()) == (2, {"pq": 0.9})
    assert not again.is_better({"pq": 0.8})
    assert [line["step"] for line in folder.read_metrics()] == [2]
    folder.append_metrics({"kind": "evaluation", "step": 3, "values": {"pq": "high"}})
    assert RunRecord(folder, 3, "pq", said.append).best_step() == 2
    assert RunRecord(folder, 3, "another measure", said.append).best_step() == 0
    folder.close()


def test_a_description_that_was_changed_is_told_from_the_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    check_description(folder, None, description())  # of an earlier version
    check_description(folder, description(), description(steps=20))
    with pytest.raises(ConfigError, match=r"experiment\.json: was changed after .*\n  training.seed: 0 -> 3"):
        check_description(folder, description(), description(seed=3))
    with pytest.raises(ConfigError, match=r"task: 'panoptic' -> 'instance'"):
        check_description(folder, description(), description() | {"task": "instance"})


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("seconds", float("nan")),
        ("skipped", -3),
        ("step", "5"),
        ("window", {"losses": {}, "a": 1}),
        ("window", {"losses": {"total": "high"}}),
        ("window", {"losses": 3}),
        ("best", [1]),
        ("best", {"kind": "evaluation", "step": "a", "values": {}}),
    ],
)
def test_parts_of_a_checkpoint_that_cannot_be(part: str, value: object, tmp_path: Path) -> None:
    state: dict[str, object] = {name: kind() for name, kind in PARTS.items()} | {"window": {"losses": {}}}
    check_parts(tmp_path, state)
    with pytest.raises(WeightsError, match=f"is no whole checkpoint: {part} is missing or damaged"):
        check_parts(tmp_path, state | {part: value})
