import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import max_pool2d

from unimask.config.data import DataConfig, ScaleJitter
from unimask.data.augmentation import augment, draw_window, jitter_camera, jitter_color, scale_factor
from unimask.data.formats.shapes import shapes_dataset
from unimask.data.rasterise import truth_segments
from unimask.data.seeds import seeded_generator
from unimask.structures import Sample

MODES: tuple[Literal["crop", "short_side", "file"], ...] = ("crop", "short_side", "file")


def config(
    crop: tuple[int, int] = (61, 83),
    low: float = 0.3,
    high: float = 2.0,
    relative_to: Literal["crop", "short_side", "file"] = "crop",
    horizontal_flip: float = 0.5,
    vertical_flip: float = 0.5,
    color: float = 0.0,
) -> DataConfig:
    return DataConfig(
        crop=crop,
        jitter=ScaleJitter(low=low, high=high, relative_to=relative_to),
        horizontal_flip=horizontal_flip,
        vertical_flip=vertical_flip,
        color=color,
    )


def blocks(height: int, width: int, size: int = 16) -> Sample:
    """Segment n of a grid of blocks has the colors n, 3 n and 255 - 2 n, so that the picture tells the id."""
    columns = max(1, width // size)  # the last block of a row or column takes the rest
    down = (torch.arange(height) // size).clamp(max=max(0, height // size - 1))
    right = (torch.arange(width) // size).clamp(max=columns - 1)
    layer = down[:, None] * columns + right[None] + 1
    count = int(layer.max())
    image = torch.stack([layer, (3 * layer) % 256, 255 - 2 * layer]).to(torch.uint8)
    segments = truth_segments(layer[None].to(torch.int16), list(range(count)), [False] * count)
    return Sample(image=image, truth=segments, image_id="blocks")


def paired(sample: Sample) -> tuple[Tensor, Tensor]:
    """What the picture and what the id map say: the number of the block of each pixel."""
    labels = sample.truth.labels[sample.truth.layers[0].long() - 1] + 1
    return sample.image[0].long(), labels


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 130), st.integers(1, 130), st.sampled_from(MODES))
def test_picture_and_id_map_stay_aligned(
    seed: int, height: int, width: int, mode: Literal["crop", "short_side", "file"]
) -> None:
    sample = blocks(height, width)
    window = draw_window((height, width), config(relative_to=mode), torch.Generator().manual_seed(seed))
    result = augment(sample, config(relative_to=mode), torch.Generator().manual_seed(seed))
    assert result.image.shape[1:] == result.truth.size
    assert result.image.shape[1] <= 61
    assert result.image.shape[2] <= 83
    assert bool((result.truth.areas() > 0).all())
    assert bool((result.truth.layers > 0).all())
    picture, labels = paired(result)
    # away from the borders of blocks, where bilinear mixes; the wider, the more the picture is enlarged
    margin = max(math.ceil(out / taken / 2) for out, taken in zip(window.resized, window.taken)) + 1
    widened = torch.nn.functional.pad(labels[None, None].float(), (margin,) * 4, mode="replicate")
    highest, lowest = (max_pool2d(sign * widened, 2 * margin + 1, 1)[0, 0] for sign in (1, -1))
    inside = highest + lowest == 0
    assert torch.equal(picture[inside], labels[inside])


@pytest.mark.parametrize("height", [1, 2, 5, 17, 90])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_pictures_that_become_one_pixel_wide(height: int, width: int) -> None:
    image = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0))
    segments = truth_segments(torch.ones((1, height, width), dtype=torch.int16), [0], [False])
    sample = Sample(image=image.to(torch.uint8), truth=segments, image_id="x")
    narrow = config(crop=(11, 1), low=1.0, high=1.0, horizontal_flip=0.0, vertical_flip=0.0)
    result = augment(sample, narrow, torch.Generator())
    size = list(result.truth.size)
    assert size[1] == 1
    weights = 1 - (torch.arange(width) - (width - 1) / 2).abs() / width  # a triangle over the row
    flat = (image * weights).sum(2, keepdim=True) / weights.sum()
    wide = torch.nn.functional.interpolate(
        flat.expand(-1, -1, 5)[None], [size[0], 5], mode="bilinear", antialias=True
    )
    assert float((result.image.float() - wide[0, ..., :1]).abs().max()) <= 1.5


def test_nothing_to_do_changes_nothing() -> None:
    sample = blocks(61, 83)
    still = config(low=1.0, high=1.0, horizontal_flip=0.0, vertical_flip=0.0)
    result = augment(sample, still, torch.Generator())
    assert torch.equal(result.image, sample.image)
    assert torch.equal(result.truth.layers, sample.truth.layers)
    assert torch.equal(result.truth.labels, sample.truth.labels)


def test_flips() -> None:
    sample = blocks(61, 83)
    for horizontal, vertical in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
        turned = config(low=1.0, high=1.0, horizontal_flip=horizontal, vertical_flip=vertical)
        result = augment(sample, turned, torch.Generator())
        axes = [2] * int(horizontal) + [1] * int(vertical)
        assert torch.equal(result.image, sample.image.flip(axes))
        assert torch.equal(*paired(result))


def test_scale_is_relative_to_crop_short_side_or_file() -> None:
    def factor(relative_to: Literal["crop", "short_side", "file"], uniform: float) -> float:
        jitter = ScaleJitter(low=0.5, high=1.5, relative_to=relative_to)
        return scale_factor((200, 400), jitter, (100, 300), uniform)

    assert factor("file", 0.0) == 0.5
    assert factor("file", 0.5) == 1.0
    assert factor("crop", 0.5) == pytest.approx(0.5)  # 200 x 400 fits into 100 x 300 at one half
    assert factor("short_side", 0.5) == pytest.approx(0.5)  # the short side becomes 100
    assert scale_factor((400, 200), ScaleJitter(low=1.0, high=1.0), (100, 300), 0.3) == pytest.approx(0.25)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 900), st.integers(1, 900), st.sampled_from(MODES))
def test_windows_lie_in_the_picture_and_in_the_crop(
    seed: int, height: int, width: int, mode: Literal["crop", "short_side", "file"]
) -> None:
    settings_ = config(crop=(64, 96), low=0.1, high=2.0, relative_to=mode)
    window = draw_window((height, width), settings_, torch.Generator().manual_seed(seed))
    assert 0 <= window.top <= height - window.taken[0]
    assert 0 <= window.left <= width - window.taken[1]
    assert min(window.taken) >= 1
    assert 1 <= window.resized[0] <= 64
    assert 1 <= window.resized[1] <= 96


def test_every_corner_can_be_cropped() -> None:
    sample = blocks(128, 128)
    tight = config(crop=(16, 16), low=1.0, high=1.0, relative_to="file")
    seen = set()
    for seed in range(400):
        result = augment(sample, tight, torch.Generator().manual_seed(seed))
        assert result.truth.size == (16, 16)
        seen |= set(result.truth.labels.tolist())
    assert seen == set(range(64))


@pytest.mark.parametrize("size", [(1, 1), (20_000, 30), (30, 20_000), (1, 700)])
@pytest.mark.parametrize("mode", MODES)
def test_extreme_sizes(size: tuple[int, int], mode: Literal["crop", "short_side", "file"]) -> None:
    sample = Sample(
        image=torch.full((3, *size), 9, dtype=torch.uint8),
        truth=truth_segments(torch.ones((1, *size), dtype=torch.int16), [4], [False]),
        image_id="x",
    )
    for seed in range(5):
        result = augment(sample, config(relative_to=mode, color=1.0), torch.Generator().manual_seed(seed))
        assert result.image.shape[1:] == result.truth.size
        assert result.truth.labels.tolist() == [4]


def test_crowds_become_void_and_the_rest_is_renumbered() -> None:
    sample = blocks(32, 32)
    crowd = replace(sample.truth, is_crowd=torch.tensor([False, True, False, False]))
    still = config(crop=(32, 32), low=1.0, high=1.0, horizontal_flip=0.0, vertical_flip=0.0)
    result = augment(replace(sample, truth=crowd), still, torch.Generator())
    assert result.truth.labels.tolist() == [0, 2, 3]
    assert not bool(result.truth.is_crowd.any())
    assert result.truth.layers[0, ::16, ::16].tolist() == [[1, 0], [2, 3]]


def test_segments_outside_the_crop_are_dropped_with_their_layers() -> None:
    layers = torch.zeros((2, 40, 40), dtype=torch.int16)
    layers[0, :2, :2], layers[1, :2, :2], layers[0, 20:] = 1, 2, 3
    sample = Sample(
        image=torch.zeros((3, 40, 40), dtype=torch.uint8),
        truth=truth_segments(layers, [5, 6, 7], [False] * 3),
        image_id="x",
    )
    tight = config(crop=(8, 8), low=1.0, high=1.0, relative_to="file")
    results = [augment(sample, tight, torch.Generator().manual_seed(seed)).truth for seed in range(60)]
    assert any(len(segments) == 0 and segments.layers.shape[0] == 1 for segments in results)
    assert any(segments.labels.tolist() == [7] and segments.layers.shape[0] == 1 for segments in results)
    assert all(int(segments.layers.max()) == len(segments) for segments in results)


def test_color_changes_the_picture_only() -> None:
    sample = shapes_dataset(size=(48, 64), count=3)[0]
    plain = config(crop=(48, 64), horizontal_flip=0.0, vertical_flip=0.0, low=1.0, high=1.0)
    colored = replace(plain, color=1.0)
    results = [augment(sample, colored, torch.Generator().manual_seed(seed)) for seed in range(12)]
    assert sum(not torch.equal(result.image, sample.image) for result in results) >= 9
    for result in results:
        assert torch.equal(result.truth.layers, sample.truth.layers)
        assert result.image.dtype == torch.uint8
    weak = jitter_color(sample.image, 0.05, torch.Generator().manual_seed(1))
    assert float((weak.float() - sample.image.float()).abs().mean()) < 12


def test_an_augmentation_is_a_function_of_its_key() -> None:
    sample = shapes_dataset(size=(48, 64), count=3)[1]
    strong = config(color=1.0)
    first, again, other = (
        augment(sample, strong, seeded_generator(*key)) for key in ((3, 1), (3, 1), (3, 2))
    )
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.truth.layers, again.truth.layers)
    assert first.image.shape != other.image.shape or not torch.equal(first.image, other.image)


def test_source_is_left_alone() -> None:
    sample = blocks(40, 40)
    image, layers = sample.image.clone(), sample.truth.layers.clone()
    for seed in range(10):
        augment(sample, config(color=1.0), torch.Generator().manual_seed(seed))
    assert torch.equal(sample.image, image)
    assert torch.equal(sample.truth.layers, layers)


def test_transposing_makes_rows_of_columns_within_the_crop() -> None:
    sample = blocks(61, 83)
    plain = config(crop=(83, 61), low=1.0, high=1.0, horizontal_flip=0.0, vertical_flip=0.0)
    turned = augment(sample, replace(plain, transpose=1.0), torch.Generator())
    assert torch.equal(turned.image, sample.image.transpose(1, 2))
    assert torch.equal(*paired(turned))
    for seed in range(20):
        result = augment(
            blocks(200, 300), replace(config(), transpose=0.5), torch.Generator().manual_seed(seed)
        )
        assert result.image.shape[1] <= 61  # also where what was cut out was 83 high
        assert result.image.shape[2] <= 83


def grey(value: int) -> Tensor:
    return torch.full((3, 40, 40), value, dtype=torch.uint8)


def changed_by(image: Tensor, draws: int = 40, **strengths: float) -> list[Tensor]:
    """What the changes of a camera make of an image, of many draws those that changed it."""
    settings_ = replace(config(), **strengths)  # type: ignore[arg-type]
    results = [jitter_camera(image, settings_, torch.Generator().manual_seed(seed)) for seed in range(draws)]
    assert all(result.dtype == torch.uint8 and result.shape == image.shape for result in results)
    assert torch.equal(image, image.clone())
    return [result for result in results if not torch.equal(result, image)]


def test_gamma_makes_an_image_darker_or_brighter_but_not_black_and_white() -> None:
    values = {int(result[0, 0, 0]) for result in changed_by(grey(64), gamma=1.0)}
    # 255 * (64 / 255) ** e for exponents from 1/2 to 2: from 16 to 127
    assert 16 <= min(values) < 32
    assert 100 < max(values) <= 128
    assert all(torch.equal(result, grey(255)) for result in changed_by(grey(255), gamma=1.0))


def test_blur_spreads_a_point_and_keeps_what_it_sums_to() -> None:
    point = torch.zeros((3, 41, 41), dtype=torch.uint8)
    point[:, 20, 20] = 255
    blurred = changed_by(point, blur=2.0)
    assert 10 <= len(blurred) <= 30  # half of them
    for result in blurred:
        assert int(result[0, 20, 20]) == int(result.max()) < 255
        assert float(result[0].float().sum()) == pytest.approx(255, abs=60)  # rounded to whole numbers
    assert changed_by(grey(9)[:, :1, :1], blur=2.0) == []


def test_noise_is_grey_and_has_its_strength() -> None:
    noisy = changed_by(grey(100), noise=10.0)
    assert 10 <= len(noisy) <= 30
    spreads = [float((result[0].float() - 100).std()) for result in noisy]
    assert max(spreads) == pytest.approx(9.5, abs=1.5)
    assert all(torch.equal(result[0], result[1]) and torch.equal(result[0], result[2]) for result in noisy)


def test_what_is_off_draws_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    assert jitter_camera(grey(7), config(), generator) is not None
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(3).get_state())
