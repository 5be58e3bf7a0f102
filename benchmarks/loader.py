"""Pictures a second that one worker reads, augments and puts into batches."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.settings import Outcome, Settings
from unimask.benchmark.tables import Table
from unimask.config.tasks import Task
from unimask.data.loader import training_loader
from unimask.data.open import open_dataset
from unimask.errors import DataError
from unimask.presets import PRESETS
from unimask.structures import Dataset

DATA = Path(__file__).parents[2] / "shared" / "data"
BATCH = 4


def sources(settings: Settings) -> Iterator[tuple[str, str, Task, Dataset]]:
    """Name, preset whose crop and augmentation are used, task and data; only data that are here."""
    size = "96x128" if settings.quick else "480x640"
    yield f"shapes {size}", "small", "panoptic", open_dataset(f"shapes:{size}", "train", "panoptic")
    real: tuple[tuple[str, str, str, Task], ...] = (
        ("nuclei", "nuclei_dsb2018", "nuclei", "instance"),
        ("CamVid", "camvid11", "small", "semantic"),
    )
    for name, folder, preset, task in real:
        try:
            yield name, preset, task, open_dataset(DATA / folder, "train", task)
        except DataError:
            continue  # not here


def pictures_a_second(dataset: Dataset, preset: str, settings: Settings, cache_megabytes: int) -> float:
    """The speed of the loading process itself, in this process and on one thread, as a worker runs."""
    data = PRESETS[preset]().data
    if settings.quick:
        data = replace(data, crop=(64, 96))
    small = (127.5, 127.5, 127.5)
    stream = training_loader(
        dataset, data, mean=small, std=small, batch_size=BATCH, seed=0, cache_megabytes=cache_megabytes
    )
    warm, batches = (1, 2) if settings.quick else (3, 25)
    if cache_megabytes:
        warm += min(len(dataset) // BATCH, 4 * batches) + 1  # an epoch fills the cache
    for _ in range(warm):
        next(stream)
    start = time.perf_counter()
    for _ in range(batches):
        next(stream)
    speed = BATCH * batches / (time.perf_counter() - start)
    stream.close()
    return speed


def run(settings: Settings) -> Outcome:
    torch.set_num_threads(1)
    try:
        rows = tuple(
            (
                name,
                preset,
                task,
                round(pictures_a_second(dataset, preset, settings, 0), 1),
                round(pictures_a_second(dataset, preset, settings, 512), 1),
            )
            for name, preset, task, dataset in sources(settings)
        )
    finally:
        torch.set_num_threads(settings.threads)
    table = Table(
        title="Loader",
        about="Pictures a second of one worker: read, augmented, normalised, in batches. Cached: decoded "
        "pictures are in memory.",
        columns=("data", "settings of preset", "task", "read each time", "cached"),
        rows=rows,
    )
    return Outcome(tables=(table,), details={row[0]: {"read": row[3], "cached": row[4]} for row in rows})
