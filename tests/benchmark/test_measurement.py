"""Tables, how sides are compared, and a whole measurement of tiny models."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli.command_line import save_tiny_model

from unimask.benchmark import measure as measuring
from unimask.benchmark.measure import (
    Conditions,
    ModelMeasurement,
    bench,
    measure,
    rows_of,
    to_plain,
    to_table,
)
from unimask.benchmark.memory import NOT_DONE, Peak
from unimask.benchmark.sides import STAGES, Logits, UnimaskSide, agreement
from unimask.benchmark.tables import Table, shown, to_markdown
from unimask.benchmark.tables import to_plain as plain_table
from unimask.benchmark.timing import TOTAL, Rounds, Stopwatch
from unimask.checkpoints.images import ModelFile, load_model_file, save_model
from unimask.config.data import ShortSide
from unimask.config.models import ModelConfig, PixelDecoderConfig, QueryDecoderConfig
from unimask.data.formats.shapes import CATEGORIES
from unimask.errors import ConfigError, WeightsError
from unimask.models.build import build_model
from unimask.presets.own_data import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("measured") / "model")


@pytest.fixture
def without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaks are made up: a process of its own takes seconds to start, and has tests of its own."""
    peaks = iter([Peak(before=1.0, highest=1.0 + 2**20 * size) for size in (40, 10, 30)])
    monkeypatch.setattr(measuring, "peak_in_fresh_process", lambda *_: next(peaks))


def test_tables() -> None:
    table = Table(
        title="Speed",
        about="As measured.",
        columns=("who", "ms", "share"),
        rows=(("a|b", 1234.5, 0.5), ("c", 7, math.nan)),
    )
    assert to_markdown(table).splitlines() == [
        "### Speed",
        "",
        "As measured.",
        "",
        "| who | ms | share |",
        "| --- | --: | --: |",
        r"| a\|b | 1234 | 0.5 |",
        "| c | 7 | - |",
    ]
    assert plain_table(table)["rows"] == [["a|b", 1234.5, 0.5], ["c", 7, None]]
    assert [shown(cell) for cell in (0.0, 0.012345, 99.96, -123.4, 3, "x")] == [
        "0", "0.0123", "100", "-123", "3", "x",
    ]  # fmt: skip


def logits(classes: list[list[float]], masks: list[list[float]]) -> Logits:
    return Logits(classes=torch.tensor(classes).float(), masks=torch.tensor(masks).float()[:, None])


def test_agreement_counts_masks_of_queries_that_found_something() -> None:
    theirs = logits([[2, 0, 1], [0, 0, 3], [0, 2, 1]], [[1, 1, -1, -1], [1, 1, 1, 1], [-1, -1, -1, -1]])
    mine = logits([[2, 0, 1], [0, 0, 3.5], [0, 2, 1]], [[1, 1, 1, -1], [-1, 1, 1, 1], [-1, -1, -1, -1]])
    found = agreement(mine, theirs)
    assert (found.class_difference, found.mask_difference) == (0.5, 2.0)
    assert found.mask_iou == pytest.approx((2 / 3 + 1) / 2)  # the second found nothing; empty masks agree
    nothing = replace(theirs, classes=torch.tensor([[0.0, 0, 1]] * 3))
    assert agreement(mine, nothing).mask_iou == pytest.approx((2 / 3 + 3 / 4 + 1) / 3)


def test_rows_compare_with_the_first_side(model: Path) -> None:
    times = {"first": (0.4, 0.6), "second": (0.1, 0.2)}
    measured = ModelMeasurement(
        sides=("first", "second"),
        rounds=Rounds(
            seconds={name: dict.fromkeys((*STAGES, TOTAL), numbers) for name, numbers in times.items()}
        ),
        agreements={"second": agreement(logits([[1, 0.0]], [[1.0]]), logits([[1, 0.25]], [[3.0]]))},
        peaks={"first": Peak(before=1.0, highest=1.0 + 2**23), "second": NOT_DONE},
        segments={"first": 3, "second": 4},
    )
    first, second = rows_of(measured)
    assert first[:2] == ("first", "500 / 590")
    assert first[6:] == (8.0, "", "", "", "", "", "")
    assert second[7:] == ("3.50", "3.50", "-", "2.5e-01", "2.0e+00", "1.0000")
    assert len(to_table("A", measured).columns) == len(first)
    assert measuring.plain_side(measured, "second")["peak_bytes_above"] is None


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_a_pipeline_finds_what_the_segmenter_finds(model: Path, task: str) -> None:
    pipeline = UnimaskSide(folder=model, task=task).load("cpu")
    image = measuring.example_picture((64, 96))
    watch = Stopwatch(torch.device("cpu"))
    count = pipeline.run(image, watch)
    assert tuple(watch.seconds) == STAGES
    assert count == len(next(pipeline.segmenter.find([image], task))) > 0
    said = pipeline.logits(torch.zeros(1, 3, 64, 96))
    assert said.classes.shape == (13, len(load_model_file(model).categories) + 1)
    assert said.masks.shape == (13, 16, 24)


def test_the_picture_is_seen_whole_and_unresized(model: Path, tmp_path: Path) -> None:
    about = load_model_file(model)
    data = replace(about.experiment.data, resize=ShortSide(size=32, longest=64))
    torch.manual_seed(0)
    changed = replace(about, experiment=replace(about.experiment, data=data))
    save_model(tmp_path / "m", build_model(about.experiment.model, 3), changed)
    pipeline = UnimaskSide(folder=tmp_path / "m", task="semantic").load("cpu")
    seen: list[tuple[int, ...]] = []
    pipeline.segmenter.model.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    pipeline.run(measuring.example_picture((96, 128)), Stopwatch(torch.device("cpu")))
    assert seen == [(1, 3, 96, 128)]


def test_a_bench_in_two_precisions(model: Path, without_processes: None) -> None:
    found = bench(model, size=(64, 96), device="cpu", precision="bf16-mixed", threads=1, rounds=2)
    assert found.measured.sides == ("unimask", "unimask bf16-mixed")
    plain = to_plain(found)
    assert (plain["size"], plain["threads"], plain["device"]) == ([64, 96], 1, "cpu")
    assert plain["sides"]["unimask"]["difference"] is None
    second = plain["sides"]["unimask bf16-mixed"]
    assert second["peak_bytes_above"] == 10 * 2**20
    assert second["difference"]["class_logits"] < 0.5
    assert second["difference"]["mask_iou"] > 0.5
    assert {len(times) for times in second["seconds"].values()} == {2}
    assert "memory" in to_markdown(to_table("both", found.measured))


def test_the_peak_in_a_process_of_its_own(model: Path) -> None:
    found = measure(
        [UnimaskSide(folder=model, task="panoptic")],
        Conditions(size=(256, 384), device="cpu", threads=1, rounds=1, warm_up=0),
    )
    assert 2 < found.peaks["unimask"].above / 2**20 < 200


def test_rounds_of_several_processes(model: Path) -> None:
    found = measure(
        [UnimaskSide(folder=model, task="panoptic")],
        Conditions(size=(64, 96), device="cpu", threads=1, rounds=2, warm_up=0, processes=2),
    )
    stages = found.rounds.seconds["unimask"]
    assert set(stages) == {"pre", "forward", "post", "encode", "total"}
    assert all(len(seconds) == 4 and min(seconds) > 0 for seconds in stages.values())


def save_resnet(folder: Path, octaves: int = 0) -> Path:
    """A model that transformers has, but for its `octaves`."""
    experiment = tiny()
    config = ModelConfig(
        backbone=replace(experiment.model.backbone, name="resnet50"),
        pixel_decoder=PixelDecoderConfig(
            channels=64, mask_channels=32, layers=2, feedforward_channels=96, position_octaves=octaves
        ),
        query_decoder=QueryDecoderConfig(queries=11, channels=64, feedforward_channels=128, layers=3),
    )
    torch.manual_seed(0)
    about = ModelFile(
        experiment=replace(experiment, model=config),
        task="panoptic",
        categories=CATEGORIES,
        licence="CC0-1.0",
        provenance="-",
    )
    save_model(folder, build_model(config, len(CATEGORIES)), about)
    return folder


def test_beside_transformers(tmp_path: Path, without_processes: None) -> None:
    folder = save_resnet(tmp_path / "resnet")
    found = bench(folder, size=(64, 96), device="cpu", threads=1, rounds=1, compare="transformers").measured
    assert found.sides == ("transformers", "unimask")
    close = found.agreements["unimask"]
    assert close.class_difference < 1e-4
    assert close.mask_difference < 1e-3
    assert close.mask_iou > 0.99
    assert rows_of(found)[1][9] == "0.25"


def test_what_cannot_be_measured(model: Path, tmp_path: Path) -> None:
    def refused(
        kind: type[Exception], folder: Path = model, size: tuple[int, int] = (64, 96), **given
    ) -> str:
        with pytest.raises(kind) as caught:
            bench(folder, size=size, device="cpu", **given)
        return str(caught.value)

    assert "multiples of 32" in refused(ConfigError, size=(64, 97))
    assert "threads: must be at least 1" in refused(ConfigError, threads=-1)
    assert "rounds: must be at least 1" in refused(ConfigError, rounds=0)
    assert "'keras' is not known" in refused(ConfigError, compare="keras")
    assert "cannot be compared with transformers" in refused(WeightsError, compare="transformers")
    octaves = save_resnet(tmp_path / "octaves", octaves=3)
    assert "position_octaves is 3" in refused(WeightsError, octaves, compare="transformers")


def test_without_transformers(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="transformers is not installed; pip install transformers"):
        bench(model, size=(64, 96), device="cpu", compare="transformers")
