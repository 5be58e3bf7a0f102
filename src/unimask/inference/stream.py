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

from unimask.config.data import Tiles
from unimask.data.pillow import MOST_PIXELS
from unimask.data.pixels import Read
from unimask.data.read import read
from unimask.data.video import is_video
from unimask.data.windows import open_large, pixels_in
from unimask.errors import DataError, MissingPackageError, NotFiniteError, is_out_of_memory
from unimask.inference.batches import ahead
from unimask.inference.job import PredictionJob
from unimask.inference.large import LargeResult, segment_large
from unimask.inference.postprocessing import Tell
from unimask.inference.resuming import Named, made_with
from unimask.inference.segmenter import Segmenter
from unimask.inference.video import ENDINGS, VideoResult, segment_video
from unimask.remote import Location, location
from unimask.results.found import save_result
from unimask.results.result import Result
from unimask.results.writing import Place, files_of
from unimask.structures import Detections, Segments
from unimask.threads import side_threads

AnyResult = Result | LargeResult | VideoResult
"""The result for an image file."""

Keep = Callable[[Location, str, AnyResult], object]
"""Returns what is to be kept of a result, given the location of the image and the name of the result."""

OF_LARGE = ("png", "json", "csv")
"""The formats for an image larger than memory."""

Thing = TypeVar("Thing")


@dataclass(kw_only=True)
class Made:
    """The outcome of some images: plain data."""

    kept: dict[str, object] = field(default_factory=dict)  # what is kept of a result, by its name
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)  # likewise: names of what is to be joined
    failed: dict[str, str] = field(default_factory=dict)  # the message of each image that failed, likewise
    notes: dict[str, list[str]] = field(default_factory=dict)  # sentence -> names of images


@dataclass(frozen=True, kw_only=True)
class Work:
    """A job in this process. `advance` is called after each image, whether it was segmented or not."""

    segmenter: Segmenter
    job: PredictionJob
    folder: Path  # of the results
    keep: Keep
    advance: Callable[[str], object]  # is given the name of the results
    made: Made = field(default_factory=Made)
    address: Callable[[Path], str] = str  # the path or address of an image in the files of results

    def made_with(self, file: Path) -> str:
        """Return the digest that the ledger keeps with the results of an image."""
        return made_with(self.job.settings, file)

    def tell(self, file: Path, sentence: str) -> None:
        """Keep a sentence about an image."""
        self.made.notes.setdefault(sentence, []).append(file.name)

    def done(self, named: Named, result: AnyResult) -> None:
        """Keep what is to be kept of a result that has been written."""
        self.made.kept[named[1]] = self.keep(location(self.address(named[0])), named[1], result)
        self.made.parts[named[1]] = result.frames if isinstance(result, VideoResult) else (named[1],)


def segment_files(work: Work, named: Sequence[Named]) -> None:
    """Segment and write images and videos: first the images that fit into memory."""
    videos = [one for one in named if is_video(one[0])]
    large = [one for one in named if one not in videos and are_large(work.segmenter, one[0])]
    segment_all(work, [one for one in named if one not in videos and one not in large])
    segment_large_images(work, large)
    segment_videos(work, videos)


def segment_all(work: Work, images: Sequence[Named]) -> None:
    """Segment and write every image, in order; errors of single images are kept in `work.made.failed`.

    Reading, the model and writing go on at the same time, with at most a few batches in memory.
    """
    with side_threads(1) as writer:
        written: deque[Future[None]] = deque()
        for named, result in _results(work, _read(work, images)):
            written.append(writer.submit(_write, work, named, result))
            while len(written) > work.job.options.batch_size:
                written.popleft().result()
        for future in written:
            future.result()


def segment_large_images(work: Work, images: Sequence[Named]) -> None:
    """Segment images that are larger than memory, in tiles: NAME.segments.tif and NAME.json come out.

    The other formats are those of `OF_LARGE`; where more are asked for, that is an error of the image.
    """
    for file, name in images:
        with collected(work, (file, name)), open_large(file, work.job.reading) as image:
            for note in image.notes:
                work.tell(file, note)
            if missing := [one for one in work.job.options.formats if one not in OF_LARGE]:
                reason = f"is too large for --format {','.join(missing)}; there are {','.join(OF_LARGE)}"
                raise DataError(file, reason)
            result = segment_large(
                work.segmenter,
                image,
                work.job.task,
                work.folder,
                name,
                table="csv" in work.job.options.formats,
                pixel_size=work.job.options.pixel_size,
                threshold=work.job.options.threshold,
                batch_size=work.job.options.batch_size,
                overwrite=work.job.options.overwrite,
                made_with=work.made_with(file),
            )
            work.done((file, name), result)
        work.advance(name)


def segment_videos(work: Work, videos: Sequence[Named]) -> None:
    """Segment videos frame by frame: NAME.overlay.mp4 and NAME.json; other formats are of single frames."""
    formats = work.job.options.formats or tuple(ENDINGS)
    of_frames = [one for one in formats if one not in ENDINGS]

    def write(result: Result) -> None:
        if of_frames:
            _save(work, result, result.name, "", of_frames)

    for file, name in videos:
        with collected(work, (file, name)):
            result, damage = segment_video(
                work.segmenter,
                file,
                work.job.task,
                work.folder,
                name,
                formats=formats,
                every=work.job.options.every,
                threshold=work.job.options.threshold,
                batch_size=work.job.options.batch_size,
                overwrite=work.job.options.overwrite,
                made_with="" if of_frames else work.made_with(file),
                write=write,
            )
            work.done((file, name), result)
            if damage is not None:
                raise damage
        work.advance(name)


def are_large(segmenter: Segmenter, file: Path) -> bool:
    """Return whether an image is too large to be read at once, and is to be cut into tiles."""
    in_tiles = isinstance(segmenter.view, Tiles)
    return in_tiles and pixels_in(file) > MOST_PIXELS


Image = UInt8[Tensor, "3 _height _width"]


def _read(work: Work, images: Sequence[Named]) -> Iterator[tuple[Named, Image]]:
    """Yield the images that can be read; the next ones are read meanwhile."""

    def read_one(named: Named) -> Read:
        return read(named[0], work.job.reading)

    for named, future in ahead(read_one, images, work.job.options.batch_size, threads=2):
        for one in _collected(work, named, future.result):
            for note in one.notes:
                work.tell(named[0], note)
            yield named, one.pixels


def _collected(work: Work, named: Named, make: Callable[[], Thing]) -> list[Thing]:
    """Return what `make` returns; nothing where it fails, which is kept for later."""
    with collected(work, named):
        return [make()]
    work.advance(named[1])
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
            for found in _find(work, taken(), work.job.options.batch_size, tell):
                named, image = waiting.popleft()
                yield named, work.segmenter.result(named[0].stem, image, found, work.job.task)
            return
        except (NotFiniteError, MemoryError, RuntimeError) as error:
            if not isinstance(error, NotFiniteError) and not is_out_of_memory(error):
                raise
        while waiting:
            named, image = waiting.popleft()
            alone = _find(work, [image], 1, partial(_tell_of, work, named[0]))
            for found in _collected(work, named, partial(next, alone)):
                yield named, work.segmenter.result(named[0].stem, image, found, work.job.task)


def _tell_of(work: Work, file: Path, index: int, sentence: str) -> None:
    work.tell(file, sentence)


def _find(
    work: Work, images: Iterable[Image], batch_size: int, tell: Tell
) -> Iterator[Segments | Detections]:
    return work.segmenter.find(
        images, work.job.task, threshold=work.job.options.threshold, batch_size=batch_size, tell=tell
    )


def _write(work: Work, named: Named, result: Result) -> None:
    with collected(work, named):
        address, made_with = work.address(named[0]), work.made_with(named[0])
        _save(work, result, named[1], address, work.job.options.formats, made_with)
        work.done(named, result)
    work.advance(named[1])


def _save(
    work: Work, result: Result, name: str, image: str, formats: Sequence[str], made_with: str = ""
) -> None:
    """Write the files of an image or a frame; those that are joined for the folder become parts."""
    place = Place(folder=work.folder, name=name, image=image, pixel_size=work.job.options.pixel_size)
    files = files_of(result, formats, place, parts=True)
    save_result(work.folder, name, files, overwrite=work.job.options.overwrite, made_with=made_with)


@contextmanager
def collected(work: Work, named: Named) -> Iterator[None]:
    """Keep an error of one image inside for later, so that it does not stop the others."""
    file, name = named
    try:
        yield
    except NotFiniteError as error:
        work.made.failed[name] = str(error.of(file))
    except (DataError, MissingPackageError) as error:
        work.made.failed[name] = str(error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = "needs more memory than there is; make it smaller or cut it into tiles"
        work.made.failed[name] = str(DataError(file, reason))
