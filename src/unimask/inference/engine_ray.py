"""Many images with Ray, on this machine or a cluster: actors hold a segmenter each and write their own files.

Ray hands out paths, starts again what was lost, and returns a small row per image; no pixels leave an actor.
What is segmented, written and left out is decided by the same functions as without Ray (`inference/run.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unimask.config.tasks import Task
from unimask.config.values import check_count
from unimask.errors import ConfigError
from unimask.inference.batches import Progress
from unimask.inference.job import Options
from unimask.inference.ray_actors import ActorSettings, mapped
from unimask.inference.ray_cluster import ActorPool, as_our_error, connected, import_ray, quiet
from unimask.inference.resuming import Asked, left_of
from unimask.inference.rows import COMPLETE, DIED, LOST, Tally, named_table, rows_file, with_status
from unimask.inference.run import Predicted, join, joined_notes, name_images, plan_job, reserved
from unimask.inference.segmenter import Segmenter
from unimask.remote import Location, Url, location
from unimask.results.folder import JOINED
from unimask.results.ledger import ledger_of

if TYPE_CHECKING:
    from pyarrow import Table
    from ray.data import Dataset

_MOST = 256  # images that Ray hands out together: what the loss of an actor costs


def predict_with_ray(
    segmenter: Segmenter | Callable[[str], Segmenter],
    images: Sequence[str | Path],
    output: str | Path,
    options: Options,
    progress: Progress = lambda done, total: None,
    *,
    device: str = "auto",
    resume: bool = False,
    address: str = "",
    actors: int = 0,
) -> Predicted:
    """Segment image files and videos as `run.predict`, into the same files, by actors of Ray.

    A row per image is written into `images.parquet`, in no particular order: `path`, `name` of the results,
    `status` (segmented, failed, complete before, lost), number of `segments` or boxes, `seconds` since the
    previous image, `error`, and `notes`. Where an actor or a machine is lost, the images that it was given
    together, at most 256, are segmented again: by Ray, and those that it gives up one by one at the end.
    After the loss of this process, `resume` goes on.

    Args:
        segmenter: as `run.predict`; a function is called once, with "cpu".
        images: as `run.predict`; the same files on every machine, under the same paths.
        output: as `run.predict`; the same folder on every machine.
        options: what `run.predict` takes one by one.
        progress: as `run.predict`.
        device: of each actor.
        resume: as `run.predict`.
        address: of a running cluster; by default that in `RAY_ADDRESS`, else Ray is started on this machine
            and ended afterwards.
        actors: how many; by default one per GPU, and without any one per four CPUs. They share the CPUs.

    Raises:
        UnimaskError: as `run.predict`, and where there is no such cluster, or its machines lack what is
            needed.
    """
    options.check()
    check_count(actors, "actors", least=0)
    folder = location(output)
    named, said = name_images(images, options.formats)
    model = segmenter if isinstance(segmenter, Segmenter) else segmenter("cpu")
    job, more = plan_job(model, named, folder, options)
    left = left_of(named, ledger_of(folder), job.settings) if resume else named
    found, names = Tally(), {name for _, name in left}
    with connected(address) as ray, rows_file(folder, job) as write:
        complete = [one for one in named if one[1] not in names]
        write(with_status(named_table(complete), COMPLETE))
        progress(0, len(left))
        lost = left
        for most in (_MOST, 1):
            pool = ActorPool.of(ray, device, actors)  # of the machines that are still there
            settings = ActorSettings(job=job, output=_whole(folder), threads=pool.threads, device=device)
            for rows in _segmented(ray, model, settings, pool, lost, most):
                found.add(rows)
                write(rows)
                progress(len(found.parts), len(left))
            lost = [one for one in left if one[1] not in found.parts]
        found.failed += [f"{file}: {DIED}" for file, _ in lost]
        write(with_status(named_table(lost), LOST, DIED))
    if reserved(options.formats):
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
        dataset: with the paths of image files in a column. Make its blocks small (`repartition`): where an
            actor is lost, its block is segmented again.
        segmenter: loaded from files (`unimask.load`); Ray brings it to each machine once.
        output: the same folder on every machine.
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
    ray = import_ray()
    options = Options(
        task=task,
        threshold=threshold,
        batch_size=batch_size,
        formats=tuple(formats),
        pixel_size=pixel_size,
        every=every,
        overwrite=overwrite,
    )
    options.check()
    check_count(actors, "actors", least=0)
    if of_all := [one for one in formats if one in JOINED]:
        raise ConfigError("format", f"{of_all[0]} is one file for all images; of a data set take others")
    job, _ = plan_job(segmenter, [], location(output), options)
    pool = ActorPool.of(ray, device, actors)
    settings = ActorSettings(
        job=job,
        output=_whole(location(output)),
        threads=pool.threads,
        device=device,
        column=column,
        resume=resume,
    )
    return mapped(ray, dataset, segmenter, settings, pool, 8 * batch_size)


def _segmented(
    ray: Any, segmenter: Segmenter, settings: ActorSettings, pool: ActorPool, left: Sequence[Asked], most: int
) -> Iterator["Table"]:
    """Yield the rows of the images, a table of at most `most` at a time as they are segmented.

    Raises:
        UnimaskError: the actors cannot work.
    """
    if not left:
        return
    size = min(most, max(settings.job.options.batch_size, len(left) // (8 * pool.actors)))
    tables = [named_table(left[start : start + size]) for start in range(0, len(left), size)]
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # images whose actors died do not end the run
    with ray.data.DataContext.current(context), quiet("ray.data"):
        dataset = mapped(ray, ray.data.from_arrow(tables), segmenter, settings, pool, size)
        try:
            yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")
        except Exception as error:  # of many kinds
            raise as_our_error(error) from error


def _whole(place: Location) -> Location:
    """Return an absolute path, or the address in a store."""
    return place if isinstance(place, Url) else place.absolute()
