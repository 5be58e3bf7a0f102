"""Weights & Biases and MLflow, where nothing leaves this machine."""

import json
import time
from pathlib import Path

import pytest
from PIL import Image

from unimask.errors import ConfigError
from unimask.training.loggers import LoggedRun, Loggers

VALUES = {"PQ": 0.25, "AP@0.50": 0.5, "SQ": float("nan")}


def described(folder: Path) -> LoggedRun:
    settings = {"training": {"steps": 4, "milestones": [0.5]}}
    return LoggedRun(folder=folder, step=0, description={"task": "panoptic", "experiment": settings})


def log_everything(name: str, folder: Path) -> list[str]:
    """Log to a service; return what was said."""
    said: list[str] = []
    logged = Loggers((name,), described(folder), said.append)
    logged.values("training", 2, {"loss": 3.0})
    logged.image("worst", 2, Image.new("RGB", (40, 30), (200, 30, 30)))
    logged.values("evaluation", 2, VALUES)
    logged.close()
    return said


@pytest.mark.filterwarnings("ignore")  # of the package
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for _ in range(2):  # the second one goes on
        assert log_everything("mlflow", tmp_path) == []
    name = json.loads((tmp_path / "loggers.json").read_text())["mlflow"]
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    (experiment,) = [one for one in client.search_experiments() if one.name == "unimask"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.run_name, run.info.status) == (name, tmp_path.name, "FINISHED")
    expected = {"training/loss": 3.0, "evaluation/PQ": 0.25, "evaluation/AP_at_0.50": 0.5}
    assert run.data.metrics == expected
    assert run.data.params["training.steps"] == "4"
    assert [one.step for one in client.get_metric_history(name, "evaluation/PQ")] == [2, 2]
    assert [one.path for one in client.list_artifacts(name, "worst")] == ["worst/step_2.png"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://here")
    with pytest.raises(ConfigError, match=r"mlflow cannot be used .* set MLFLOW_TRACKING_URI"):
        Loggers(("mlflow",), described(tmp_path), print)


@pytest.mark.filterwarnings("ignore")  # of the package
def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert log_everything("wandb", tmp_path) == []
    name = json.loads((tmp_path / "loggers.json").read_text())["wandb"]
    (log,) = tmp_path.glob(f"wandb/offline-run-*-{name}/run-{name}.wandb")
    expected = (b"training/loss", b"evaluation/AP@0.50", b"milestones")
    deadline = time.monotonic() + 60  # another process of wandb writes it
    while not all(words in log.read_bytes() for words in expected):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (picture,) = tmp_path.glob(f"wandb/offline-run-*-{name}/files/media/images/worst_*.png")
    with Image.open(picture) as opened:
        assert opened.size == (40, 30)
