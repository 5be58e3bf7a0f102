"""The rows of the story, their trainings in processes of their own, and the report."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unimask.config.images import Experiment
from unimask.config.overrides import override
from unimask.config.training import TrainingConfig
from unimask.errors import ConfigError, DataError
from unimask.machine import memory_now, peak_memory
from unimask.presets import PRESETS
from unimask.presets.ablation import REMOVED_ROWS, ROWS, Story, row_experiment, rows_of
from unimask.presets.maskformer import MASKFORMER_LOSSES, maskformer_model
from unimask.presets.own_data import tiny
from unimask.training.ablation import row as ablation_row
from unimask.training.ablation import run as ablation
from unimask.training.ablation.report import RowResult, plot, table
from unimask.training.ablation.run import ablate, collect, with_budget
from unimask.training.progress import SilentReporter, StepReport

BASE = with_budget(tiny(), 40)


def changed(before: Experiment, after: Experiment) -> set[str]:
    from unimask.config.images import experiment_to_dict
    from unimask.training.run_folder import flatten

    old, new = flatten(experiment_to_dict(before)), flatten(experiment_to_dict(after))
    return {path for path in old if old[path] != new[path]}


@pytest.mark.parametrize("preset", ["tiny", "small", "coco_panoptic_resnet50"])
def test_each_row_has_one_thing_more_and_the_last_is_the_experiment(preset: str) -> None:
    base = PRESETS[preset]()
    experiments = [row_experiment(base, row.name) for row in ROWS]
    assert experiments[-1] == base
    for row, before, after in zip(ROWS[1:], experiments, experiments[1:]):
        assert changed(before, after) == set(row.without)
        assert row.without
    first = experiments[0]
    assert first.losses == replace(MASKFORMER_LOSSES, points=first.losses.points)
    published = maskformer_model("resnet50", encoder_layers=6)
    for name in ("visibility", "order", "query_features", "memory_strides", "level_embedding", "dropout"):
        assert getattr(first.model.query_decoder, name) == getattr(published.query_decoder, name), name
    for name in ("kind", "strides", "dropout"):
        assert getattr(first.model.pixel_decoder, name) == getattr(published.pixel_decoder, name), name


def test_the_other_story_takes_one_thing_alone_from_the_whole_model() -> None:
    base = PRESETS["coco_panoptic_resnet50"]()
    assert row_experiment(base, "whole", "remove") == base
    for row in REMOVED_ROWS[1:]:
        assert changed(base, row_experiment(base, row.name, "remove")) == set(row.without)
        assert set(row.in_paper) == {"instance", "panoptic", "semantic"}
    names = [row.name for row in REMOVED_ROWS]
    assert names == [
        "whole",
        "masked_attention",
        "multi_scale",
        "cross_attention_first",
        "learned_queries",
        "no_dropout",
        "points",
    ]
    with pytest.raises(ConfigError, match="no such row; there are: whole, masked_attention"):
        row_experiment(base, "deformable", "remove")
    with pytest.raises(ConfigError, match="story: of an EoMT is add"):
        rows_of(PRESETS["eomt_tiny"]().model, "remove")


@pytest.mark.parametrize(
    ("row", "story"),
    [
        *((row.name, "add") for row in ROWS),
        *((row.name, "remove") for row in REMOVED_ROWS[1:-1]),  # the last is also one of the other story
    ],
)
def test_every_row_trains(row: str, story: Story) -> None:
    from training.small_runs import small_task

    from unimask.data.loader import training_loader
    from unimask.losses.build import build_criterion
    from unimask.models.build import build_model
    from unimask.training.step import uniform_source

    experiment = row_experiment(override(BASE, {"data.crop": [64, 64]}), row, story)
    torch.manual_seed(0)
    model = build_model(experiment.model, 6)
    loader = training_loader(
        small_task().training,
        experiment.data,
        mean=(0.0, 0.0, 0.0),
        std=(255.0, 255.0, 255.0),
        batch_size=2,
        seed=0,
        start_step=0,
        rank=0,
        world=1,
        workers=0,
        pin_memory=False,
    )
    batch = next(loader)
    loader.close()
    losses = build_criterion(experiment.losses, 6)(
        model(batch.images.pixels), batch.targets, uniform_source(0, torch.device("cpu"))
    )
    losses.total.backward()
    assert losses.total.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name


def test_impossible_rows_and_budgets() -> None:
    with pytest.raises(
        ConfigError,
        match="no such row; is it masked_attention or cross_attention_first\\? there are: maskformer, masked",
    ):
        row_experiment(BASE, "attention")
    with pytest.raises(ConfigError, match="the whole model is a Mask2Former"):
        row_experiment(PRESETS["maskformer_ade20k_semantic_resnet50"](), "points")
    with pytest.raises(ConfigError, match="budget: steps of each row"):
        with_budget(BASE, 0)
    assert (with_budget(BASE, 41).training.evaluate_every, with_budget(BASE, 41).training.steps) == (11, 41)


class Rows:
    """Stands in for the processes of the rows: what each leaves, and its exit code."""

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}
        self.started: list[str] = []

    def __call__(self, folder: Path) -> int:
        self.started.append(folder.name)
        request = json.loads((folder / "request.json").read_text())
        assert request["experiment"]["training"]["steps"] == 40
        code = self.codes.get(folder.name, 0)
        if code == ablation_row.STOPPED:
            raise KeyboardInterrupt
        if code == 0:
            measured = {"completed": True, "memory_of_training": 3 * 2**20, "peak_memory": 2**29}
            (folder / "measured.json").write_text(json.dumps(measured))
            (folder / "error.txt").unlink(missing_ok=True)
            (folder / "run").mkdir(exist_ok=True)
            lines = [
                {"kind": "step", "step": 20, "images_per_second": 8.0},
                {"kind": "evaluation", "step": 20, "values": {"PQ": 0.25, "mIoU": None}},
                {"kind": "evaluation", "step": 40, "values": {"PQ": 0.5, "mIoU": 0.5}},
            ]
            (folder / "run/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return code


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Rows:
    stand_in = Rows()
    monkeypatch.setattr(ablation, "run_in_process", stand_in)
    return stand_in


def test_rows_that_fail_are_named_and_tried_again_and_those_done_are_kept(
    processes: Rows, tmp_path: Path
) -> None:
    processes.codes = {"multi_scale": -9}
    rows, said = ["points", "multi_scale", "maskformer"], []
    results = ablate(BASE, "panoptic", "shapes", tmp_path / "a", rows=rows, device="cpu", message=said.append)
    assert processes.started == ["maskformer", "multi_scale", "points"]  # in the order of the story
    assert [result.completed for result in results] == [True, False, True]
    assert "not enough memory" in results[1].failure
    assert any("failed" in text for text in said)
    assert results[0].curve == ((20, 0.25), (40, 0.5))
    assert results[0].seconds_per_step == pytest.approx(BASE.training.batch_size / 8)
    text = (tmp_path / "a/table.md").read_text()
    assert "| MaskFormer | 0.250 | 0.500 | 0.500 | 3 |" in text
    assert "+ high-resolution features in turn failed: the process was killed" in text
    ET.parse(tmp_path / "a/plot.svg")
    assert json.loads((tmp_path / "a/results.json").read_text())["rows"][2]["name"] == "points"

    processes.codes = {}
    results = ablate(BASE, "panoptic", "shapes", tmp_path / "a", device="cpu", message=said.append)
    assert processes.started[3:] == [row.name for row in ROWS if row.name not in ("maskformer", "points")]
    assert all(result.completed and not result.failure for result in results)
    assert len(collect(tmp_path / "a", "panoptic")) == len(ROWS)


def test_seeds_make_means_and_spreads_beside_what_the_paper_lost(tmp_path: Path) -> None:
    def result(name: str, seed: int, value: float) -> RowResult:
        return RowResult(
            name=name,
            title=name,
            seed=seed,
            completed=True,
            failure="",
            curve=((20, 0.1), (40, value)),
            values={},
            seconds_per_step=0.5 + seed,
            memory=3 * 2**20,
            peak_memory=0,
        )

    results = [result("whole", 0, 0.50), result("whole", 1, 0.60)]
    results += [result("masked_attention", 0, 0.40), result("masked_attention", 1, 0.48)]
    results += [result("points", 0, 0.52)]
    text = table(results, "PQ", TrainingConfig(), {"masked_attention": -4.8, "points": -1.6})
    assert "| row | PQ after 20 | PQ after 40 | points lost | in the paper |" in text
    assert "| whole | 0.100 ± 0.000 | 0.550 ± 0.071 |  |  | 1.000 | 3 |" in text
    # of seed 0: -10, of seed 1: -12
    assert "| masked_attention | 0.100 ± 0.000 | 0.440 ± 0.057 | -11.0 ± 1.4 | -4.8 |" in text
    assert "| points | 0.100 | 0.520 | +2.0 | -1.6 | 0.500 |" in text
    assert "seeds 0, 1, mean and standard deviation" in text
    root = ET.fromstring(plot(results, "PQ", 40))
    assert len([element for element in root.iter() if element.tag.endswith("circle")]) == 5 * 2
    without_whole = table(results[2:], "PQ", TrainingConfig(), {"masked_attention": -4.8})
    assert "| masked_attention | 0.100 ± 0.000 | 0.440 ± 0.057 |  | -4.8 |" in without_whole


def test_the_story_is_told_with_several_seeds(processes: Rows, tmp_path: Path) -> None:
    rows = ["points", "whole"]
    results = ablate(
        BASE,
        "panoptic",
        "shapes",
        tmp_path / "a",
        story="remove",
        seeds=2,
        rows=rows,
        device="cpu",
        message=str,
    )
    assert processes.started == ["whole", "points", "whole_seed1", "points_seed1"]
    known = [(one.name, one.seed) for one in results]
    assert known == [("whole", 0), ("whole", 1), ("points", 0), ("points", 1)]
    request = json.loads((tmp_path / "a/points_seed1/request.json").read_text())
    assert request["experiment"]["training"]["seed"] == 1
    assert request["experiment"]["losses"]["sampling"] == "pixels"
    assert "| full masks instead of points | " in (tmp_path / "a/table.md").read_text()
    with pytest.raises(ConfigError, match="story: 'remove' -> 'add'"):
        ablate(BASE, "panoptic", "shapes", tmp_path / "a", device="cpu", message=str)
    with pytest.raises(ConfigError, match="seeds: must be a whole number of at least 1; got 0"):
        ablate(BASE, "panoptic", "shapes", tmp_path / "b", seeds=0, device="cpu", message=str)


def test_a_stopped_row_stops_the_ablation(processes: Rows, tmp_path: Path) -> None:
    processes.codes = {"masked_attention": ablation_row.STOPPED}
    with pytest.raises(KeyboardInterrupt):
        ablate(BASE, "panoptic", "shapes", tmp_path, device="cpu")
    assert processes.started == ["maskformer", "masked_attention"]
    assert "MaskFormer" in (tmp_path / "table.md").read_text()


def test_folders_and_data_that_do_not_fit(processes: Rows, tmp_path: Path) -> None:
    ablate(BASE, "panoptic", "shapes", tmp_path / "a", rows=["points"], device="cpu")
    for other, task, message in (
        (with_budget(tiny(), 41), "panoptic", "budget: 40 -> 41"),
        (override(BASE, {"training.seed": 3}), "panoptic", "training.seed: 0 -> 3"),
        (BASE, "semantic", "task: 'panoptic' -> 'semantic'"),
    ):
        with pytest.raises(ConfigError, match=message):
            ablate(other, task, "shapes", tmp_path / "a", rows=["points"], device="cpu")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/notes.txt").write_text("mine")
    with pytest.raises(DataError, match="holds other files"):
        ablate(BASE, "panoptic", "shapes", tmp_path / "b", device="cpu")
    with pytest.raises(DataError):
        ablate(BASE, "panoptic", tmp_path / "nowhere", tmp_path / "c", device="cpu")
    assert not (tmp_path / "c").exists()
    assert processes.started == ["points"]


def test_a_process_of_its_own_says_how_it_ends(tmp_path: Path) -> None:
    assert ablation.run_in_process(tmp_path) == ablation_row.BROKEN
    assert "request.json" in (tmp_path / "error.txt").read_text()


def test_a_real_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation, "run_in_process", ablation_row.main)
    small = override(
        with_budget(tiny(), 2),
        {"training.evaluate_every": 0, "training.log_every": 1, "training.batch_size": 1},
    )
    ablate(small, "panoptic", "shapes", tmp_path, rows=["maskformer"], device="cpu", message=str)
    (result,) = collect(tmp_path, "panoptic")
    assert result.completed, result
    assert result.seconds_per_step > 0
    assert result.peak_memory > result.memory >= 0
    assert (tmp_path / "maskformer/run/model/model.safetensors").is_file()


def test_a_row_says_why_it_fails(tmp_path: Path) -> None:
    from unimask.config.images import experiment_to_dict

    request = {
        "experiment": experiment_to_dict(BASE),
        "task": "panoptic",
        "data": str(tmp_path / "nowhere"),
        "initial": None,
        "device": "cpu",
    }
    (tmp_path / "request.json").write_text(json.dumps(request))
    assert ablation_row.main(tmp_path) == ablation_row.REFUSED
    assert "nowhere" in (tmp_path / "error.txt").read_text()


def test_memory_is_noted_until_the_first_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([5, 7, 100])
    monkeypatch.setattr(ablation_row, "peak_memory", lambda device: next(peaks))
    reporter = ablation_row.MeasuringReporter(SilentReporter(), torch.device("cpu"), 3)
    step = StepReport(
        step=1,
        steps=3,
        loss=1.0,
        terms={},
        learning_rate=0.1,
        speed=1.0,
        unit="images",
        seconds_left=0.0,
        logged=True,
    )
    assert reporter.peak == 3
    reporter.step(step)
    reporter.step(step)
    reporter.evaluating(1, 2)
    reporter.step(step)
    assert reporter.peak == 7


def test_the_peak_of_memory_stays() -> None:
    device, inexact = torch.device("cpu"), 2**22
    assert memory_now(device) > 2**20
    block = torch.ones(2**25)
    after = peak_memory(device)
    assert after > block.numel() * 4
    del block
    assert peak_memory(device) >= after - inexact


def test_reports_of_rows_that_have_nothing_yet() -> None:
    result = RowResult(
        name="points",
        title="+ points & more",
        seed=0,
        completed=False,
        failure="",
        curve=(),
        values={},
        seconds_per_step=0.0,
        memory=0,
        peak_memory=0,
    )
    assert "(not finished)" in table([result], "PQ", TrainingConfig())
    ET.fromstring(plot([result], "PQ", 10))
    ET.fromstring(plot([], "PQ", 10))
