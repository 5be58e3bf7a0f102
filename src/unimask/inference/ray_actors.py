"""Actors of Ray that hold a segmenter each, and the rows of results that they make of a data set."""

import hashlib
import os
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unimask.errors import DataError, first_line
from unimask.inference.job import PredictionJob
from unimask.inference.ray_cluster import ActorPool
from unimask.inference.resuming import left_of
from unimask.inference.rows import with_results
from unimask.inference.segmenter import Segmenter
from unimask.inference.shipping import pack, unpack
from unimask.inference.staging import segment_located
from unimask.inference.stream import AnyResult, Made
from unimask.inference.video import VideoResult
from unimask.remote import Location, location
from unimask.results.ledger import LEDGER_NAME, ledger_of

if TYPE_CHECKING:
    from pyarrow import Table
    from ray import ObjectRef
    from ray.data import Dataset

_ATTEMPTS = 3  # of Ray, at the images of an actor that died


@dataclass(frozen=True, kw_only=True)
class ActorSettings:
    """What an actor needs to know, the same for all of them."""

    job: PredictionJob
    output: Location
    threads: int
    device: str
    column: str = "path"
    resume: bool = False
    folder: str = field(default_factory=os.getcwd)  # that relative paths start from


def mapped(
    ray: Any,
    dataset: "Dataset",
    segmenter: Segmenter,
    settings: ActorSettings,
    pool: ActorPool,
    together: int,
) -> "Dataset":
    """Return the data set with the results of actors in each row; nothing happens until Ray runs it.

    An actor gets a block at a time; with a GPU, for which Ray wants a number, up to `together` rows.
    """
    if isinstance(settings.output, Path):
        settings.output.mkdir(parents=True, exist_ok=True)
        (settings.output / LEDGER_NAME).touch()  # by which the actors recognise the folder
    return dataset.map_batches(
        Actor,
        fn_constructor_args=(settings, ray.put(pack(segmenter))),
        # one task at a time: tasks that wait at an actor that dies would be lost with it
        compute=ray.data.ActorPoolStrategy(size=pool.actors, max_tasks_in_flight_per_actor=1),
        batch_size=together if pool.gpus else None,
        batch_format="pyarrow",
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        ray_remote_args_fn=_attempts,  # an actor that dies is replaced without end, which is Ray's default
    )


def _attempts() -> dict[str, int]:
    """Return the options of Ray that limit how often images are tried."""
    return {"max_task_retries": _ATTEMPTS - 1}


class Actor:
    """A process of Ray that holds a segmenter."""

    def __init__(self, settings: ActorSettings, packed: "ObjectRef") -> None:
        import ray

        self.settings = settings
        torch.set_num_threads(settings.threads)
        if os.path.isdir(settings.folder):
            os.chdir(settings.folder)
        if isinstance(settings.output, Path) and not (settings.output / LEDGER_NAME).is_file():
            raise DataError(
                settings.output,
                f"is not the same folder on {platform.node()}; name one that all machines see",
            )
        self.segmenter = unpack(ray.get(packed), settings.device)

    def __call__(self, rows: "Table") -> "Table":
        """Segment the images of some rows, and return the rows with their results."""
        settings, job = self.settings, self.settings.job
        files = [location(file) for file in rows.column(settings.column).to_pylist()]
        known = "name" in rows.column_names
        names = rows.column("name").to_pylist() if known else [_name_of(file) for file in files]
        named = list(zip(files, names, strict=True))
        left = left_of(named, ledger_of(settings.output), job.settings) if settings.resume else named
        seconds: dict[str, float] = {}
        before = time.perf_counter()

        def advance(name: str) -> None:
            nonlocal before
            now = time.perf_counter()
            seconds[name], before = now - before, now

        made = Made()
        unexpected = ""
        try:
            segment_located(
                self.segmenter, job, settings.output, left, keep=_count, advance=advance, made=made
            )
        except Exception as error:  # a fault in this library; the other actors go on
            unexpected = f"unexpected error ({type(error).__name__}: {first_line(error)})"
        return with_results(rows, named, made, seconds, unexpected)


def _name_of(file: Location) -> str:
    """Return a name that the results of no other file have."""
    digest = hashlib.blake2b(str(file).encode(errors="surrogateescape"), digest_size=4).hexdigest()
    return f"{file.stem}_{digest}"


def _count(file: Location, name: str, result: AnyResult) -> int:
    """Return how many segments or boxes were found."""
    if isinstance(result, VideoResult):
        return sum(total.segments for total in result.totals.values())
    return len(result.segments)
