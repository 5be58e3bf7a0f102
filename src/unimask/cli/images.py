"""Many pictures: reading, the model and writing go on at the same time."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from unimask.cli.failures import collected, is_out_of_memory
from unimask.config.images import Task, Tiles
from unimask.data.read import MOST_PIXELS, read_image
from unimask.data.windows import open_large, pixels_in
from unimask.errors import UnimaskError
from unimask.inference.large import LargeResult, save_large, segment_large
from unimask.inference.segmenter import Segmenter
from unimask.results.boxes import BoxResult
from unimask.results.segments import Result

Named = tuple[Path, str]
"""A picture, and the name of its results."""

AnyResult = Result | BoxResult

LARGE_PART = 1024
"""So many pixels a side of a large picture are segmented at a time, if its tiles are smaller."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be done with every picture. `done` is called with each result after it has been written."""

    segmenter: Segmenter
    task: Task
    threshold: float | None
    batch_size: int
    output: Path
    done: Callable[[Named, AnyResult], object]
    advance: Callable[[], None]
    failed: list[UnimaskError] = field(default_factory=list)


def segment_all(work: Work, pictures: Sequence[Named]) -> None:
    """Segments and writes every picture, in order; errors of single pictures are kept in `work.failed`.

    Pictures of one shape among the next few share a batch. At most a few pictures and results are in memory.
    """
    with ThreadPoolExecutor(2) as readers, ThreadPoolExecutor(1) as writer:
        written: deque[Future[None]] = deque()
        for batch in _read(work, readers, pictures):
            for named, result in _segment(work, batch):
                written.append(writer.submit(_write, work, named, result))
            while len(written) > 2 * work.batch_size:
                written.popleft().result()
        for future in written:
            future.result()


def segment_large_pictures(work: Work, pictures: Sequence[Named]) -> list[tuple[Named, LargeResult]]:
    """Segments pictures that are larger than memory, in tiles: NAME.segments.tif and NAME.json come out."""
    view = work.segmenter.model_file.experiment.data.view
    assert isinstance(view, Tiles)  # `are_large` picks none otherwise
    found = []
    for file, name in pictures:
        with collected(work.failed, file):
            work.output.mkdir(parents=True, exist_ok=True)
            with open_large(file) as picture:
                result = segment_large(
                    work.segmenter,
                    picture,
                    work.task,
                    work.output / f"{name}.segments.tif",
                    side=_side(view),
                    overlap=view.overlap,
                    threshold=work.threshold,
                )
            save_large(result, work.segmenter.categories, work.task, work.output / f"{name}.json")
            found.append(((file, name), result))
        work.advance()
    return found


def _side(view: Tiles) -> int:
    """The side of what is segmented of a large picture at a time: as many tiles as fit, at least one."""
    more = max(0, LARGE_PART - view.size) // (view.size - view.overlap)
    return view.size + more * (view.size - view.overlap)


def are_large(segmenter: Segmenter, file: Path) -> bool:
    """Whether a picture is too large to be read at once, and is seen in tiles."""
    in_tiles = isinstance(segmenter.model_file.experiment.data.view, Tiles)
    return in_tiles and pixels_in(file) > MOST_PIXELS


Image = UInt8[Tensor, "3 _height _width"]


def _read(
    work: Work, readers: ThreadPoolExecutor, pictures: Sequence[Named]
) -> Iterator[list[tuple[Named, Image]]]:
    """Batches of pictures, the next ones read meanwhile."""
    ahead: deque[tuple[Named, Future[Image]]] = deque()
    waiting = iter(pictures)
    batch: list[tuple[Named, Image]] = []
    while True:
        for named in waiting:
            ahead.append((named, readers.submit(read_image, named[0])))
            if len(ahead) > 2 * work.batch_size:
                break
        if not ahead:
            break
        named, future = ahead.popleft()
        before = len(work.failed)
        with collected(work.failed, named[0]):
            batch.append((named, future.result()))
        if len(work.failed) > before:
            work.advance()
        if len(batch) == work.batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _segment(work: Work, batch: list[tuple[Named, Image]]) -> Iterator[tuple[Named, AnyResult]]:
    """The results of a batch; where memory runs out, its pictures are taken one by one."""
    if len(batch) > 1:
        with suppress(_TooMuch):
            yield from _together(work, batch)
            return
    for one in batch:
        before = len(work.failed)
        with collected(work.failed, one[0][0]):
            yield from _together(work, [one])
        if len(work.failed) > before:
            work.advance()


class _TooMuch(Exception):
    """A batch does not fit into memory."""


def _together(work: Work, batch: list[tuple[Named, Image]]) -> list[tuple[Named, AnyResult]]:
    images = [image for _, image in batch]
    names = [named[0].stem for named, _ in batch]
    try:
        found: Sequence[AnyResult] = work.segmenter.predict_images(
            images, names, work.task, threshold=work.threshold, batch_size=work.batch_size
        )
    except (MemoryError, RuntimeError) as error:
        if len(batch) > 1 and is_out_of_memory(error):
            raise _TooMuch from None
        raise
    return [(named, result) for (named, _), result in zip(batch, found, strict=True)]


def _write(work: Work, named: Named, result: AnyResult) -> None:
    with collected(work.failed, named[0]):
        result.save(work.output, named[1])
        work.done(named, result)
    work.advance()
