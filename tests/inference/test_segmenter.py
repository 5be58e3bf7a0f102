import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

import unimask
from unimask.checkpoints.images import ModelFile, save_model
from unimask.config.data import DataConfig, ShortSide
from unimask.config.images import Experiment, PostprocessConfig
from unimask.config.models import BackboneConfig, ModelConfig, PixelDecoderConfig, QueryDecoderConfig
from unimask.config.tasks import TASKS, Task, check_task
from unimask.errors import ConfigError, DataError, WeightsError
from unimask.inference.loading import load
from unimask.inference.segmenter import Segmenter
from unimask.machine import find_device
from unimask.models.build import build_model
from unimask.models.mask_classifier import MaskClassifier
from unimask.results.result import Result
from unimask.structures import Categories, Segments

CATEGORIES = Categories(
    names=("cell", "fibre", "ground"),
    is_thing=(True, True, False),
    file_ids=(3, 5, 8),
    colors=((40, 90, 230), (240, 80, 20), (40, 160, 60)),
)
EXPERIMENT = Experiment(
    model=ModelConfig(
        backbone=BackboneConfig(name="resnet18"),
        pixel_decoder=PixelDecoderConfig(
            channels=32, mask_channels=16, layers=1, heads=4, feedforward_channels=32
        ),
        query_decoder=QueryDecoderConfig(queries=9, channels=32, heads=4, feedforward_channels=32, layers=2),
    ),
    data=DataConfig(resize=ShortSide(size=64, longest=96)),
    postprocess=PostprocessConfig(object_threshold=0.2, overlap_threshold=0.1),
)
MODEL_FILE = ModelFile(
    experiment=EXPERIMENT, task="panoptic", categories=CATEGORIES, licence="MIT", provenance="random"
)
SIZES = [(71, 83), (64, 64), (83, 71), (142, 166), (53, 91), (71, 84)]


def random_model() -> MaskClassifier:
    torch.manual_seed(2)
    model = build_model(EXPERIMENT.model, len(CATEGORIES))
    decoder = model.query_decoder
    for parameter in (
        decoder.query_features.weight,
        decoder.query_positions.weight,
        *decoder.heads.parameters(),
    ):
        parameter.data *= 3  # or all queries say the same
    return model


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(random_model(), MODEL_FILE)


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    generator = np.random.default_rng(5)
    coarse = [generator.integers(0, 256, (5, 7, 3), dtype=np.uint8) for _ in SIZES]
    return [np.array(Image.fromarray(c).resize((w, h))) for c, (h, w) in zip(coarse, SIZES)]


def same(one: Segments, other: Segments) -> bool:
    return (
        torch.equal(one.layers, other.layers)
        and torch.equal(one.labels, other.labels)
        and torch.allclose(one.scores, other.scores, atol=1e-5)
    )


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_of_different_sizes_is_each_picture_alone(
    segmenter: Segmenter, pictures: list[np.ndarray], task: Task
):
    alone = [segmenter.predict(picture, task) for picture in pictures]
    assert sum(len(result.segments) for result in alone) > len(pictures)
    for batch_size in (1, 3, 100):
        together = segmenter.predict(pictures, task, batch_size=batch_size)
        assert [(result.height, result.width) for result in together] == SIZES
        assert all(same(one.prediction, other.prediction) for one, other in zip(alone, together))


def test_any_kind_of_picture(segmenter: Segmenter, pictures: list[np.ndarray], tmp_path: Path):
    path = tmp_path / "a picture.png"
    Image.fromarray(pictures[0]).save(path)
    kinds = [
        str(path),
        path,
        Image.fromarray(pictures[0]),
        pictures[0],
        torch.from_numpy(pictures[0]).permute(2, 0, 1),
    ]
    results = segmenter.predict(kinds, "semantic")
    assert all(same(result.prediction, results[0].prediction) for result in results)
    assert [result.name for result in results] == [
        "a picture",
        "a picture",
        "image_2",
        "image_3",
        "image_4",
    ]
    assert isinstance(segmenter.predict(path), Result)
    assert segmenter.predict([]) == []
    assert len(segmenter.predict((path,))) == 1


def test_a_picture_of_one_pixel_and_a_long_thin_one(segmenter: Segmenter):
    for size in ((1, 1), (1500, 2)):
        for task in TASKS:
            result = segmenter.predict(np.zeros((*size, 3), dtype=np.uint8), task)
            assert (result.height, result.width) == size


def test_bad_input(segmenter: Segmenter, tmp_path: Path):
    with pytest.raises(DataError, match=r"missing\.png"):
        segmenter.predict(tmp_path / "missing.png")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken\.png"):
        segmenter.predict([broken])
    with pytest.raises(DataError):
        segmenter.predict(np.zeros((4, 5, 7), dtype=np.uint8))
    with pytest.raises(
        ConfigError, match="'boxes' does not exist; is it detection\\? there are: panoptic, instance"
    ):
        check_task("boxes")


def test_a_threshold_replaces_the_models(segmenter: Segmenter, pictures: list[np.ndarray]):
    for task in ("panoptic", "instance"):
        many = segmenter.predict(pictures[0], task, threshold=0.0)
        few = segmenter.predict(pictures[0], task, threshold=0.8)
        assert len(few.prediction) < len(many.prediction)
        assert (few.prediction.scores >= 0.8).all()
    assert len(segmenter.predict(pictures[0], "panoptic", threshold=1.0).segments) == 0
    one, other = (segmenter.predict(pictures[0], "semantic", threshold=t) for t in (None, 1.0))
    assert same(one.prediction, other.prediction)


def test_load_reads_a_folder(segmenter: Segmenter, pictures: list[np.ndarray], tmp_path: Path):
    save_model(tmp_path / "model", random_model(), MODEL_FILE)
    loaded = load(tmp_path / "model", device="cpu")
    assert loaded.categories == CATEGORIES
    expected = segmenter.predict(pictures[1], "panoptic")
    assert same(loaded.predict(pictures[1], "panoptic").prediction, expected.prediction)
    half = load(str(tmp_path / "model"), device="cpu", precision="bf16-mixed")
    assert half.predict(pictures[1]).prediction.scores.dtype == torch.float32


def test_load_names_what_is_wrong(tmp_path: Path, segmenter: Segmenter):
    with pytest.raises(WeightsError, match="nowhere"):
        load("nowhere")
    with pytest.raises(ConfigError, match="precision"):
        Segmenter(segmenter.model, MODEL_FILE, precision="16")
    for device in ("gpu", "cuda:99"):
        with pytest.raises(ConfigError, match=f"device: '{device}'"):
            find_device(device)
    assert find_device("auto").type in ("cuda", "mps", "cpu")


def example(task: Task) -> Result:
    """Three segments, the second without pixels; instances 1 and 3 overlap."""
    layers = torch.zeros((2 if task == "instance" else 1, 37, 53), dtype=torch.int16)
    layers[0, 3:20, 5:30] = 1
    layers[-1, 10:31, 25:50] = 3
    layers[-1, 30, 52] = 3
    return Result(
        task=task,
        name="leaf",
        image=torch.randint(
            0, 256, (3, 37, 53), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
        ),
        prediction=Segments(
            layers=layers,
            labels=torch.tensor([1, 0, 2 if task != "instance" else 0]),
            scores=torch.tensor([0.9, 0.8, 0.7]),
            is_crowd=torch.zeros(3, dtype=torch.bool),
        ),
        categories=CATEGORIES,
    )


def test_segments_of_a_result():
    result = example("instance")
    first, second = result.segments
    assert (first.id, first.category_id, first.category, first.score) == (1, 5, "fibre", 0.9)
    assert (second.id, second.category_id, second.category, second.score) == (3, 3, "cell", 0.7)
    assert (first.area, first.bbox) == (17 * 25, (5, 3, 25, 17))
    assert (second.area, second.bbox) == (21 * 25 + 1, (25, 10, 28, 21))
    assert result.segments is result.segments  # made once


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools
@pytest.mark.parametrize("task", TASKS)
def test_run_lengths_are_those_of_pycocotools(task: Task):
    result = example(task)
    masks = result.prediction.masks().numpy()
    for segment, encoded in zip(result.segments, result.run_lengths, strict=True):
        mask = masks[segment.id - 1]
        assert (coco_mask.decode(encoded) == mask).all()
        expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert encoded == {"size": [37, 53], "counts": expected["counts"].decode()}
        assert coco_mask.toBbox(encoded).tolist() == list(segment.bbox)
        assert coco_mask.area(encoded) == segment.area


def test_saved_files_of_a_panoptic_result(tmp_path: Path):
    result = example("panoptic")
    paths = result.save(tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["leaf.overlay.png", "leaf.segments.png", "leaf.json"]
    assert sorted(path.name for path in (tmp_path / "new" / "folder").glob("[!.]*")) == sorted(
        p.name for p in paths
    )
    assert np.asarray(Image.open(paths[0])).shape == (37, 53, 3)
    channels = np.asarray(Image.open(paths[1])).astype(int)
    ids = channels[..., 0] + 256 * channels[..., 1] + 65536 * channels[..., 2]
    written = json.loads(paths[2].read_text())
    assert {key: written[key] for key in ("task", "height", "width")} == {
        "task": "panoptic",
        "height": 37,
        "width": 53,
    }
    assert [category["id"] for category in written["categories"]] == [3, 5, 8]
    found, counts = np.unique(ids[ids > 0], return_counts=True)
    assert dict(zip(found.tolist(), counts.tolist())) == {s["id"]: s["area"] for s in written["segments"]}
    assert all(
        list(segment) == ["id", "category_id", "category", "score", "area", "bbox"]
        for segment in written["segments"]
    )


def test_saved_files_of_an_instance_result(tmp_path: Path):
    example("panoptic").save(tmp_path, "x")
    paths = example("instance").save(tmp_path, "x")
    assert (
        sorted(path.name for path in tmp_path.glob("[!.]*"))
        == ["x.json", "x.overlay.png"]
        == sorted(p.name for p in paths)
    )
    written = json.loads((tmp_path / "x.json").read_text())
    assert written["task"] == "instance"
    areas = [coco_mask.area(segment["segmentation"]) for segment in written["segments"]]
    assert areas == [segment["area"] for segment in written["segments"]]


def test_large_ids_in_a_panoptic_png():
    layers = torch.arange(1, 301, dtype=torch.int16).reshape(1, 15, 20)
    result = Result(
        task="panoptic",
        name="many",
        image=torch.zeros((3, 15, 20), dtype=torch.uint8),
        prediction=Segments(
            layers=layers,
            labels=torch.zeros(300, dtype=torch.int64),
            scores=torch.ones(300),
            is_crowd=torch.zeros(300, dtype=torch.bool),
        ),
        categories=CATEGORIES,
    )
    channels = np.asarray(result.to_panoptic_png()).astype(int)
    assert channels[-1, -1].tolist() == [300 - 256, 1, 0]
    assert (channels[..., 0] + 256 * channels[..., 1] == layers[0].numpy()).all()
    assert len(result.segments) == 300


def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    example("panoptic").save(tmp_path, "x")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fails(self: Result) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Result, "to_panoptic_png", fails)
    with pytest.raises(DataError, match="No space left"):
        example("semantic").save(tmp_path, "x")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_names_that_are_no_names(tmp_path: Path):
    for name in ("../x", "a/b", "..", "."):
        with pytest.raises(DataError, match="is not a name"):
            example("panoptic").save(tmp_path, name)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        example("panoptic").save(blocked)


def test_coco_records(tmp_path: Path):
    instances = example("instance").to_coco(image_id=17)
    assert [record["image_id"] for record in instances] == [17, 17]
    assert json.loads(json.dumps(instances)) == instances
    assert set(instances[0]) == {"image_id", "category_id", "bbox", "area", "score", "segmentation"}
    infos = example("panoptic").to_coco()
    assert [info["id"] for info in infos] == [1, 3]
    assert set(infos[0]) == {"id", "category_id", "bbox", "area", "iscrowd"}
    with pytest.raises(ValueError, match="overlap"):
        example("instance").to_panoptic_png()


def test_plots_have_the_size_of_the_picture():
    for task in TASKS:
        assert example(task).plot().size == (53, 37)


def test_public_names_are_there_and_cost_nothing_until_used():
    assert all(hasattr(unimask, name) for name in unimask.__all__)
    assert unimask.load is load
    assert set(unimask.__all__) <= set(dir(unimask))
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        unimask.lode  # noqa: B018
    code = "import sys, unimask; assert 'torch' not in sys.modules; print(unimask.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == unimask.__version__


def test_a_licence_without_commercial_use_is_told_when_weights_load(caplog: pytest.LogCaptureFixture) -> None:
    load("street", device="cpu")
    assert [record.getMessage() for record in caplog.records] == [
        "street: these weights are for non-commercial use only (CC-BY-NC-4.0)"
    ]
    caplog.clear()
    load("nuclei", device="cpu")
    assert not caplog.records
