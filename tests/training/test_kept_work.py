"""No step that was done is lost: errors leave a checkpoint, and a kill leaves nothing stale."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from training.small_runs import SilentReporter, run
from training.test_training_loop import Ask, lines, weights, without_times

from unimask.checkpoints.images import load_model
from unimask.errors import DataError, WeightsError
from unimask.training import loop
from unimask.training.image_job import LossOfBatch, MaskJob

SETTINGS: dict[str, object] = {"training__steps": 5, "training__evaluate_every": 3}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("runs") / "unbroken", **SETTINGS).output


def same_run(one: Path, other: Path) -> bool:
    """Whether weights and log are equal to the last bit."""
    for name in ("model", "best"):
        pair = [(folder / name / "model.safetensors").read_bytes() for folder in (one, other)]
        if pair[0] != pair[1]:
            return False
    return all(
        without_times(lines(one, kind)) == without_times(lines(other, kind))
        for kind in ("step", "evaluation")
    )


def failing_at(call: int, original: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    """The function, which fails in one of its calls, counted from 1."""
    calls = iter(range(1, 1000))

    def function(*given: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise error
        return original(*given, **options)

    return function


@pytest.mark.parametrize(
    ("place", "name", "call", "error"),
    [
        (loop._Training, "_gradients", 3, RuntimeError("out of memory")),
        (MaskJob, "evaluate", 2, DataError("val/3.png", "is damaged")),
    ],
)
def test_an_error_leaves_a_checkpoint_of_every_step_before_it(
    tmp_path: Path, unbroken: Path, place: type, name: str, call: int, error: Exception
) -> None:
    folder, steps = tmp_path / "run", 2 if name == "_gradients" else 5
    settings = SETTINGS | {"training__checkpoint_every": 99 if steps == 2 else 3}
    reporter = Ask(99, 0)
    broken = failing_at(call, getattr(place, name), error)
    with mock.patch.object(place, name, broken), pytest.raises(type(error), match=str(error)[-9:]):
        run(folder, reporter=reporter, **settings)
    assert (folder / "checkpoints" / f"step_{steps}").is_dir()
    assert any(f"step {steps}, which has a checkpoint" in one for one in reporter.messages) == (steps == 2)
    run(folder, resume=True, **settings)
    assert same_run(folder, unbroken)


def test_a_broken_image_leaves_a_checkpoint_and_the_log(tmp_path: Path, unbroken: Path) -> None:
    folder = tmp_path / "run"
    stream = MaskJob.stream
    error = DataError("train/7.png", "is damaged or cut off")

    class Damaged:
        def __init__(self, inner: Any) -> None:
            self.inner, self.calls = inner, 0

        def __iter__(self) -> "Damaged":
            return self

        def __next__(self) -> Any:
            self.calls += 1
            if self.calls == 3:
                raise error
            return next(self.inner)

        def close(self) -> None:
            self.inner.close()

    def damaged(job: MaskJob, **options: Any) -> Damaged:
        return Damaged(stream(job, **options))

    reporter = Ask(99, 0)
    with mock.patch.object(MaskJob, "stream", damaged), pytest.raises(DataError, match="is damaged or cut"):
        run(folder, reporter=reporter, **SETTINGS)
    assert [line["step"] for line in lines(folder, "step")] == [2]
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_2"]
    assert reporter.messages[-1].startswith("an error ends the run after step 2, which has a checkpoint")
    assert "step 2;" in load_model(folder / "model")[1].provenance
    with mock.patch.object(MaskJob, "stream", damaged), pytest.raises(DataError):
        run(folder, resume=True, **SETTINGS)  # not mended yet; it fails two steps later
    assert run(folder, resume=True, **SETTINGS).completed
    assert same_run(folder, unbroken)


def test_where_the_disk_is_full_too_the_first_error_is_raised(tmp_path: Path) -> None:
    broken = failing_at(2, LossOfBatch.__call__, RuntimeError("the first error"))
    full = mock.Mock(side_effect=OSError(28, "No space left on device"))
    reporter = Ask(99, 0)
    with (
        mock.patch.object(LossOfBatch, "__call__", lambda *given: broken(*given)),
        mock.patch("torch.save", full),
        pytest.raises(RuntimeError, match="the first error"),
    ):
        run(tmp_path / "run", reporter=reporter, **SETTINGS)
    assert any("the steps after step 0 are lost: " in one for one in reporter.messages)
    assert (tmp_path / "run" / "experiment.json").exists()  # a step was taken: nothing is removed


def stale_model(folder: Path) -> None:
    tensors = folder / "model" / "model.safetensors"
    shutil.copy(folder / "best" / "model.safetensors", tensors)


def no_model(folder: Path) -> None:
    shutil.rmtree(folder / "model")


def half_a_best(folder: Path) -> None:
    (folder / "best" / "model.safetensors").unlink()


def best_of_later(folder: Path) -> None:
    shutil.copy(folder / "model" / "model.safetensors", folder / "best" / "model.safetensors")


@pytest.mark.parametrize("hurt", [stale_model, no_model, half_a_best, best_of_later])
def test_what_is_derived_is_made_again(tmp_path: Path, unbroken: Path, hurt: Callable[[Path], None]) -> None:
    folder = Path(shutil.copytree(unbroken, tmp_path / "run"))
    hurt(folder)
    (folder / "results.json").unlink()
    assert run(folder, resume=True, **SETTINGS).completed
    assert same_run(folder, unbroken)
    assert (folder / "results.json").exists()


def _first_mean(state: dict[str, Any]) -> torch.Tensor:
    """The first mean of the optimiser that has a shape."""
    mean: torch.Tensor = next(one["exp_avg"] for one in state["optimizer"]["state"].values())
    return mean


def _one_number(tensor: torch.Tensor, value: float) -> None:
    tensor[(0,) * tensor.ndim] = value


def _another_shape(state: dict[str, Any]) -> None:
    one = next(iter(state["optimizer"]["state"].values()))
    one["exp_avg"] = torch.zeros(1, 2, 3)


def _integers(state: dict[str, Any]) -> None:
    one = next(iter(state["optimizer"]["state"].values()))
    one["exp_avg"] = one["exp_avg"].long()


def _average(state: dict[str, Any]) -> torch.Tensor:
    tensor: torch.Tensor = next(one for key, one in state["average"].items() if key.endswith("weight"))
    return tensor


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no optimiser": (lambda state: state.pop("optimizer"), "optimizer is missing or damaged"),
    "a step that is text": (lambda state: state.update(step="five"), "step is missing or damaged"),
    "a mean that is NaN": (lambda state: _one_number(_first_mean(state), math.nan), "exp_avg of parameter"),
    "a mean of another shape": (_another_shape, "exp_avg of parameter"),
    "a mean of integers": (_integers, "exp_avg of parameter"),
    "fewer groups": (lambda state: state["optimizer"]["param_groups"].pop(), "parameters in"),
    "groups of text": (lambda state: state["optimizer"].update(param_groups=["a"]), "damaged state"),
    "an average that is infinite": (lambda state: _one_number(_average(state), math.inf), "not finite"),
    "an average of half": (lambda state: state["average"].popitem(), "not those of this model"),
    "weights that are NaN": (
        lambda state: _one_number(next(iter(state["model"].values())), math.nan),
        "not finite",
    ),
}


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped after two steps, with averaged weights."""
    folder = tmp_path_factory.mktemp("averaged") / "run"
    return run(folder, training__steps=2, training__ema_decay=0.9, training__evaluate_every=0).output


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_refused_with_a_sentence(tmp_path: Path, averaged: Path, damage: str) -> None:
    hurt, reason = DAMAGE[damage]
    folder = Path(shutil.copytree(averaged, tmp_path / "run"))
    path = folder / "checkpoints" / "step_2" / "state.pt"
    state = torch.load(path, weights_only=True)
    hurt(state)
    torch.save(state, path)
    with pytest.raises(WeightsError, match=f"step_2.*{reason}"):
        run(folder, resume=True, training__steps=3, training__ema_decay=0.9, training__evaluate_every=0)
    assert (folder / "checkpoints" / "step_2").is_dir()


def test_the_best_model_is_that_of_the_log_also_where_the_run_takes_another_course(tmp_path: Path) -> None:
    """It was killed after a better evaluation than that of the checkpoint, and then is made longer."""
    folder = tmp_path / "run"
    settings = {"training__evaluate_every": 3, "training__log_every": 1}
    first = run(folder, **settings, training__steps=3)
    assert first.best_step == 3
    right = weights(folder, "best")
    run(folder, resume=True, **settings, training__steps=5)
    state = torch.load(folder / "checkpoints" / "step_5" / "state.pt", weights_only=True)
    assert state["step"] == 5
    shutil.rmtree(folder / "checkpoints" / "step_5")  # the kill came before it
    later = run(folder, resume=True, **settings, training__steps=4)
    assert later.completed
    if later.best_step == 3:
        assert all(torch.equal(right[key], value) for key, value in weights(folder, "best").items())
    kept = json.loads((folder / "results.json").read_text())
    assert (kept["steps"], kept["best_step"]) == (4, later.best_step)
    assert f"step {later.best_step};" in load_model(folder / "best")[1].provenance


def test_a_longer_run_has_no_result_until_it_ends(tmp_path: Path, unbroken: Path) -> None:
    folder = Path(shutil.copytree(unbroken, tmp_path / "run"))
    longer = SETTINGS | {"training__steps": 7}

    class Kill(SilentReporter):
        def step(self, report: object) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, resume=True, reporter=Kill(), **longer)
    assert not (folder / "results.json").exists()
    assert load_file(folder / "best" / "model.safetensors")


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_killed_before_it_had_a_description_starts(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / ".experiment.json.0123ab-99999999-abc123.part").write_text('{"task')
    assert run(tmp_path / "run", resume=resume, training__steps=1).completed
    assert not [path for path in (tmp_path / "run").rglob("*") if path.name.endswith(".part")]
