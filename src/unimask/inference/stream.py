"""Many image files: reading, the model and writing go on at the same time, in bounded memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from jaxtyping import UInt8
from torch import Tensor

from unimask.config.images import Task, Tiles
from unimask.data.pillow import MOST_PIXELS
from unimask.data.pixels import Read
from unimask.data.read import read
from unimask.data.reading import Reading
from unimask.data.windows import open_large, pixels_in
from unimask.errors import DataError, MissingPackageError, NotFiniteError, UnimaskError, is_out_of_memory
from unimask.inference.batches import ahead
from unimask.inference.large import LargeResult, segment_large
from unimask.inference.segmenter import Segmenter, Tell
from unimask.inference.video import ENDINGS, VideoResult, segment_video
from unimask.results.found import save_result
from unimask.results.result import Result
from unimask.results.writing import Place, files_of
from unimask.structures import Detections, Segments
from unimask.threads import side_threads

Named = tuple[Path, str]
"""An image, and the name of its results."""

AnyResult = Result | LargeResult | VideoResult
"""What `predict` finds in an image file."""

OF_LARGE = ("png", "json", "csv")
"""The formats that there are of an image larger than memory."""

Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be done with every image. `done` is called with each result after it has been written."""

    segmenter: Segmenter
    task: Task
    threshold: float | None
    batch_size: int
    output: Path
    formats: tuple[str, ...]  # none: the default ones
    pixel_size: float | None
    every: int  # frame of a video
    done: Callable[[Named, AnyResult], object]
    advance: Callable[[], None]
    overwrite: bool  # files that are no results
    made_with: Callable[[Path], str]  # what is noted with the results of an image
    reading: Reading  # of all images of the run
    failed: list[UnimaskError] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)  # what is to be said, and about which images

    def tell(self, file: Path, sentence: str) -> None:
        """Keep a sentence about an image."""
        self.notes.setdefault(sentence, []).append(file.name)


def segment_all(work: Work, pictures: Sequence[Named]) -> None:
    """Segment and write every image, in order; errors of single images are kept in `work.failed`.

    Reading, the model and writing go on at the same time, with at most a few batches in memory.
    """
    with side_threads(1) as writer:
        written: deque[Future[None]] = deque()
        for named, result in _results(work, _read(work, pictures)):
            written.append(writer.submit(_write, work, named, result))
            while len(written) > work.batch_size:
                written.popleft().result()
        for future in written:
            future.result()


def segment_large_images(work: Work, images: Sequence[Named]) -> None:
    """Segment images that are larger than memory, in tiles: NAME.segments.tif and NAME.json come out.

    The other formats are those of `OF_LARGE`; where more are asked for, that is an error of the image.
    """
    for file, name in images:
        with collected(work.failed, file), open_large(file, work.reading) as image:
            for note in image.notes:
                work.tell(file, note)
            if missing := [one for one in work.formats if one not in OF_LARGE]:
                reason = f"is too large for --format {','.join(missing)}; there are {','.join(OF_LARGE)}"
                raise DataError(file, reason)
            result = segment_large(
                work.segmenter,
                image,
                work.task,
                work.output,
                name,
                table="csv" in work.formats,
                pixel_size=work.pixel_size,
                threshold=work.threshold,
                batch_size=work.batch_size,
                overwrite=work.overwrite,
                made_with=work.made_with(file),
            )
            work.done((file, name), result)
        work.advance()


def segment_videos(work: Work, videos: Sequence[Named]) -> None:
    """Segment videos frame by frame: NAME.overlay.mp4 and NAME.json; other formats are of single frames."""
    formats = work.formats or tuple(ENDINGS)
    of_frames = [one for one in formats if one not in ENDINGS]

    def write(result: Result) -> None:
        if of_frames:
            _save(work, result, result.name, "", of_frames)

    for file, name in videos:
        with collected(work.failed, file):
            result, damage = segment_video(
                work.segmenter,
                file,
                work.task,
                work.output,
                name,
                formats=formats,
                every=work.every,
                threshold=work.threshold,
                batch_size=work.batch_size,
                overwrite=work.overwrite,
                made_with="" if of_frames else work.made_with(file),
                write=write,
            )
            work.done((file, name), result)
            if damage is not None:
                raise damage
        work.advance()


def are_large(segmenter: Segmenter, file: Path) -> bool:
    """Return whether an image is too large to be read at once, and is to be cut into tiles."""
    in_tiles = isinstance(segmenter.view, Tiles)
    return in_tiles and pixels_in(file) > MOST_PIXELS


Image = UInt8[Tensor, "3 _height _width"]


def _read(work: Work, pictures: Sequence[Named]) -> Iterator[tuple[Named, Image]]:
    """Yield the images that can be read, the next ones read meanwhile."""

    def read_one(named: Named) -> Read:
        return read(named[0], work.reading)

    for named, future in ahead(read_one, pictures, work.batch_size, threads=2):
        for one in _collected(work, named, future.result):
            for note in one.notes:
                work.tell(named[0], note)
            yield named, one.pixels


def _collected(work: Work, named: Named, make: Callable[[], Made]) -> list[Made]:
    """Return what `make` returns; nothing where it fails, which is kept for later."""
    with collected(work.failed, named[0]):
        return [make()]
    work.advance()
    return []


def _results(work: Work, images: Iterator[tuple[Named, Image]]) -> Iterator[tuple[Named, Result]]:
    """Yield the results in order; where a batch fails, the images that are under way go one by one."""
    waiting: deque[tuple[Named, Image]] = deque()
    files: list[Path] = []  # of this round, by the index that `find` knows

    def taken() -> Iterator[Image]:
        for one in images:
            waiting.append(one)
            files.append(one[0][0])
            yield one[1]

    def tell(index: int, sentence: str) -> None:
        work.tell(files[index], sentence)

    while True:
        files.clear()
        try:
            for found in _find(work, taken(), work.batch_size, tell):
                named, image = waiting.popleft()
                yield named, work.segmenter.result(named[0].stem, image, found, work.task)
            return
        except (NotFiniteError, MemoryError, RuntimeError) as error:
            if not isinstance(error, NotFiniteError) and not is_out_of_memory(error):
                raise
        while waiting:
            named, image = waiting.popleft()
            alone = _find(work, [image], 1, partial(_tell_of, work, named[0]))
            for found in _collected(work, named, partial(next, alone)):
                yield named, work.segmenter.result(named[0].stem, image, found, work.task)


def _tell_of(work: Work, file: Path, index: int, sentence: str) -> None:
    work.tell(file, sentence)


def _find(
    work: Work, images: Iterable[Image], batch_size: int, tell: Tell
) -> Iterator[Segments | Detections]:
    return work.segmenter.find(images, work.task, threshold=work.threshold, batch_size=batch_size, tell=tell)


def _write(work: Work, named: Named, result: Result) -> None:
    with collected(work.failed, named[0]):
        _save(work, result, named[1], str(named[0]), work.formats, work.made_with(named[0]))
        work.done(named, result)
    work.advance()


def _save(
    work: Work, result: Result, name: str, image: str, formats: Sequence[str], made_with: str = ""
) -> None:
    """Write the files of an image or a frame; those that are joined for the folder become parts."""
    place = Place(folder=work.output, name=name, image=image, pixel_size=work.pixel_size)
    files = files_of(result, formats, place, parts=True)
    save_result(work.output, name, files, overwrite=work.overwrite, made_with=made_with)


@contextmanager
def collected(failed: list[UnimaskError], file: Path) -> Iterator[None]:
    """Keep an error of one image inside for later, so that it does not stop the others."""
    try:
        yield
    except NotFiniteError as error:
        failed.append(error.of(file))
    except (DataError, MissingPackageError) as error:
        failed.append(error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        failed.append(
            DataError(file, "needs more memory than there is; make it smaller or cut it into tiles")
        )
