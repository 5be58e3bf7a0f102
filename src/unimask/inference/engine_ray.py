"""Many images with Ray, on this machine or a cluster: actors hold a segmenter each and write their own files.

Ray hands out paths, starts again what was lost, and returns a small row per image; no pixels leave an actor.
What is segmented, written and left out is decided by the same functions as without Ray (`inference/run.py`).
"""

import hashlib
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unimask.config.tasks import Task
from unimask.errors import ConfigError, DataError, UnimaskError, first_line, needs_extra
from unimask.inference.batches import Progress
from unimask.inference.resuming import Asked, left_of
from unimask.inference.rows import (
    COMPLETE,
    DIED,
    LOST,
    Tally,
    named_table,
    rows_file,
    with_results,
    with_status,
)
from unimask.inference.run import (
    Predicted,
    check_options,
    join,
    joined_notes,
    name_images,
    plan_job,
    reserved,
)
from unimask.inference.segmenter import Segmenter
from unimask.inference.shipping import pack, unpack
from unimask.inference.staging import segment_located
from unimask.inference.stream import AnyResult, Job, Made
from unimask.inference.video import VideoResult
from unimask.remote import Location, Url, location
from unimask.results.folder import JOINED
from unimask.results.ledger import LEDGER_NAME, ledger_of

if TYPE_CHECKING:
    from pyarrow import Table
    from ray import ObjectRef
    from ray.data import Dataset

_ATTEMPTS = 3  # of Ray, at what an actor was doing when it died
_CPUS = 4  # of an actor without a GPU, unless a number of actors is given
_MOST = 256  # images that Ray hands out together: what the loss of an actor costs


def predict_with_ray(
    segmenter: Segmenter | Callable[[str], Segmenter],
    images: Sequence[str | Path],
    output: str | Path,
    task: Task | None = None,
    progress: Progress = lambda done, total: None,
    *,
    threshold: float | None = None,
    batch_size: int = 4,
    device: str = "auto",
    formats: Sequence[str] = (),
    pixel_size: float | None = None,
    every: int = 1,
    overwrite: bool = False,
    resume: bool = False,
    address: str = "",
    actors: int = 0,
) -> Predicted:
    """Segment image files and videos as `run.predict`, into the same files, by actors of Ray.

    A row per image is written into `images.parquet`, in no particular order: `path`, `name` of the results,
    `status` (segmented, failed, complete before, lost), number of `segments` or boxes, `seconds` since the
    image before it, `error`, and `notes`. Losing an actor or a machine costs what it was at, at most the 256
    images that it was given together; after the loss of this process, `resume` goes on.

    Args:
        segmenter: as `run.predict`; a function is called once, with "cpu".
        images: as `run.predict`; every machine must see them under these paths.
        output: as `run.predict`; every machine must see it.
        task: as `run.predict`, and so are the options but the last two.
        progress: as `run.predict`.
        threshold: as `run.predict`.
        batch_size: as `run.predict`.
        device: of each actor.
        formats: as `run.predict`.
        pixel_size: as `run.predict`.
        every: as `run.predict`.
        overwrite: as `run.predict`.
        resume: as `run.predict`.
        address: of a running cluster; by default that in `RAY_ADDRESS`, else Ray is started on this machine
            and ended afterwards.
        actors: how many; by default one per GPU, and without any one per four CPUs. They share the CPUs.

    Raises:
        UnimaskError: as `run.predict`, and where there is no such cluster, or its machines lack what is
            needed.
    """
    check_options(threshold, formats, pixel_size, every)
    folder = location(output)
    named, said = name_images(images, formats)
    model = segmenter if isinstance(segmenter, Segmenter) else segmenter("cpu")
    job, more = plan_job(
        model,
        named,
        folder,
        task,
        threshold=threshold,
        batch_size=batch_size,
        formats=formats,
        pixel_size=pixel_size,
        every=every,
        overwrite=overwrite,
    )
    left = left_of(named, ledger_of(folder), job.settings) if resume else named
    found, names = Tally(), {name for _, name in left}
    with _connected(address) as ray, rows_file(folder, job) as write:
        complete = [one for one in named if one[1] not in names]
        write(with_status(named_table(complete), COMPLETE))
        progress(0, len(left))
        pool = _Pool.of(ray, device, actors)
        order = _Order(job=job, output=_whole(folder), threads=pool.threads, device=device)
        for rows in _segmented(ray, model, order, pool, left):
            found.add(rows)
            write(rows)
            progress(len(found.parts), len(left))
        lost = [one for one in left if one[1] not in found.parts]
        found.failed += [f"{file}: {DIED}" for file, _ in lost]
        write(with_status(named_table(lost), LOST, DIED))
    if reserved(formats):
        join(folder, named, found.parts, job, failed=bool(found.failed))
    return Predicted(
        images=len(named),
        complete=len(named) - len(left),
        kept=(),
        failed=tuple(found.failed),
        notes=(*said, *more, *joined_notes([found.notes])),
        errors=(),
        first_process=True,
    )


def predict_dataset(
    dataset: "Dataset",
    segmenter: Segmenter,
    output: str | Path,
    task: Task | None = None,
    *,
    column: str = "path",
    threshold: float | None = None,
    batch_size: int = 4,
    device: str = "auto",
    formats: Sequence[str] = (),
    pixel_size: float | None = None,
    every: int = 1,
    overwrite: bool = False,
    resume: bool = False,
    actors: int = 0,
) -> "Dataset":
    """Return a data set of Ray with a row of results for each row of `dataset`, which names an image file.

    Nothing happens until Ray runs it. Actors then segment the files and write the results into the folder
    `output`. A row keeps its columns and gets `status`, `segments`, `seconds`, `error` and `notes`, as
    `predict_with_ray` says; an image that fails is such a row. Names of the results are those of the column
    `name`, which must differ; without it the stem of the file and 8 hexadecimal digits of its path.

    Args:
        dataset: with the paths of image files in a column. Make its blocks small (`repartition`): what the
            loss of an actor costs is a block.
        segmenter: loaded from files (`unimask.load`); Ray brings it to each machine once.
        output: every machine must see it.
        task: as `unimask.predict`.
        column: of the paths.
        threshold: as `unimask.predict`.
        batch_size: as `unimask.predict`.
        device: of each actor.
        formats: as `unimask.predict`, but none that is one file for all images (csv, coco, label-studio).
        pixel_size: as `unimask.predict`.
        every: as `unimask.predict`.
        overwrite: as `unimask.predict`.
        resume: as `unimask.predict`.
        actors: how many; by default one per GPU, and without any one per four CPUs.

    Raises:
        ConfigError: as `unimask.predict`, and for formats of all images.
        MissingPackageError: Ray is not installed.
    """
    ray = _ray()
    check_options(threshold, formats, pixel_size, every)
    if of_all := [one for one in formats if one in JOINED]:
        raise ConfigError("format", f"{of_all[0]} is one file for all images; of a data set take others")
    job, _ = plan_job(
        segmenter,
        [],
        location(output),
        task,
        threshold=threshold,
        batch_size=batch_size,
        formats=formats,
        pixel_size=pixel_size,
        every=every,
        overwrite=overwrite,
    )
    pool = _Pool.of(ray, device, actors)
    order = _Order(
        job=job,
        output=_whole(location(output)),
        threads=pool.threads,
        device=device,
        column=column,
        resume=resume,
    )
    return _mapped(ray, dataset, segmenter, order, pool)


@dataclass(frozen=True, kw_only=True)
class _Order:
    """What every actor is told."""

    job: Job
    output: Location
    threads: int
    device: str
    column: str = "path"
    resume: bool = False
    folder: str = field(default_factory=os.getcwd)  # from which paths are seen


@dataclass(frozen=True, kw_only=True)
class _Pool:
    """How many actors there are, and what each of them has."""

    actors: int
    cpus: float
    gpus: int

    @property
    def threads(self) -> int:
        """Return how many threads an actor computes with."""
        return max(1, int(self.cpus))

    @classmethod
    def of(cls, ray: Any, device: str, actors: int) -> "_Pool":
        """Return a pool that fills a cluster, or so many actors that share its CPUs."""
        if actors < 0:
            raise ConfigError("actors", f"must be 1 or more; got {actors}")
        machines = [one["Resources"] for one in ray.nodes() if one["Alive"]]
        cpus = [one["CPU"] for one in machines if one.get("CPU")] or [1.0]
        gpus = int(sum(one.get("GPU", 0) for one in machines)) if device in ("auto", "cuda") else 0
        count = actors or gpus or max(1, int(sum(cpus)) // _CPUS)
        share = min(sum(cpus) / count, *cpus) if len(cpus) > 1 else cpus[0] / count
        return cls(actors=count, cpus=float(int(share)) if share >= 1 else share, gpus=1 if gpus else 0)


def _ray() -> Any:
    with needs_extra("ray", "--engine ray"):
        import ray
        import ray.data
    return ray


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Yield Ray, connected to a cluster, or started here for as long as the block lasts.

    Raises:
        ConfigError: no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports to its makers only where asked to
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as its later versions do
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what matters comes as an exception
    ray = _ray()
    if ray.is_initialized():
        yield ray
        return
    place = address or os.environ.get("RAY_ADDRESS") or "local"
    started = {"include_dashboard": False} if place == "local" else {}
    try:
        ray.init(place, log_to_driver=False, logging_level="ERROR", **started)
    except Exception as error:  # of many kinds
        reason = f"no cluster of Ray answers at {place} ({first_line(error)}); `ray start --head` starts one"
        if place == "local":
            reason = f"Ray does not start on this machine ({first_line(error)}); is it too busy?"
        raise ConfigError("address", reason) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _segmented(
    ray: Any, segmenter: Segmenter, order: _Order, pool: _Pool, left: Sequence[Asked]
) -> Iterator["Table"]:
    """Yield the rows of the images as they are done.

    Raises:
        UnimaskError: the actors cannot work.
    """
    if not left:
        return
    size = min(_MOST, max(order.job.batch_size, len(left) // (8 * pool.actors)))
    tables = [named_table(left[start : start + size]) for start in range(0, len(left), size)]
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # what dies each time does not end the others
    with ray.data.DataContext.current(context), _quiet("ray.data"):
        dataset = _mapped(ray, ray.data.from_arrow(tables), segmenter, order, pool)
        try:
            yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")
        except Exception as error:  # of many kinds
            raise _ours(error) from error


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a logger from telling on the screen what is no error."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _ours(error: BaseException) -> Exception:
    """Return the error of ours that one of Ray is about, or a sentence about it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UnimaskError):
            return cause
        inner = getattr(cause, "cause", None)
        cause = inner if isinstance(inner, BaseException) else cause.__cause__
    return ConfigError("engine", f"Ray gave up ({first_line(error)}); --resume goes on")


def _mapped(ray: Any, dataset: "Dataset", segmenter: Segmenter, order: _Order, pool: _Pool) -> "Dataset":
    """Return the rows of results that actors make of a data set."""
    if isinstance(order.output, Path):
        order.output.mkdir(parents=True, exist_ok=True)
        (order.output / LEDGER_NAME).touch()  # by which the actors know the folder
    return dataset.map_batches(
        _Actor,
        fn_constructor_args=(order, ray.put(pack(segmenter))),
        # one task at a time: what waits at an actor that dies would be lost with it
        compute=ray.data.ActorPoolStrategy(size=pool.actors, max_tasks_in_flight_per_actor=1),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        ray_remote_args_fn=_attempts,  # an actor that dies is replaced without end, which is Ray's default
    )


def _attempts() -> dict[str, int]:
    return {"max_task_retries": _ATTEMPTS - 1}


class _Actor:
    """A process of Ray that holds a segmenter."""

    def __init__(self, order: _Order, packed: "ObjectRef") -> None:
        import ray

        self.order = order
        torch.set_num_threads(order.threads)
        if os.path.isdir(order.folder):
            os.chdir(order.folder)
        if isinstance(order.output, Path) and not (order.output / LEDGER_NAME).is_file():
            raise DataError(
                order.output,
                f"is not the same folder on {platform.node()}; name one that all machines see",
            )
        self.segmenter = unpack(ray.get(packed), order.device)

    def __call__(self, rows: "Table") -> "Table":
        """Segment the images of rows and return the rows with what came of it."""
        order, job = self.order, self.order.job
        files = [location(file) for file in rows.column(order.column).to_pylist()]
        known = "name" in rows.column_names
        names = rows.column("name").to_pylist() if known else [_name_of(file) for file in files]
        named = list(zip(files, names, strict=True))
        left = left_of(named, ledger_of(order.output), job.settings) if order.resume else named
        seconds: dict[str, float] = {}
        before = time.perf_counter()

        def advance(name: str) -> None:
            nonlocal before
            now = time.perf_counter()
            seconds[name], before = now - before, now

        made = Made()
        unexpected = ""
        try:
            segment_located(self.segmenter, job, order.output, left, keep=_count, advance=advance, made=made)
        except Exception as error:  # a fault of ours; the images of others go on
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


def _whole(place: Location) -> Location:
    return place if isinstance(place, Url) else place.absolute()
