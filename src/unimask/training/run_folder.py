"""The folder of a run, in which every file appears complete: a kill at any moment costs only time.

experiment.json      the settings, the task, the data and its categories
check.json           what the data holds, as from `unimask check`, before the first step
check.png            a few images with their ground truth
metrics.jsonl        one line per logged step, evaluation and skipped step
checkpoints/step_N/  everything that is needed to go on after step N: state.pt, and best/ as it was then; of a
                     model that is split over processes also shards/, the parts of each
model/, best/        model folders: of the last checkpoint, of the best evaluation; made again on resuming
results.json         how it ended; not there while it runs
results.csv, ...     tables, curves and images (`training/display.py`)
tensorboard/         the log for TensorBoard
tokenizer.json       the vocabulary of a translation; it may be there before, to start with

`RunFolder` has the paths of files that training reads back; those of tables and images are in `display`.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from unimask.checkpoints.text import VOCABULARY_NAME
from unimask.config.images import experiment_from_dict, experiment_to_dict
from unimask.errors import ConfigError, DataError, UnimaskError, first_line, some_of
from unimask.files import (
    clean_up,
    complete_file,
    is_temporary,
    json_text,
    read_json,
    remove,
    to_disk,
    write_json,
    write_text,
)
from unimask.locks import hold, let_go
from unimask.training.sharding import check_shards

KEPT_CHECKPOINTS = 2
SHARDS_NAME = "shards"
DESCRIPTION_NAME = "experiment.json"
LOCK_NAME = ".lock"  # held by the process that trains
# Settings that may change when a run is resumed: they decide how much and how fast, not what is computed.
CHANGEABLE = frozenset(
    {
        "training.steps",
        "training.accumulate",
        "training.evaluate_every",
        "training.checkpoint_every",
        "training.log_every",
        "training.workers",
        "training.strategy",
    }
)


def _link(folder: Path, target: Path) -> None:
    """Make a second folder of the same files: hard links, which take no space, else copies.

    The files of model folders are replaced, never written into.
    """
    target.mkdir()
    for file in folder.iterdir():
        try:
            os.link(file, target / file.name)
        except OSError:
            shutil.copy2(file, target / file.name)


def flatten(values: object, path: str = "") -> dict[str, object]:
    """Return nested dicts as one dict with dotted paths; lists are values."""
    if not isinstance(values, Mapping):
        return {path: values}
    return {
        k: v for key in values for k, v in flatten(values[key], f"{path}.{key}" if path else str(key)).items()
    }


def described(folder: Path) -> dict[str, Any]:
    """Return the content of `experiment.json` in a run folder; empty where there is no run.

    Raises:
        DataError: the file is broken.
    """
    path = folder / DESCRIPTION_NAME
    if not path.is_file():
        return {}
    try:
        found = read_json(path)
    except DataError as error:
        raise DataError(path, error.reason, "name another folder") from None
    if not isinstance(found, dict) or not isinstance(found.get("experiment"), dict):
        raise DataError(path, "is no description of a run; name another folder")
    return {"images": found.pop("pictures", None)} | found  # as it was called before 0.1


def _completed(experiment: object) -> object:
    """Return the settings with the defaults of those that an earlier version did not write."""
    if not isinstance(experiment, dict):
        return experiment
    try:
        return experiment_to_dict(experiment_from_dict(experiment))
    except ConfigError:  # it has settings that no longer exist: they are named as differences
        return experiment


def changes_of_run(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return what differs between two descriptions of a run, but for what may change on resuming."""
    changed = differences(_completed(old.get("experiment")), _completed(new["experiment"]))
    for key in ("task", "categories", "images"):
        changed += differences({key: old.get(key)}, {key: new[key]})
    return changed


def differences(old: object, new: object) -> list[str]:
    """Return each setting that differs, as `path: old -> new`, without those that may change on resuming."""
    before, after = flatten(old), flatten(new)
    return [
        f"{path}: {before.get(path)!r} -> {after.get(path)!r}"
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path) and path not in CHANGEABLE
    ]


def is_whole(record: Mapping[str, Any]) -> bool:
    """Return whether a line of `metrics.jsonl` says all that is needed."""
    if type(record.get("step")) is not int or "kind" not in record:
        return False
    return record["kind"] != "evaluation" or isinstance(record.get("values"), dict)


def _record_of(line: str) -> dict[str, Any] | None:
    """Return what a line of `metrics.jsonl` holds; None where it is not whole."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and is_whole(record) else None


@contextmanager
def nothing_left_behind(run: Path, steps: Callable[[], int]) -> Iterator[None]:
    """Remove the folder of a training that fails inside before its first step; `steps` says how many it did.

    A folder that held something before stays as it is.
    """
    existed = run.exists()
    if existed and (not run.is_dir() or any(run.iterdir())):
        yield
        return
    try:
        yield
    except UnimaskError:
        if run.is_dir() and steps() == 0:
            shutil.rmtree(run, ignore_errors=True)
            if existed:
                run.mkdir(exist_ok=True)
        raise


class RunFolder:
    """The files of a run. Only the first of several processes writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.experiment = path / DESCRIPTION_NAME
        self.check = path / "check.json"
        self.samples = path / "check.png"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.taken = self.checkpoints  # becomes the folder of the checkpoint that was read last
        self.model = path / "model"
        self.best = path / "best"
        self.results = path / "results.json"
        self.vocabulary = path / VOCABULARY_NAME
        self._lock = path / LOCK_NAME
        self._held_lock: int | None = None

    def begin(self, description: dict[str, object], *, resume: bool) -> None:
        """Make the folder, or check that it holds the same run, and remove what a kill left in it.

        From then on no other process can do so, until `close` is called or this process ends.

        `description` is JSON-ready; its `experiment` is compared setting by setting. A folder in which a run
        was killed before it was described counts as empty.

        Raises:
            DataError: the folder is in use and `resume` is off, what it holds is not a run, another process
                trains in it, or its checkpoints are gone.
            ConfigError: the run in the folder has other settings, another task or other categories.
        """
        folders = (self.path, self.checkpoints, self.model, self.best)
        for folder in folders:
            if folder.exists() and not folder.is_dir():
                raise DataError(folder, "is a file; name a folder for the run, or move it away")
        held = self._held()
        if held and not resume:
            raise DataError(
                self.path, "is not empty; continue the run in it with --resume, or name another output folder"
            )
        if self.experiment.exists():
            self._check_same(description)
        elif self.checkpoints in held:
            raise DataError(
                self.experiment, "is missing, so this run cannot be resumed; name another output folder"
            )
        elif any(not item.name.startswith(".") and item != self.vocabulary for item in held):
            raise DataError(self.path, "holds other files but no run to resume; name another output folder")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.close()
            self._held_lock = hold(self._lock)
            for folder in folders:
                clean_up(folder, alone=True)
            self._check_checkpoints()
            write_json(self.experiment, description)
            self.checkpoints.mkdir(exist_ok=True)
        except OSError as error:
            raise DataError(self.path, f"cannot be made ({error.strerror}); name another folder") from None

    def close(self) -> None:
        """Let other processes train in the folder."""
        let_go(self._lock, self._held_lock)
        self._held_lock = None

    def _check_checkpoints(self) -> None:
        """Check that a run that has saved a model still has a checkpoint: else it would begin again.

        Raises:
            DataError: it has none.
        """
        if not self._steps() and (self.model.is_dir() or self.results.exists()):
            raise DataError(
                self.checkpoints,
                "holds no checkpoint any more, and a run that begins again would replace its models; bring "
                f"the checkpoints back, or train on from its model in another folder: --initial {self.path}",
            )

    def _held(self) -> list[Path]:
        """Return the files of the folder, without those that a kill left before the run began."""
        if not self.path.exists():
            return []
        held = [item for item in self.path.iterdir() if not is_temporary(item.name) and item != self._lock]
        if self.checkpoints.is_dir() and not any(self.checkpoints.iterdir()):
            held.remove(self.checkpoints)
        return held

    def _check_same(self, description: dict[str, object]) -> None:
        changed = changes_of_run(described(self.path), description)
        if changed:
            raise ConfigError(
                str(self.path),
                "the run in this folder was started differently; take the old settings to resume it, or name "
                "another output folder:\n  " + "\n  ".join(changed),
            )

    def description(self) -> dict[str, Any]:
        """Return what `begin` wrote."""
        return described(self.path)

    # checkpoints

    def save_checkpoint(
        self, step: int, state: dict[str, Any], save_parts: Callable[[Path], None] = lambda folder: None
    ) -> None:
        """Write `checkpoints/step_N` complete, with the best model so far, then remove the oldest ones.

        `save_parts` writes the parts that are not in `state.pt` into a folder, which does not exist yet.

        Raises:
            DataError: the disk is full or cannot be written to.
        """
        target = self.checkpoints / f"step_{step}"
        try:
            to_disk(self.metrics)
            with complete_file(target) as temporary:
                temporary.mkdir(parents=True)
                with open(temporary / "state.pt", "wb") as file:
                    torch.save(state, file)
                if self.best.is_dir():
                    _link(self.best, temporary / self.best.name)
                save_parts(temporary / SHARDS_NAME)
        except (OSError, RuntimeError) as error:
            raise DataError(target, f"cannot be written ({error}); make room for it, then resume") from None
        for old in self._steps()[KEPT_CHECKPOINTS:]:
            remove(self.checkpoints / f"step_{old}")

    def restore_best(self, step: int) -> None:
        """Restore `best/` as it was at the checkpoint of this step, after a later kill.

        A checkpoint of an earlier version does not hold it; then `best/` stays as it is.
        """
        kept = self.checkpoints / f"step_{step}" / self.best.name
        if kept.is_dir():
            with complete_file(self.best) as temporary:
                _link(kept, temporary)

    def shards(self, step: int) -> Path:
        """Return the folder with the parts of a checkpoint of this step, if it has parts."""
        return self.checkpoints / f"step_{step}" / SHARDS_NAME

    def _steps(self) -> list[int]:
        """Return the steps that have a checkpoint, newest first."""
        names = [item.name.removeprefix("step_") for item in self.checkpoints.glob("step_*")]
        return sorted((int(name) for name in names if name.isascii() and name.isdigit()), reverse=True)

    def newest_step(self) -> int:
        """Return the step of the newest checkpoint, 0 without one."""
        return max(self._steps(), default=0)

    def has_checkpoint(self) -> bool:
        """Return whether a run goes on here, rather than begins."""
        return bool(self._steps())

    def latest_checkpoint(self, say: Callable[[str], object] = lambda text: None) -> dict[str, Any]:
        """Return the state of the newest checkpoint that can be read; empty where there is none.

        `say` is called for those that cannot.

        Raises:
            DataError: there are checkpoints, but none of them can be read.
        """
        failures: list[str] = []
        for step in self._steps():
            path = self.checkpoints / f"step_{step}" / "state.pt"
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
                if not isinstance(state, dict):
                    raise ValueError("it holds no state of a training")
                if isinstance(state.get("step"), int) and state["step"] != step:
                    raise ValueError(f"it is the state after step {state['step']}: the folder was renamed")
                if state.get("sharded"):
                    check_shards(self.shards(step))
                for failure in failures:
                    say(f"a checkpoint cannot be read, the one before it is taken ({failure})")
                self.taken = path.parent
                return state
            except Exception as error:  # a damaged file can fail in any way
                failures.append(f"{path}: is damaged ({first_line(error)})")
        if failures:
            raise DataError(
                self.checkpoints,
                "no checkpoint can be read; start again in another output folder\n  " + "\n  ".join(failures),
            )
        return {}

    # the log

    def read_metrics(self, say: Callable[[str], object] = lambda text: None) -> list[dict[str, Any]]:
        """Return all whole lines of `metrics.jsonl`; the last one may have been cut off by a kill.

        `say` is called where other lines cannot be read.
        """
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text(encoding="utf-8", errors="replace").split("\n")
        records = [_record_of(line) for line in lines]
        broken = [n for n, (line, one) in enumerate(zip(lines, records, strict=True), 1) if line and not one]
        broken = [number for number in broken if number < len(lines)]
        if broken:
            say(f"{self.metrics}: lines that cannot be read are left out: {some_of(broken)}")
        return [record for record in records if record is not None]

    def rewind_metrics(
        self,
        step: int,
        say: Callable[[str], object] = lambda text: None,
        best: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Drop the lines beyond `step`; return the others.

        `best` is the line of the best evaluation until then: it is put back where it is missing, and `say` is
        called.
        """
        records = [record for record in self.read_metrics(say) if record["step"] <= step]
        known = {record["step"] for record in records if record["kind"] == "evaluation"}
        if best is not None and best["step"] not in known:
            say(
                f"{self.metrics}: the best evaluation, after step {best['step']}, is missing; it is put back "
                "from the checkpoint"
            )
            records = sorted([*records, dict(best)], key=lambda record: int(record["step"]))
        write_text(self.metrics, "".join(json_text(record, None) + "\n" for record in records))
        return records

    def append_metrics(self, record: Mapping[str, object]) -> None:
        """Append a line to `metrics.jsonl`."""
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json_text(record, None) + "\n")

    def write_results(self, results: Mapping[str, object]) -> None:
        """Write `results.json`, at the end."""
        write_json(self.results, results)
