import itertools
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from safetensors.torch import load_file
from torch import Tensor
from training.small_runs import SMOOTH, broken_losses, run, small_data, small_experiment

from unimask.checkpoints.images import load_model
from unimask.errors import ConfigError, DataError, WeightsError
from unimask.losses.build import build_criterion
from unimask.models.build import build_model
from unimask.structures import Segments
from unimask.training import engine, loop
from unimask.training.progress import SilentReporter, StepReport
from unimask.training.result import TrainingError
from unimask.training.run import train


class Kill(SilentReporter):
    """Ends the training in the middle of things after a step, as if the machine had failed."""

    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, report: StepReport) -> None:
        if report.step == self.at:
            raise RuntimeError("killed")


class Ask(SilentReporter):
    """Sends a signal to this process after a step."""

    def __init__(self, step: int, number: int) -> None:
        self.at, self.number = step, number
        self.messages: list[str] = []

    def step(self, report: StepReport) -> None:
        if report.step == self.at:
            os.kill(os.getpid(), self.number)

    def message(self, text: str) -> None:
        self.messages.append(text)


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == kind]


def weights(folder: Path, name: str = "model") -> dict[str, Tensor]:
    return load_file(folder / name / "model.safetensors")


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[key].double() - other[key].double()).abs().max()) for key in one)


def without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k not in ("seconds", "images_per_second")} for r in records]


def test_two_pictures_are_learned_by_heart(tmp_path: Path) -> None:
    settings = {"training__batch_size": 2, "training__log_every": 5, "data__jitter__low": 1.0}
    settings |= {"data__jitter__high": 1.0, "data__horizontal_flip": 0.0, "training__steps": 60}
    run(tmp_path, count=2, **settings)
    losses = [line["loss"] for line in lines(tmp_path, "step")]
    assert len(losses) == 12
    assert losses[-1] < 0.5 * losses[0]


def test_a_run_leaves_everything_in_its_folder(tmp_path: Path) -> None:
    result = run(tmp_path, training__steps=5, training__evaluate_every=2)
    assert (result.steps, result.completed, result.skipped_steps) == (5, True, 0)
    evaluations = lines(tmp_path, "evaluation")
    assert [line["step"] for line in evaluations] == [2, 4, 5]
    assert [line["step"] for line in lines(tmp_path, "step")] == [2, 4, 5]
    best = max(evaluations, key=lambda line: line["values"]["PQ"])
    assert (result.best_step, result.best["PQ"]) == (best["step"], best["values"]["PQ"])
    assert result.final["PQ"] == evaluations[-1]["values"]["PQ"]
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["best"]["PQ"], results["best_step"]) == (result.best["PQ"], result.best_step)
    assert results["steps"] == 5
    assert {"machine", "versions", "command", "seconds", "final"} <= results.keys()
    assert json.loads((tmp_path / "experiment.json").read_text())["task"] == "panoptic"
    assert any((tmp_path / "tensorboard").iterdir())
    assert sorted(item.name for item in (tmp_path / "checkpoints").iterdir()) == ["step_3", "step_5"]
    _, model_file = load_model(tmp_path / "model")
    assert model_file.experiment == small_experiment(training__steps=5, training__evaluate_every=2)
    assert "step 5; initial weights: random" in model_file.provenance
    assert f"step {result.best_step};" in load_model(tmp_path / "best")[1].provenance


@pytest.mark.parametrize("step", [1, 3, 5])  # before the first checkpoint, at one, between two
def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path, step: int) -> None:
    settings = {"training__steps": 7, "training__ema_decay": 0.9, "training__evaluate_every": 3}
    run(tmp_path / "unbroken", **settings)
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "killed", reporter=Kill(step), **settings)
    run(tmp_path / "killed", resume=True, **settings)
    for name in ("model", "best"):
        assert (
            largest_difference(weights(tmp_path / "unbroken", name), weights(tmp_path / "killed", name)) == 0
        )
    for kind in ("step", "evaluation"):
        pair = [without_times(lines(tmp_path / name, kind)) for name in ("unbroken", "killed")]
        assert pair[0] == pair[1]


def test_a_finished_run_resumes_to_its_result_and_can_be_made_longer(tmp_path: Path) -> None:
    first = run(tmp_path, training__steps=3, training__evaluate_every=3)
    again = run(tmp_path, resume=True, training__steps=3, training__evaluate_every=3)
    assert (again.final, again.steps) == (first.final, 3)
    longer = run(tmp_path, resume=True, training__steps=5, training__evaluate_every=3)
    assert longer.steps == 5
    assert [line["step"] for line in lines(tmp_path, "evaluation")] == [3, 5]
    state = torch.load(tmp_path / "checkpoints/step_5/state.pt", weights_only=True)
    next(value for value in state["model"].values() if value.is_floating_point() and value.ndim)[0] = math.nan
    torch.save(state, tmp_path / "checkpoints/step_5/state.pt")
    with pytest.raises(WeightsError, match="not finite"):
        run(tmp_path, resume=True, training__steps=6, training__evaluate_every=3)


def test_another_run_is_neither_overwritten_nor_mixed(tmp_path: Path) -> None:
    run(tmp_path, training__steps=1)
    before = weights(tmp_path)
    with pytest.raises(DataError, match="--resume"):
        run(tmp_path, training__steps=1)
    with pytest.raises(ConfigError, match=r"training.learning_rate: 0.001 -> 0.002"):
        run(tmp_path, resume=True, training__steps=1, training__learning_rate=0.002)
    assert largest_difference(before, weights(tmp_path)) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_with_a_checkpoint(tmp_path: Path, number: int) -> None:
    settings = {"training__steps": 7}
    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    reporter = Ask(4, number)
    result = run(tmp_path / "asked", reporter=reporter, **settings)
    assert (result.completed, result.steps) == (False, 5)
    assert reporter.messages == [f"stopped after step 5; resume the run in {tmp_path / 'asked'} to go on"]
    assert not (tmp_path / "asked" / "results.json").exists()
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert run(tmp_path / "asked", resume=True, **settings).completed
    run(tmp_path / "unbroken", **settings)
    assert largest_difference(weights(tmp_path / "asked"), weights(tmp_path / "unbroken")) == 0


def test_several_passes_equal_one_big_batch(tmp_path: Path) -> None:
    changes = {name.replace(".", "__"): value for name, value in SMOOTH.items()}
    changes |= {"training__steps": 3, "most": 0}
    run(tmp_path / "one", **changes)
    run(tmp_path / "two", training__accumulate=2, **changes)
    initial = run(tmp_path / "initial", **(changes | {"training__learning_rate": 1e-12}))
    moved = largest_difference(weights(tmp_path / "one"), weights(initial.output))
    assert moved > 1e-3
    assert largest_difference(weights(tmp_path / "one"), weights(tmp_path / "two")) < 0.01 * moved
    one, two = (lines(tmp_path / name, "step")[0] for name in ("one", "two"))
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
    assert one["gradient_norm"] == pytest.approx(two["gradient_norm"], rel=1e-3)


def averaged(state: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The averaged weights of a checkpoint."""
    prefix = "module."
    return {
        name.removeprefix(prefix): value
        for name, value in state["average"].items()
        if name.startswith(prefix)
    }


def test_the_average_is_what_is_saved_and_judged(tmp_path: Path) -> None:
    settings = {"training__steps": 3, "training__evaluate_every": 3, "training__ema_decay": 0.5}
    run(tmp_path, **settings)
    state = torch.load(tmp_path / "checkpoints" / "step_3" / "state.pt", weights_only=True)
    for name in ("model", "best"):
        assert largest_difference(weights(tmp_path, name), averaged(state)) == 0
    assert largest_difference(state["model"], averaged(state)) > 0


def test_a_loss_that_is_not_finite_skips_the_step_and_names_pictures_and_term(tmp_path: Path) -> None:
    reporter = Ask(99, signal.SIGTERM)
    with broken_losses({1, 2}):
        result = run(tmp_path, reporter=reporter, training__steps=5, training__log_every=1)
    assert result.skipped_steps == 2
    assert [line["step"] for line in lines(tmp_path, "skipped")] == [2, 3]
    (problem,) = lines(tmp_path, "skipped")[0]["problems"]
    assert problem.startswith("mask of shapes_0_")
    assert problem.count("shapes_0_") == 4
    assert reporter.messages[0] == f"step 2 is skipped, not finite: {problem}"
    assert [line["loss"] is None for line in lines(tmp_path, "step")] == [False, True, True, False, False]
    assert all(bool(torch.isfinite(value).all()) for value in weights(tmp_path).values())


def test_a_skipped_step_changes_nothing(tmp_path: Path) -> None:
    with broken_losses({0, 1}):
        run(tmp_path / "skipped", training__steps=2, training__ema_decay=0.9)
    state = torch.load(tmp_path / "skipped" / "checkpoints" / "step_2" / "state.pt", weights_only=True)
    assert state["optimizer"]["state"] == {}
    assert largest_difference(state["model"], averaged(state)) == 0
    counts = [value for name, value in state["model"].items() if name.endswith("num_batches_tracked")]
    assert counts
    assert all(int(count) == 0 for count in counts)


def test_the_whole_step_is_skipped_where_a_later_pass_fails(tmp_path: Path) -> None:
    with broken_losses({1}):
        run(tmp_path, training__steps=1, training__accumulate=2)
    state = torch.load(tmp_path / "checkpoints" / "step_1" / "state.pt", weights_only=True)
    assert state["optimizer"]["state"] == {}
    assert lines(tmp_path, "step")[0]["loss"] is None


def test_only_so_many_steps_in_a_row_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "LARGEST_SKIPS", 3)
    with (
        broken_losses({0, 1, *range(3, 99)}),
        pytest.raises(TrainingError, match=r"3 steps in a row were not finite.*mask of shapes_0_") as caught,
    ):
        run(tmp_path, training__steps=30)
    assert "training.learning_rate" in str(caught.value)
    assert lines(tmp_path, "skipped")[-1]["step"] == 6


@pytest.mark.parametrize(
    ("changes", "options", "error"),
    [
        ({}, {"data": "no_such_folder"}, DataError),
        ({}, {"initial": "no_such_model"}, WeightsError),
        ({}, {"initial": "nuclei"}, WeightsError),
        ({"model__query_decoder__channels": 30}, {}, ConfigError),
        ({"training__batch_size": 0}, {}, ConfigError),
    ],
)
def test_a_run_that_cannot_start_leaves_no_folder(
    tmp_path: Path, changes: dict[str, object], options: dict[str, str], error: type[Exception]
) -> None:
    (tmp_path / "empty").mkdir()
    given = {"task": "panoptic", "data": "shapes", "device": "cpu", **options}
    for folder in ("new", "empty"):
        with pytest.raises(error):
            train(small_experiment(**changes), output=tmp_path / folder, reporter=SilentReporter(), **given)
    assert [(path.name, list(path.iterdir())) for path in tmp_path.iterdir()] == [("empty", [])]


def test_a_folder_that_held_something_stays_as_it_is(tmp_path: Path) -> None:
    run(tmp_path / "run", training__steps=3)
    before = sorted(tmp_path.rglob("*"))
    for resume, message in ((False, "is not empty"), (True, "training.seed: 0 -> 5")):
        with pytest.raises((DataError, ConfigError), match=message):
            run(tmp_path / "run", resume=resume, training__steps=3, training__seed=5)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_gradient_that_is_not_finite_skips_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def infinite(self: object, module: torch.nn.Module, *arguments: object, **options: object) -> Tensor:
        return (
            torch.tensor(float("inf")) if next(calls) == 1 else original(self, module, *arguments, **options)
        )

    calls, original = itertools.count(), loop.Fabric.clip_gradients
    monkeypatch.setattr(loop.Fabric, "clip_gradients", infinite)
    result = run(tmp_path, training__steps=3)
    assert result.skipped_steps == 1
    assert lines(tmp_path, "skipped")[0]["problems"] == ["the gradient"]


def test_gradients_are_clipped_to_the_norm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []

    def watch(self: Any, module: torch.nn.Module, *arguments: Any, **options: Any) -> Any:
        before = original(self, module, *arguments, **options)
        gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
        norms.append(float(torch.cat(gradients).norm()))
        return before

    original = loop.Fabric.clip_gradients
    monkeypatch.setattr(loop.Fabric, "clip_gradients", watch)
    run(tmp_path, training__steps=2, training__gradient_clip=0.037)
    assert norms == pytest.approx([0.037, 0.037], rel=1e-3)
    assert lines(tmp_path, "step")[0]["gradient_norm"] > 0.1


def test_float16_lowers_the_loss_scale_and_skips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, which the command line does not offer: it is slow there, but the same mechanism."""

    def fabric(**options: Any) -> Fabric:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=1000)
        options.pop("precision")
        return Fabric(**options, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])

    monkeypatch.setattr(engine, "check_device", lambda device, devices, precision: ("cpu", devices))
    monkeypatch.setattr(engine, "Fabric", fabric)
    run(tmp_path, training__steps=3, training__precision="16-mixed")
    state = torch.load(tmp_path / "checkpoints" / "step_3" / "state.pt", weights_only=True)
    assert state["skipped"] == 3
    assert state["precision"]["scale"] == 2.0**37
    run(tmp_path, resume=True, training__steps=4, training__precision="16-mixed")
    state = torch.load(tmp_path / "checkpoints" / "step_4" / "state.pt", weights_only=True)
    assert state["precision"]["scale"] == 2.0**36


def test_half_precision(tmp_path: Path) -> None:
    run(tmp_path, training__steps=2, training__precision="bf16-mixed")
    assert all(value.dtype != torch.bfloat16 for value in weights(tmp_path).values())
    assert lines(tmp_path, "step")[0]["loss"] > 0


def test_every_parameter_gets_a_gradient_even_without_objects(tmp_path: Path) -> None:
    """Several processes would wait for each other forever otherwise."""
    experiment = small_experiment()
    model = build_model(experiment.model, 6)
    criterion = build_criterion(experiment.losses, 6)
    nothing = Segments(
        layers=torch.zeros(1, 64, 64, dtype=torch.int16),
        labels=torch.zeros(0, dtype=torch.int64),
        scores=torch.zeros(0),
        is_crowd=torch.zeros(0, dtype=torch.bool),
    )
    criterion(model(torch.randn(2, 3, 64, 64)), (nothing, nothing), torch.rand).total.backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_bad_requests(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        train(small_experiment(), tmp_path / "nothing", tmp_path / "run", device="cpu")
    with small_data(), pytest.raises(ConfigError, match=r"training\.steps"):
        train(small_experiment(training__steps=0), "shapes", tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
