"""A small made-up zoo: random weights in the original's format, made data, numbers measured another way."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.command_line import refused, unimask
from data.dataset_files import annotation, save_json, square
from PIL import Image

from unimask.checkpoints.images import ModelFile, save_model
from unimask.config.images import Experiment
from unimask.config.overrides import override
from unimask.conversion.run import convert
from unimask.data.category_tables import load_categories
from unimask.data.open import open_dataset
from unimask.errors import ConfigError, DataError, WeightsError
from unimask.inference.evaluation import evaluate
from unimask.inference.segmenter import Segmenter
from unimask.models.build import build_model
from unimask.presets import PRESETS
from unimask.reproduction.run import ReproducedMeasure, check_digest
from unimask.reproduction.table import read_zoo

SETTINGS = {
    "data.resize": {"kind": "short_side", "size": 64, "longest": 96},
    "postprocess.object_threshold": 0.0,
    "postprocess.overlap_threshold": 0.0,
    "data.background": False,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Instances of Cityscapes' things in COCO's format: noise, and squares of all categories in it."""
    folder = tmp_path_factory.mktemp("zoo_data")
    (folder / "images").mkdir()
    images, annotations = [], []
    noise = np.random.default_rng(1)
    for number in range(2):
        pixels = noise.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"p{number}.png")
        images.append({"id": number, "file_name": f"p{number}.png", "height": 48, "width": 64})
        for place in range(8):
            shape = [square(16 * (place % 4), 24 * (place // 4), 16)]
            annotations.append(annotation(10 * number + place + 1, number, shape, place + 1))
    names = load_categories("cityscapes_instance").names
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    save_json(folder / "instances_val.json", content)
    return folder


@pytest.fixture(scope="module")
def zoo(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with a row whose numbers are right, and one whose number is not."""
    folder = tmp_path_factory.mktemp("zoo")
    small = {
        "model.query_decoder.layers": 1,
        "model.query_decoder.queries": 9,
        "model.pixel_decoder.layers": 1,
    }
    experiment = override(Experiment(), small | SETTINGS)
    categories = load_categories("cityscapes_instance")
    torch.manual_seed(5)
    model = build_model(experiment.model, len(categories))
    for parameter in (model.query_decoder.query_features.weight, *model.query_decoder.heads.parameters()):
        parameter.data *= 3  # so that queries differ
    about = ModelFile(
        experiment=experiment, task="instance", categories=categories, licence="none", provenance="random"
    )
    save_model(folder / "ours", model, about)
    convert(folder / "ours", folder / "model_final.pkl", to="original")
    segmenter = Segmenter(model, about)  # never converted
    published = {}
    for task, names in (("semantic", ("mIoU", "pixel_accuracy")), ("panoptic", ("mIoU",))):
        values = evaluate(segmenter, open_dataset(data, "val", task, False), task, batch_size=3).values
        published[task] = {name: round(100 * values[name], 2) for name in names}
    digest = hashlib.md5((folder / "model_final.pkl").read_bytes()).hexdigest()[:6]
    right = {"name": "small-right", "published": published, "digest": f"md5:{digest}"}
    shifted = {**published, "panoptic": {"mIoU": published["panoptic"]["mIoU"] + 3}}
    wrong = {"name": "small-wrong", "published": shifted}
    shared = {
        "paper": "none",
        "model": "Mask2Former, small",
        "weights": "https://example.org/model_final.pkl",
        "licence": "CC0-1.0",
        "licence_source": "made up",
        "data": "noise",
        "source": "this test",
        "settings": SETTINGS,
        "tolerance": 0.02,
    }
    return save_json(folder / "zoo.json", {"defaults": {"small": shared}, "rows": [right, wrong]})


def test_a_row_is_reproduced_or_not_measure_by_measure(zoo: Path, data: Path, tmp_path: Path) -> None:
    given = ("--table", zoo, "--data", data, "--weights", zoo.parent / "model_final.pkl", "--device", "cpu")
    outcome = unimask("reproduce", "small-right", *given, "--output", tmp_path / "out" / "r.json")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("reproduced") == 3
    assert "not reproduced" not in outcome.out
    kept = json.loads((tmp_path / "out" / "r.json").read_text())
    assert kept["reproduced"]
    assert [one["name"] for one in kept["measures"]] == ["mIoU", "pixel_accuracy", "mIoU"]
    assert max(one["found"] for one in kept["measures"]) > 0  # something was measured
    outcome = unimask("reproduce", "small-wrong", *given, "--json")
    assert outcome.code == 3
    found = outcome.json()
    assert not found["reproduced"]
    assert [one["reproduced"] for one in found["measures"]] == [True, True, False]


def test_what_a_row_needs_is_said_before_anything_is_done(zoo: Path, data: Path, tmp_path: Path) -> None:
    shown = unimask("reproduce", "small-right", "--table", zoo).out
    for part in (
        "weights: https://example.org/model_final.pkl",
        "licence: CC0-1.0; made up",
        "data: noise",
        "tolerance: 0.02",
        "to reproduce: unimask reproduce small-right --data DATA --weights model_final.pkl",
    ):
        assert part in shown
    given = ("reproduce", "small-right", "--table", zoo, "--data", data, "--device", "cpu")
    assert "must be downloaded first; then give it with --weights model_final.pkl" in refused(*given)
    (tmp_path / "model_final.pkl").write_bytes(b"half")
    message = refused(*given, "--weights", tmp_path / "model_final.pkl")
    assert "is not the published file, or not all of it: its md5 is" in message
    assert "begins the names of 2 rows" in refused("reproduce", "small", *given[2:])
    assert "no row has this name; is it small-right" in refused("reproduce", "small-rite", "--table", zoo)


def test_the_published_zoos_are_listed() -> None:
    outcome = unimask("reproduce")
    assert outcome.code == 0
    for part in (
        "mask2former-coco-panoptic-r50",
        "detr-coco-detection-r101-dc5",
        "PQ 51.9",
        "ADE20K mIoU 57.7",
    ):
        assert part in outcome.out
    listed = unimask("reproduce", "maskformer-coco", "--json").json()
    assert [row["name"] for row in listed["rows"]] == [
        f"maskformer-coco-panoptic-{backbone}"
        for backbone in ("r50", "r101", "swin-t", "swin-s", "swin-b", "swin-l")
    ]


def test_every_published_row_can_be_done() -> None:
    zoo = read_zoo()
    assert len(zoo.rows) == 87
    assert all(row.published and row.licence and row.licence_source and row.data for row in zoo.rows)
    for row in zoo.rows:
        experiment = PRESETS[row.preset]() if row.preset else Experiment()
        override(experiment, row.settings)  # all of them exist
        kind, _, start = row.digest.partition(":")
        assert start in row.weights
        assert (kind in ("md5", "sha256")) == ("://" in row.weights)
        assert {"AP", "PQ", "mIoU"} >= {name for numbers in row.published.values() for name in numbers}
        assert bool(row.base) == row.name.endswith("dinov3")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "twice"}, "two rows are called twice"),
        ({"published": {"counting": {"n": 1.0}}}, "published"),
        ({"weight": "typo"}, "weight: no such setting"),
    ],
)
def test_a_table_that_is_wrong_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    row = {
        "name": "twice",
        "paper": "",
        "model": "",
        "weights": "a/b",
        "licence": "",
        "data": "",
        "published": {},
        "source": "",
    }
    path = save_json(tmp_path / "zoo.json", {"rows": [row, {**row, "name": "other", **change}]})
    with pytest.raises(ConfigError, match=message):
        read_zoo(path)
    path.write_text("[")
    with pytest.raises(DataError, match="cannot be read as a table of models"):
        read_zoo(path)


def test_nothing_measured_is_not_reproduced(tmp_path: Path) -> None:
    for found, reproduced in ((50.1, True), (50.3, False), (float("nan"), False)):
        measure = ReproducedMeasure(task="panoptic", name="PQ", published=50.0, found=found, tolerance=0.2)
        assert measure.reproduced == reproduced
    file = tmp_path / "weights.pth"
    file.write_bytes(b"weights")
    check_digest(file, "sha256:" + hashlib.sha256(b"weights").hexdigest()[:8])
    check_digest(file, "")
    with pytest.raises(WeightsError, match=r"weights\.pth: is not the published file"):
        check_digest(file, "sha256:00000000")
