"""Where a training is logged besides its folder: TensorBoard, Weights & Biases, MLflow, or a logger given."""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from unimask.errors import ConfigError, MissingPackageError, choices, first_line, needs_extra
from unimask.files import read_json, write_json
from unimask.training.run_folder import flatten


@runtime_checkable
class Logger(Protocol):
    """Receives the log of a training, in the first of several processes only.

    A call that fails is reported once, and the logger is then left alone: the training goes on.
    """

    def values(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Log numbers after a step: losses and speed (group `training`) or measures (`evaluation`)."""

    def image(self, name: str, step: int, image: Image.Image) -> None:
        """Log an image of an evaluation: `validation`, `worst`, `confusion`."""

    def close(self) -> None:
        """Write the rest of the log."""


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """The run that a logger is opened for."""

    folder: Path  # of the run
    step: int  # that the run goes on after; 0 at its beginning
    description: Mapping[str, object]  # `experiment.json`


class TensorBoardLogger:
    """Logs to `tensorboard/` in the folder of the run."""

    def __init__(self, run: LoggedRun) -> None:
        with needs_extra("tensorboard", "the log for TensorBoard"):
            from torch.utils.tensorboard import SummaryWriter
        self._writer = SummaryWriter(
            str(run.folder / "tensorboard"), purge_step=run.step + 1 if run.step else None
        )

    def values(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Log a curve for each number."""
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)
        if group == "evaluation":
            self._writer.flush()

    def image(self, name: str, step: int, image: Image.Image) -> None:
        """Log an image, half as large where it is more than 1,600 pixels wide."""
        small = image.reduce(2) if image.width > 1600 else image
        self._writer.add_image(name, np.array(small.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Close the log."""
        self._writer.close()


class WandbLogger:
    """Logs to Weights & Biases, in the project WANDB_PROJECT, else `unimask`; a resumed run goes on there."""

    def __init__(self, run: LoggedRun) -> None:
        with needs_extra("wandb", "the log for Weights & Biases"):
            import wandb
        self._image = wandb.Image
        known = _known_run(run.folder, "wandb")
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "unimask"),
                name=run.folder.name,
                id=known or None,
                resume="allow",
                dir=str(run.folder),
                config=dict(run.description),
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.errors.Error as error:
            way_out = "`wandb login` once, or set WANDB_MODE=offline and `wandb sync` later"
            raise ConfigError("logger", f"wandb cannot be used ({first_line(error)}); {way_out}") from None
        _keep_run(run.folder, "wandb", str(self._run.id))
        self._run.define_metric("*", step_metric="step")

    def values(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Log a curve for each number."""
        self._run.log({"step": step, **{f"{group}/{name}": value for name, value in values.items()}})

    def image(self, name: str, step: int, image: Image.Image) -> None:
        """Log an image."""
        self._run.log({"step": step, name: self._image(image)})

    def close(self) -> None:
        """Wait until everything is sent, or written to the folder where there is no connection."""
        self._run.finish()


class MlflowLogger:
    """Logs to MLflow: to MLFLOW_TRACKING_URI, else to `mlruns/` in the folder of the run.

    The experiment is MLFLOW_EXPERIMENT_NAME, else `unimask`. A resumed run goes on there.
    """

    def __init__(self, run: LoggedRun) -> None:
        with needs_extra("mlflow", "the log for MLflow"):
            import mlflow
        place = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not place:
            place = (run.folder / "mlruns").absolute().as_uri()
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # a database needs far more packages
        self._metric = mlflow.entities.Metric
        try:
            self._client = mlflow.MlflowClient(tracking_uri=place)
            self._id = _known_run(run.folder, "mlflow")
            if not self._id:
                self._id = self._begin(run)
        except (mlflow.MlflowException, OSError) as error:
            way_out = "set MLFLOW_TRACKING_URI to a server or folder that can be used"
            raise ConfigError("logger", f"mlflow cannot be used ({first_line(error)}); {way_out}") from None
        _keep_run(run.folder, "mlflow", self._id)

    def _begin(self, run: LoggedRun) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "unimask")
        experiment = self._client.get_experiment_by_name(name)
        number = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        begun: str = self._client.create_run(number, run_name=run.folder.name).info.run_id
        for setting, value in flatten(run.description.get("experiment", {})).items():
            self._client.log_param(begun, _mlflow_name(setting), str(value)[:500])
        return begun

    def values(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Log a curve for each number that is finite."""
        known = {name: value for name, value in values.items() if math.isfinite(value)}
        metrics = [
            self._metric(_mlflow_name(f"{group}/{name}"), float(value), 0, step)
            for name, value in known.items()
        ]
        self._client.log_batch(self._id, metrics=metrics)

    def image(self, name: str, step: int, image: Image.Image) -> None:
        """Log an image as an artifact."""
        self._client.log_image(self._id, image, artifact_file=f"{name}/step_{step}.png")

    def close(self) -> None:
        """Mark the run as ended."""
        self._client.set_terminated(self._id)


def _mlflow_name(name: str) -> str:
    return re.sub(r"[^\w\-. /:]", "_at_" if "@" in name else "_", name)


_RUNS = "loggers.json"


def _known_run(folder: Path, service: str) -> str:
    """Return the name that a service gave the run when it began; empty where it did not begin there."""
    known = read_json(folder / _RUNS) if (folder / _RUNS).exists() else {}
    return str(known.get(service, "")) if isinstance(known, dict) else ""


def _keep_run(folder: Path, service: str, name: str) -> None:
    known = read_json(folder / _RUNS) if (folder / _RUNS).exists() else {}
    kept = {**known, service: name} if isinstance(known, dict) else {service: name}
    write_json(folder / _RUNS, kept)


SERVICES: dict[str, Callable[[LoggedRun], Logger]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
    "mlflow": MlflowLogger,
}


def check_loggers(asked: Sequence[str | Logger]) -> None:
    """Check that loggers that are named exist and are installed.

    Raises:
        ConfigError: there is none of this name.
        MissingPackageError: its package is not installed.
    """
    for one in asked:
        if isinstance(one, str) and one not in SERVICES:
            raise ConfigError("logger", f"{one!r} does not exist; {choices(one, SERVICES)}")
        if isinstance(one, str):
            with needs_extra(one, f"the logger {one}"):
                import_module(one)


class Loggers:
    """All loggers of a run. TensorBoard is always among them where it is installed."""

    def __init__(self, asked: Sequence[str | Logger], run: LoggedRun, message: Callable[[str], None]) -> None:
        """Open the loggers that are named.

        Raises:
            ConfigError: one that is asked for cannot be used.
            MissingPackageError: its package is not installed.
        """
        self._message = message
        self._open: dict[str, Logger] = {}
        try:
            self._open["tensorboard"] = TensorBoardLogger(run)
        except MissingPackageError as error:
            message(str(error))
        for one in asked:
            if not isinstance(one, str):
                self._open[f"{type(one).__name__} {len(self._open)}"] = one
            elif one not in self._open:
                self._open[one] = SERVICES[one](run)

    def values(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Log numbers everywhere."""
        self._each(lambda logger: logger.values(group, step, values))

    def image(self, name: str, step: int, image: Image.Image) -> None:
        """Log an image everywhere."""
        self._each(lambda logger: logger.image(name, step, image))

    def close(self) -> None:
        """Close all loggers."""
        self._each(lambda logger: logger.close())
        self._open.clear()

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self._open.items()):
            try:
                call(logger)
            except Exception as error:
                del self._open[name]
                self._message(
                    f"{name}: nothing more is logged there ({type(error).__name__}: {first_line(error)})"
                )
