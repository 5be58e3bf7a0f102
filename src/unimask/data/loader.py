"""From samples to batches: the canvas of a prediction, and the endless stream of training batches."""

from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from unimask.config.data import DataConfig
from unimask.data.augmentation import augment
from unimask.data.placing import Channels, batch_images
from unimask.data.seeds import seeded_generator
from unimask.errors import UnimaskError
from unimask.ops.boxes import boxes_around, scale_of, xyxy_to_cxcywh
from unimask.structures import (
    Batch,
    BoxMaskTargets,
    BoxTargets,
    Dataset,
    Placement,
    Sample,
    Segments,
    Size,
    Truth,
)


def training_loader(
    dataset: Dataset,
    config: DataConfig,
    *,
    mean: Channels,
    std: Channels,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
    cache_megabytes: int = 512,
) -> Generator[Batch, None, None]:
    """Yield batches of augmented samples without end, each epoch in a new order.

    `batch_size` is that of this rank; the ranks share the images of a step. The stream is a function of
    (dataset, config, seed >= 0, batch_size x world): the number of workers does not change it, and one that
    begins at `start_step` continues exactly where another one was after as many batches. `pin_memory` puts
    the tensors into page-locked memory, from which they are copied to a CUDA device faster. Decoded samples
    are kept in memory up to `cache_megabytes` in all workers together (each has its own).

    Raises:
        DataError: a sample cannot be read (raised when its batch is due).
    """
    order = _Order(
        seed=seed, count=len(dataset), batch_size=batch_size, rank=rank, world=world, start_step=start_step
    )
    samples = _Augmented(_Cached(dataset, cache_megabytes * 2**20 // max(1, workers)), config, seed)
    loader: DataLoader = DataLoader(
        samples,  # type: ignore[arg-type]
        batch_sampler=order,
        generator=seeded_generator(seed),  # the loader must not draw from the global generator
        num_workers=workers,
        collate_fn=_Collate(config, mean, std),
        pin_memory=pin_memory,
        prefetch_factor=2 if workers else None,
    )
    for batch in loader:
        if isinstance(batch, UnimaskError):
            raise batch
        yield batch


def box_mask_targets(batch: Batch) -> Batch:
    """Add boxes around the segments of a batch, for models that find both."""
    placements = batch.images.placements
    pairs = zip(cast(tuple[Segments, ...], batch.targets), placements, strict=True)
    targets = tuple(
        BoxMaskTargets(segments=segments, boxes=_relative(boxes_around(segments).boxes, placement.resized))
        for segments, placement in pairs
    )
    return replace(batch, targets=targets)


def _relative(boxes: Float[Tensor, "boxes 4"], size: Size) -> Float[Tensor, "boxes 4"]:
    """Turn xyxy in pixels into cxcywh in [0, 1] of the valid part of the image."""
    return xyxy_to_cxcywh(boxes / scale_of(size, boxes))


class _Order:
    """Which image of which epoch each batch of a rank holds: a function of the seed alone."""

    def __init__(
        self, *, seed: int, count: int, batch_size: int, rank: int, world: int, start_step: int
    ) -> None:
        self._seed, self._count = seed, count
        self._batch_size, self._rank, self._world, self._start = batch_size, rank, world, start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step, epoch, order = self._start, -1, []
        while True:
            first = (step * self._world + self._rank) * self._batch_size
            batch = []
            for position in range(first, first + self._batch_size):
                if position // self._count != epoch:
                    epoch = position // self._count
                    order = torch.randperm(
                        self._count, generator=seeded_generator(self._seed, epoch)
                    ).tolist()
                batch.append((epoch, order[position % self._count]))
            yield batch
            step += 1


class _Cached:
    """Keeps decoded samples up to a number of bytes; the others are read every time."""

    def __init__(self, dataset: Dataset, bytes_granted: int) -> None:
        self._dataset, self._bytes_left = dataset, bytes_granted
        self._samples: dict[int, Sample] = {}

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        if index in self._samples:
            return self._samples[index]
        sample = self._dataset[index]
        needed = sample.image.nbytes + sum(tensor.nbytes for tensor in vars(sample.truth).values())
        if needed <= self._bytes_left:
            self._bytes_left -= needed
            self._samples[index] = sample
        return sample


class _Augmented:
    """Augmented samples by (epoch, index). Errors are returned, since a worker would raise others instead."""

    def __init__(self, dataset: _Cached, config: DataConfig, seed: int) -> None:
        self._dataset, self._config, self._seed = dataset, config, seed

    def __getitem__(self, key: tuple[int, int]) -> Sample | UnimaskError:
        epoch, index = key
        generator = seeded_generator(self._seed, epoch, index)
        try:
            return augment(self._dataset[index], self._config, generator)
        except UnimaskError as error:
            return error


class _Collate:
    """Puts samples into one batch on the canvas of the crop."""

    def __init__(self, config: DataConfig, mean: Channels, std: Channels) -> None:
        self._canvas = Placement.fit(config.crop, config.crop, config.divisor).canvas
        self._mean, self._std, self._padding = mean, std, config.padding

    def __call__(self, samples: list[Sample | UnimaskError]) -> Batch | UnimaskError:
        good = []
        for sample in samples:
            if isinstance(sample, UnimaskError):
                return sample
            good.append(sample)
        sizes = [(sample.image.shape[1], sample.image.shape[2]) for sample in good]
        placements = tuple(Placement(original=size, resized=size, canvas=self._canvas) for size in sizes)
        images = batch_images(
            [sample.image for sample in good], placements, self._mean, self._std, self._padding
        )
        targets: tuple[Any, ...] = tuple(
            self._target(sample.truth, size) for sample, size in zip(good, sizes, strict=True)
        )
        image_ids = tuple(sample.image_id for sample in good)
        return Batch(images=images, targets=targets, image_ids=image_ids)

    def _target(self, truth: Truth, size: Size) -> Segments | BoxTargets:
        """Return what the model is to find: segments on the canvas, or boxes relative to the valid part."""
        if isinstance(truth, Segments):
            bottom, right = self._canvas[0] - size[0], self._canvas[1] - size[1]
            return replace(truth, layers=functional.pad(truth.layers, (0, right, 0, bottom)))
        return BoxTargets(boxes=_relative(truth.boxes, size), labels=truth.labels)
