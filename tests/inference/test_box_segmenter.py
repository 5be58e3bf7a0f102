"""A loaded DETR: boxes and panoptic segments of pictures."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from unimask.checkpoints.images import ModelFile
from unimask.config.data import Tiles
from unimask.config.images import PostprocessConfig
from unimask.config.models import BackboneConfig, DetrConfig
from unimask.errors import ConfigError, DataError
from unimask.inference.segmenter import Segmenter
from unimask.models.build import build_model
from unimask.presets.detr import detr_tiny
from unimask.results.found import save_result, text_writer
from unimask.results.result import Result
from unimask.structures import Categories

CATEGORIES = Categories(
    names=("cat", "dog", "sky"),
    is_thing=(True, True, False),
    file_ids=(4, 9, 2),
    colors=((200, 0, 0), (0, 0, 200), (0, 200, 0)),
)


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    torch.manual_seed(5)
    config = DetrConfig(
        backbone=BackboneConfig(name="test_resnet"),
        channels=128,
        feedforward_channels=64,
        encoder_layers=1,
        decoder_layers=1,
        queries=7,
        mask_head=True,
    )
    experiment = replace(
        detr_tiny(), model=config, postprocess=PostprocessConfig(object_threshold=0.0, instance_threshold=0.0)
    )
    model = build_model(config, len(CATEGORIES))
    about = ModelFile(
        experiment=experiment, task="detection", categories=CATEGORIES, licence="CC0-1.0", provenance="random"
    )
    return Segmenter(model, about)


def pictures() -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((50, 70), (70, 50), (50, 70))]


def test_boxes_of_several_pictures_are_those_of_each_alone(segmenter: Segmenter) -> None:
    together = segmenter.predict(pictures(), task="detection")
    for result, image in zip(together, pictures(), strict=True):
        alone = segmenter.predict(image, task="detection")
        assert (result.height, result.width) == image.shape[:2]
        torch.testing.assert_close(result.prediction.boxes, alone.prediction.boxes, atol=1e-3, rtol=1e-4)
        assert len(result.boxes) == 7


def test_panoptic_segments_cover_the_picture(segmenter: Segmenter) -> None:
    result = segmenter.predict(pictures()[0], task="panoptic")
    assert isinstance(result, Result)
    assert result.prediction.size == (50, 70)
    assert int(result.prediction.areas().sum()) == 50 * 70


def test_results_are_written_and_fit_coco(segmenter: Segmenter, tmp_path: Path) -> None:
    result = segmenter.predict(pictures()[1], task="detection", threshold=0.1)
    save_result(tmp_path, "a", {"a.segments.png": text_writer("of an earlier result")})
    names = sorted(path.name for path in result.save(tmp_path, "a"))
    assert names == ["a.json", "a.overlay.png"]
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == names
    stored = json.loads((tmp_path / "a.json").read_text())
    assert (stored["task"], stored["height"], stored["width"]) == ("detection", 70, 50)
    assert [category["id"] for category in stored["categories"]] == [4, 9, 2]
    for box, record in zip(result, result.to_coco(image_id=17), strict=True):
        assert record["image_id"] == 17
        assert record["bbox"] == list(box.bbox)
        assert record["category_id"] in (4, 9, 2)
    with pytest.raises(DataError, match="is not a name"):
        result.save(tmp_path, "a/b")


def test_what_it_cannot_do_is_refused(segmenter: Segmenter) -> None:
    image = pictures()[0]
    with pytest.raises(ConfigError, match="it knows: panoptic, instance, detection"):
        segmenter.predict(image, task="semantic")
    with pytest.raises(ConfigError, match="from 0 to 1"):
        segmenter.predict(image, task="detection", threshold=1.5)
    about = segmenter.model_file
    tiled = replace(about.experiment, data=replace(about.experiment.data, view=Tiles(size=32, overlap=8)))
    other = Segmenter(segmenter.model, replace(about, experiment=tiled))
    with pytest.raises(ConfigError, match=r"data\.view"):
        other.predict(image, task="detection")
