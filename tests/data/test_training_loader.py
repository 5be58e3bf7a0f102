from dataclasses import dataclass, field
from itertools import islice

import pytest
import torch

from unimask.config.data import DataConfig, Scale, ScaleJitter, ShortSide
from unimask.data.formats.shapes import CATEGORIES, shapes_dataset
from unimask.data.loader import training_loader
from unimask.data.placing import batch_images, placement_for
from unimask.data.views import as_panoptic
from unimask.errors import DataError
from unimask.structures import Batch, Categories, Dataset, Placement, Sample

MEAN, STD = (120.0, 110.0, 100.0), (60.0, 50.0, 40.0)


def config(crop: tuple[int, int] = (40, 50), low: float = 0.5, color: float = 0.5) -> DataConfig:
    return DataConfig(crop=crop, jitter=ScaleJitter(low=low, high=1.5), color=color, divisor=32)


def batches(
    count: int,
    *,
    dataset: Dataset | None = None,
    batch_size: int = 3,
    seed: int = 5,
    start_step: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    cache_megabytes: int = 512,
    data_config: DataConfig | None = None,
) -> list[Batch]:
    stream = training_loader(
        as_panoptic(shapes_dataset(size=(37, 53), count=7)) if dataset is None else dataset,
        data_config or config(),
        mean=MEAN,
        std=STD,
        batch_size=batch_size,
        seed=seed,
        start_step=start_step,
        rank=rank,
        world=world,
        workers=workers,
        cache_megabytes=cache_megabytes,
    )
    return list(islice(stream, count))


def same(first: Batch, second: Batch) -> bool:
    return (
        torch.equal(first.images.pixels, second.images.pixels)
        and torch.equal(first.images.valid, second.images.valid)
        and first.images.placements == second.images.placements
        and first.image_ids == second.image_ids
        and all(
            torch.equal(a.layers, b.layers) and torch.equal(a.labels, b.labels)
            for a, b in zip(first.targets, second.targets)
        )
    )


def test_a_batch_lives_on_the_canvas() -> None:
    for batch in batches(6):
        assert batch.images.pixels.shape == (3, 3, 64, 64)
        assert batch.images.valid.shape == (3, 64, 64)
        for index, (placement, target) in enumerate(zip(batch.images.placements, batch.targets)):
            height, width = placement.resized
            assert placement.canvas == (64, 64)
            assert placement.original == placement.resized
            assert height <= 40
            assert width <= 50
            assert batch.images.valid[index].sum() == height * width
            assert bool(batch.images.valid[index, :height, :width].all())
            assert not bool(batch.images.pixels[index][:, ~batch.images.valid[index]].any())
            assert target.size == (64, 64)
            assert target.layers.dtype == torch.int16
            assert torch.equal(target.layers[0] > 0, batch.images.valid[index])
            assert bool((target.areas() > 0).all())
            assert target.scores.tolist() == [1.0] * len(target)
            assert not bool(target.is_crowd.any())


def test_every_epoch_has_every_picture_once_in_a_new_order() -> None:
    stream = [image_id for batch in batches(14) for image_id in batch.image_ids]
    epochs = [stream[start : start + 7] for start in range(0, 42, 7)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len(set(epochs[0])) == 7
    assert len({tuple(epoch) for epoch in epochs}) > 3


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_stream(workers: int) -> None:
    for alone, shared in zip(batches(5), batches(5, workers=workers, cache_megabytes=0)):
        assert same(alone, shared)


def test_a_stream_continues_where_it_stood() -> None:
    whole = batches(9)
    for start in (1, 4, 7):
        assert all(same(a, b) for a, b in zip(whole[start:], batches(9 - start, start_step=start)))
    assert not same(whole[0], batches(1, seed=6)[0])


def test_ranks_share_the_pictures_of_a_step() -> None:
    whole = batches(4, batch_size=4)
    parts = [batches(4, batch_size=2, rank=rank, world=2) for rank in range(2)]
    for step in range(4):
        ids = parts[0][step].image_ids + parts[1][step].image_ids
        assert ids == whole[step].image_ids
        pixels = torch.cat([parts[0][step].images.pixels, parts[1][step].images.pixels])
        assert torch.equal(pixels, whole[step].images.pixels)


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    batches(3)
    assert torch.equal(torch.rand(4), expected)


@dataclass
class Counting:
    """Counts how often each sample is read; one of them cannot be."""

    bad: int = -1
    reads: list[int] = field(default_factory=list)

    @property
    def categories(self) -> Categories:
        return CATEGORIES

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Sample:
        self.reads.append(index)
        if index == self.bad:
            raise DataError("pictures/bad.png", "is damaged")
        return shapes_dataset(size=(30, 30), count=4)[index]


def test_cache_is_bounded_and_changes_nothing() -> None:
    free, bound, off = Counting(), Counting(), Counting()
    results = [batches(8, dataset=free), batches(8, dataset=bound, cache_megabytes=1)]
    results.append(batches(8, dataset=off, cache_megabytes=0))
    assert len(free.reads) == 4
    assert len(off.reads) == 24
    assert all(same(a, b) and same(a, c) for a, b, c in zip(*results))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_sample_is_named(workers: int) -> None:
    with pytest.raises(DataError, match=r"pictures/bad\.png: is damaged"):
        batches(3, dataset=Counting(bad=2), workers=workers)


def test_placement_of_a_prediction() -> None:
    short = DataConfig(resize=ShortSide(size=800, longest=1333), divisor=32)
    assert placement_for((480, 640), short).resized == (800, 1067)
    assert placement_for((480, 640), short).canvas == (800, 1088)
    assert placement_for((640, 480), short).resized == (1067, 800)
    assert placement_for((300, 900), short).resized == (444, 1333)
    assert placement_for((30, 20_000), short).resized == (2, 1333)
    assert placement_for((20_000, 30), short).canvas == (1344, 32)
    assert placement_for((1, 1), short).resized == (800, 800)
    assert placement_for((1, 20_000), short).resized == (1, 1333)
    fixed = DataConfig(resize=Scale(factor=0.5), divisor=32)
    assert placement_for((101, 64), fixed) == Placement(original=(101, 64), resized=(51, 32), canvas=(64, 32))
    assert placement_for((1, 1), DataConfig(resize=Scale(factor=0.01))).resized == (1, 1)


def test_batch_images_normalises_and_pads_with_zero() -> None:
    images = [torch.full((3, 20, 31), 180, dtype=torch.uint8), torch.zeros((3, 10, 10), dtype=torch.uint8)]
    placements = [
        Placement(original=(20, 31), resized=(20, 31), canvas=(32, 32)),
        Placement(original=(10, 10), resized=(30, 30), canvas=(32, 32)),
    ]
    batch = batch_images(images, placements, MEAN, STD)
    assert batch.pixels.dtype == torch.float32
    assert batch.pixels[0, :, 5, 5].tolist() == pytest.approx([1.0, 1.4, 2.0])
    assert batch.pixels[1, :, 29, 29].tolist() == pytest.approx([-2.0, -2.2, -2.5])
    assert not bool(batch.pixels[0, :, 20:].any())
    assert batch.valid.flatten(1).sum(1).tolist() == [620, 900]
    with pytest.raises(ValueError, match="one canvas"):
        batch_images(
            images,
            [placements[0], Placement(original=(10, 10), resized=(10, 10), canvas=(64, 32))],
            MEAN,
            STD,
        )


def test_a_picture_that_becomes_one_column_keeps_its_colors() -> None:
    picture = torch.full((3, 2000, 1), 200, dtype=torch.uint8)
    picture[:, 1000:] = 40
    placement = placement_for((2000, 1), DataConfig(resize=ShortSide(size=800, longest=1333)))
    batch = batch_images([picture], [placement], (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    column = batch.pixels[0, :, : placement.resized[0], 0]
    assert placement.resized == (1333, 1)
    assert (column[:, :660] == 200).all()
    assert (column[:, 674:] == 40).all()
    assert batch.pixels.sum() == column.sum()
