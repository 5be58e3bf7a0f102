"""The folder of a run, in which every file appears complete: a kill at any moment costs only time.

experiment.json      the settings, the task, the data and its categories
metrics.jsonl        one line per logged step, evaluation and skipped step
checkpoints/step_N/  everything that is needed to go on after step N
model/, best/        model folders: of the last checkpoint, of the best evaluation
results.json         how it ended
results.csv, ...     what people look at (`training/display.py`)
tensorboard/         the log for TensorBoard
"""

import json
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from unimask.config.images import experiment_from_dict, experiment_to_dict
from unimask.errors import ConfigError, DataError, UnimaskError
from unimask.files import complete_file, json_text, write_json, write_text

KEPT_CHECKPOINTS = 2
DESCRIPTION_NAME = "experiment.json"
# Settings that may change when a run is resumed: they say how much and how fast, not what is computed.
CHANGEABLE = frozenset(
    {
        "training.steps",
        "training.accumulate",
        "training.evaluate_every",
        "training.checkpoint_every",
        "training.log_every",
        "training.workers",
    }
)


def flatten(values: object, path: str = "") -> dict[str, object]:
    """Return nested dicts as one dict with dotted paths; lists are values."""
    if not isinstance(values, Mapping):
        return {path: values}
    return {
        k: v for key in values for k, v in flatten(values[key], f"{path}.{key}" if path else str(key)).items()
    }


def described(folder: Path) -> dict[str, Any]:
    """Return what `experiment.json` says of the run in a folder; empty where there is no run.

    Raises:
        DataError: the file is broken.
    """
    path = folder / DESCRIPTION_NAME
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(path, f"is not valid JSON ({error}); name another output folder") from None
    if not isinstance(found, dict) or not isinstance(found.get("experiment"), dict):
        raise DataError(path, "is no description of a run; name another output folder")
    return found


def _completed(experiment: object) -> object:
    """Return the settings with the defaults of those that an earlier version did not write."""
    if not isinstance(experiment, dict):
        return experiment
    try:
        return experiment_to_dict(experiment_from_dict(experiment))
    except ConfigError:  # it had settings that are gone: they are named as differences
        return experiment


def differences(old: object, new: object) -> list[str]:
    """Return each setting that differs, as `path: old -> new`, without those that may change on resuming."""
    before, after = flatten(old), flatten(new)
    return [
        f"{path}: {before.get(path)!r} -> {after.get(path)!r}"
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path) and path not in CHANGEABLE
    ]


@contextmanager
def nothing_left_behind(run: Path) -> Iterator[None]:
    """Remove the folder of a training that fails inside before its first checkpoint.

    A folder that held something before stays as it is.
    """
    existed = run.exists()
    if existed and (not run.is_dir() or any(run.iterdir())):
        yield
        return
    try:
        yield
    except UnimaskError:
        if run.is_dir() and not any(run.glob("checkpoints/step_*")):
            shutil.rmtree(run, ignore_errors=True)
            if existed:
                run.mkdir(exist_ok=True)
        raise


class RunFolder:
    """The files of a run. Only the first of several processes writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = path / "model"
        self.best = path / "best"
        self._checkpoints = path / "checkpoints"
        self._metrics = path / "metrics.jsonl"
        self._description = path / DESCRIPTION_NAME
        self._results = path / "results.json"

    def begin(self, description: dict[str, object], *, resume: bool) -> None:
        """Make the folder, or check that it holds the same run.

        `description` is JSON-ready; its `experiment` is compared setting by setting.

        Raises:
            DataError: the folder is in use and `resume` is off, or what it holds is not a run.
            ConfigError: the run in the folder has other settings, another task or other categories.
        """
        if self.path.exists() and not self.path.is_dir():
            raise DataError(self.path, "is a file; name a folder for the run")
        in_use = self.path.exists() and any(self.path.iterdir())
        if in_use and not resume:
            raise DataError(
                self.path, "is not empty; continue the run in it with --resume, or name another output folder"
            )
        if in_use and self._description.exists():
            self._check_same(description)
        elif in_use and self._checkpoints.exists():
            raise DataError(
                self._description, "is missing, so this run cannot be resumed; name another output folder"
            )
        elif in_use and any(not item.name.startswith(".") for item in self.path.iterdir()):
            raise DataError(self.path, "holds other files but no run to resume; name another output folder")
        try:
            self._checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(self.path, f"cannot be made ({error.strerror}); name another folder") from None
        for leftover in self._checkpoints.glob(".step_*.part"):  # of a kill
            shutil.rmtree(leftover, ignore_errors=True)
        write_json(self._description, description)

    def _check_same(self, description: dict[str, object]) -> None:
        old = described(self.path)
        changed = differences(_completed(old.get("experiment")), _completed(description["experiment"]))
        for key in ("task", "categories", "pictures"):
            changed += differences({key: old.get(key)}, {key: description[key]})
        if changed:
            raise ConfigError(
                str(self.path),
                "the run in this folder was started differently; take the old settings to resume it, or name "
                "another output folder:\n  " + "\n  ".join(changed),
            )

    def description(self) -> dict[str, Any]:
        """Return what `begin` wrote."""
        described: dict[str, Any] = json.loads(self._description.read_text(encoding="utf-8"))
        return described

    # checkpoints

    def save_checkpoint(self, step: int, state: dict[str, Any]) -> None:
        """Write `checkpoints/step_N` complete, then remove the oldest ones.

        Raises:
            DataError: the disk is full or cannot be written to.
        """
        target = self._checkpoints / f"step_{step}"
        try:
            with complete_file(target) as temporary:
                temporary.mkdir(parents=True)
                with open(temporary / "state.pt", "wb") as file:
                    torch.save(state, file)
                    file.flush()
                    os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            raise DataError(target, f"cannot be written ({error}); make room for it, then resume") from None
        for old in self._steps()[KEPT_CHECKPOINTS:]:
            shutil.rmtree(self._checkpoints / f"step_{old}", ignore_errors=True)

    def _steps(self) -> list[int]:
        """Return the steps that have a checkpoint, newest first."""
        names = [item.name.removeprefix("step_") for item in self._checkpoints.glob("step_*")]
        return sorted((int(name) for name in names if name.isdigit()), reverse=True)

    def latest_checkpoint(self) -> dict[str, Any]:
        """Return the state of the newest checkpoint that can be read; empty where there is none.

        Raises:
            DataError: there are checkpoints, but none of them can be read.
        """
        failures = []
        for step in self._steps():
            path = self._checkpoints / f"step_{step}" / "state.pt"
            try:
                state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
                return state
            except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
                failures.append(f"{path}: {error}")
        if failures:
            raise DataError(
                self._checkpoints,
                "no checkpoint can be read; start again in another output folder\n  " + "\n  ".join(failures),
            )
        return {}

    # the log

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return all complete lines of `metrics.jsonl`, up to one that a kill cut off."""
        if not self._metrics.exists():
            return []
        records = []
        for line in self._metrics.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
        return records

    def rewind_metrics(self, step: int) -> list[dict[str, Any]]:
        """Drop the lines beyond `step`; return the others."""
        records = [record for record in self.read_metrics() if record["step"] <= step]
        write_text(self._metrics, "".join(json_text(record, None) + "\n" for record in records))
        return records

    def append_metrics(self, record: Mapping[str, object]) -> None:
        """Append a line to `metrics.jsonl`."""
        with open(self._metrics, "a", encoding="utf-8") as file:
            file.write(json_text(record, None) + "\n")

    def write_results(self, results: Mapping[str, object]) -> None:
        """Write `results.json`, at the end."""
        write_json(self._results, results)
