"""Videos: every frame is an image, and a few of them are in memory."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from unimask.config.tasks import Task
from unimask.data.video import Frame, Video, open_video
from unimask.errors import DataError
from unimask.inference.segmenter import Segmenter
from unimask.results.found import Record
from unimask.results.ledger import result_files
from unimask.results.result import Result
from unimask.results.video import AnnotatedVideo, FrameRecords
from unimask.structures import Size

ENDINGS = {"overlay": ".overlay.mp4", "json": ".json"}
"""The formats that are one file for all frames of a video."""


@dataclass(frozen=True, kw_only=True)
class Total:
    """The segments or boxes of a category in all frames."""

    segments: int
    score: float  # sum over the segments
    area: float  # sum, pixels


@dataclass(frozen=True, kw_only=True)
class VideoResult:
    """What was found in a video; its frames are in the files."""

    task: Task
    size: Size  # (height, width) of a frame
    frames: tuple[str, ...]  # the names of their results
    totals: Mapping[str, Total]  # by category

    def to_json(self) -> Record:
        """Return what `unimask predict --json` shows: the file holds the segments, which may be millions."""
        segments = {category: total.segments for category, total in self.totals.items()}
        size = {"height": self.size[0], "width": self.size[1]}
        return {"task": self.task, **size, "frames": len(self.frames), "segments": segments}


def segment_video(
    segmenter: Segmenter,
    file: Path,
    task: Task,
    folder: Path,
    name: str,
    *,
    formats: tuple[str, ...],
    every: int = 1,
    threshold: float | None = None,
    batch_size: int = 4,
    overwrite: bool = False,
    made_with: str = "",
    write: Callable[[Result], object] = lambda result: None,
    progress: Callable[[], object] = lambda: None,
) -> tuple[VideoResult, DataError | None]:
    """Segment every n-th frame of a video; return the result, and the error that ended the frames too early.

    Of the formats, `overlay` becomes NAME.overlay.mp4 and `json` NAME.json; they are complete when they
    appear, also where the video is damaged: with the frames before that, and noted as not complete. `write`
    is called with the result of each frame, whose name is `NAME.frame_NUMBER`.

    Raises:
        DataError: the video cannot be opened, holds no frame, or the files cannot be written.
        MissingPackageError: PyAV is not installed.
    """
    targets = {one: f"{name}{ENDINGS[one]}" for one in formats if one in ENDINGS}
    with open_video(file) as video:
        summary = _Summary(task)

        def complete() -> str:
            return "" if video.damage else made_with

        try:
            files = list(targets.values())
            with (
                result_files(folder, files, overwrite=overwrite, made_with=complete) as temporary,
                ExitStack() as stack,
            ):
                paths = dict(zip(targets, temporary, strict=True))
                consumers = _consumers(paths, video, every, stack)
                for frame, result in _results(segmenter, video, task, name, every, threshold, batch_size):
                    for consume in consumers:
                        consume(result, frame)
                    write(result)
                    summary.add(result)
                    progress()
                if not summary.names and video.damage:
                    raise video.damage
        except OSError as error:
            raise DataError(folder, f"results cannot be written here ({error.strerror or error})") from None
    return summary.result(), video.damage


def _results(
    segmenter: Segmenter,
    video: Video,
    task: Task,
    name: str,
    every: int,
    threshold: float | None,
    batch_size: int,
) -> Iterator[tuple[Frame, Result]]:
    waiting: deque[Frame] = deque()

    def images() -> Iterator[Tensor]:
        for frame in video.frames(every):
            waiting.append(frame)
            yield frame.image

    for found in segmenter.find(images(), task, threshold=threshold, batch_size=batch_size):
        frame = waiting.popleft()
        yield frame, segmenter.result(f"{name}.frame_{frame.index:06}", frame.image, found, task)


def _consumers(
    paths: Mapping[str, Path], video: Video, every: int, stack: ExitStack
) -> list[Callable[[Result, Frame], object]]:
    """Return a consumer of frames for the file of each format; the stack closes the files."""
    found: list[Callable[[Result, Frame], object]] = []
    if "overlay" in paths:
        drawn = stack.enter_context(closing(AnnotatedVideo(paths["overlay"], video.rate / every)))
        found.append(lambda result, frame: drawn.add(result, frame.time))
    if "json" in paths:
        file = stack.enter_context(
            paths["json"].open("w", encoding="utf-8", errors="backslashreplace", newline="\n")
        )
        records = stack.enter_context(closing(FrameRecords(file)))
        found.append(lambda result, frame: records.add(result, frame.index, frame.time))
    return found


class _Summary:
    """Counts what is found in frames."""

    def __init__(self, task: Task) -> None:
        self._task, self._size = task, (0, 0)
        self._totals: dict[str, Total] = {}
        self.names: list[str] = []

    def add(self, result: Result) -> None:
        self._size = result.size
        self.names.append(result.name)
        for one in result:
            old = self._totals.get(one.category, Total(segments=0, score=0.0, area=0.0))
            self._totals[one.category] = Total(
                segments=old.segments + 1, score=old.score + one.score, area=old.area + one.area
            )

    def result(self) -> VideoResult:
        return VideoResult(
            task=self._task, size=self._size, frames=tuple(self.names), totals=dict(self._totals)
        )
