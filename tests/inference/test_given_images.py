"""What users give to `Segmenter.predict`, and what it says about it."""

import logging
import multiprocessing
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.command_line import save_tiny_model, unimask
from PIL import Image

from unimask.config.images import PostprocessConfig
from unimask.errors import ConfigError, DataError
from unimask.inference.loading import load
from unimask.inference.segmenter import Segmenter
from unimask.postprocess.tasks import nearly_full
from unimask.structures import Detections


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def segmenter(model: Path) -> Segmenter:
    return load(model, "cpu")


def pictures(count: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(0)
    for _ in range(count):
        yield generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)


def test_a_generator_is_a_stream_of_results(segmenter: Segmenter) -> None:
    taken = 0

    def images() -> Iterator[np.ndarray]:
        nonlocal taken
        for image in pictures(60):
            taken += 1
            yield image

    expected = segmenter.predict(list(pictures(3)), "panoptic")
    found = segmenter.predict(images(), "panoptic", batch_size=2)
    assert taken == 0
    for one in expected:
        result = next(found)
        assert result.name == one.name
        assert torch.equal(result.image, one.image)
        assert (result.prediction.layers != one.prediction.layers).float().mean() < 0.01
    assert taken < 20  # of 60: a few batches ahead
    with pytest.raises(ConfigError, match="threshold"):
        segmenter.predict(images(), threshold=2.0)  # at once, not with the first image


def test_every_way_to_give_an_image_gives_one_result(segmenter: Segmenter, tmp_path: Path) -> None:
    (pixels,) = pictures(1)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = segmenter.predict(tmp_path / "a.png").prediction.layers
    with (tmp_path / "a.png").open("rb") as stream:
        for image in (stream, (tmp_path / "a.png").read_bytes(), Image.open(tmp_path / "a.png")):
            assert torch.equal(segmenter.predict(image).prediction.layers, expected)
    bgr = segmenter.predict(np.ascontiguousarray(pixels[..., ::-1]), channels="bgr")
    assert torch.equal(bgr.prediction.layers, expected)


def test_what_is_no_image_is_one_sentence(segmenter: Segmenter) -> None:
    for image in (None, 3, [None], iter([None])):
        with pytest.raises(DataError, match="image: is "):
            list(segmenter.predict(image))


def test_a_list_has_one_depth_and_a_stream_that_of_its_first_image(
    segmenter: Segmenter, caplog: pytest.LogCaptureFixture
) -> None:
    dark, bright = np.full((40, 50), 900, np.uint16), np.full((40, 50), 9000, np.uint16)
    with caplog.at_level(logging.WARNING):
        both = segmenter.predict([dark, bright])
    assert [int(one.image.max()) for one in both] == [4, 35]
    assert "2 images: images of 16 bits are taken as 16-bit" in caplog.text
    stream = segmenter.predict(iter([dark, bright]), batch_size=1)
    with pytest.raises(DataError, match="has values up to 9000, beyond its depth of 12 bits"):
        list(stream)
    fixed = segmenter.with_reading(depth=16)
    assert [int(one.image.max()) for one in fixed.predict(iter([dark, bright]))] == [4, 35]
    assert fixed.reading.depth == 16
    with pytest.raises(ConfigError, match=r"data\.depth"):
        segmenter.with_reading(depth=17)


def test_a_segmenter_says_its_name_and_goes_to_another_process(segmenter: Segmenter, model: Path) -> None:
    assert repr(segmenter).startswith(f"<Segmenter {model}: masks, ")
    (image,) = pictures(1)
    copy = pickle.loads(pickle.dumps(segmenter))
    assert repr(copy) == repr(segmenter)
    expected = segmenter.predict(image).prediction
    assert torch.equal(copy.predict(image).prediction.layers, expected.layers)


def labels_found(segmenter: Segmenter, image: np.ndarray) -> list[int]:
    """What another process is asked for."""
    found: list[int] = segmenter.predict(image).prediction.labels.tolist()
    return found


def test_a_segmenter_works_in_a_process_that_was_spawned(segmenter: Segmenter) -> None:
    (image,) = pictures(1)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(labels_found, segmenter, image).result(240)
    assert found == labels_found(segmenter, image)


def test_a_view_that_is_full_is_said() -> None:
    def found(count: int) -> Detections:
        return Detections(
            boxes=torch.zeros(count, 4),
            labels=torch.zeros(count, dtype=torch.int64),
            scores=torch.full((count,), 0.9),
            areas=torch.zeros(count),
            is_crowd=torch.zeros(count, dtype=torch.bool),
        )

    config = PostprocessConfig(max_instances=50)
    assert nearly_full(found(49), "instance", config, 100) == ""
    assert "postprocess.max_instances" in nearly_full(found(50), "instance", config, 100)
    assert "96 of the 100 queries" in nearly_full(found(96), "detection", config, 100)
    assert nearly_full(found(96), "semantic", config, 100) == ""


def test_the_command_line_says_what_it_does_not_read(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    pages = [Image.fromarray(np.full((40, 50), value, np.uint8)) for value in (0, 90, 0)]
    pages[0].save(folder / "stack.gif", save_all=True, append_images=pages[1:])
    Image.fromarray(np.full((40, 50), 900, np.uint16)).save(folder / "deep.png")
    (folder / "notes.txt").write_text("x")
    options = ("--weights", model, "--device", "cpu", "--output", tmp_path / "out")
    done = unimask("predict", folder, *options)
    assert done.code == 0
    for said in ("no image and left out, the first is notes.txt", "taken as 12-bit", "stack.gif: page 1 of"):
        assert said in done.err
    quiet = unimask(
        "predict", folder / "deep.png", folder / "stack.gif", *options, "--depth", 12, "--page", "max"
    )
    assert quiet.code == 0
    assert "warning" not in quiet.err
    wrong = unimask("predict", folder / "deep.png", *options, "--page", 0)
    assert (wrong.code, "data.page" in wrong.err) == (2, True)
