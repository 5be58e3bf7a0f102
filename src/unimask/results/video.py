"""The results of a video: a video of the frames with what was found, and a JSON with a record per frame."""

from fractions import Fraction
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image

from unimask.errors import needs_extra
from unimask.files import json_text
from unimask.results.found import Record, document
from unimask.results.result import Result

TICKS = 90_000  # of the clock of a video, per second


class AnnotatedVideo:
    """Writes an MP4 (H.264) of the overlays of results; frames are shown when those of the original were."""

    def __init__(self, path: Path, rate: Fraction) -> None:
        """Open the file; `rate` is the number of frames per second.

        Raises:
            MissingPackageError: PyAV is not installed (the extra `video` of unimask).
        """
        with needs_extra("video", path):
            import av
        self._frame_of = av.VideoFrame.from_ndarray
        self._container: Any = av.open(str(path), "w", format="mp4")
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        self._stream: Any = self._container.add_stream(codec, rate=rate)
        self._stream.codec_context.time_base = Fraction(1, TICKS)
        self._last = -1

    def add(self, result: Result, time: float) -> None:
        """Append a frame that is shown from `time` on, in seconds; later than the one before."""
        picture = self._fitted(result.plot())
        frame = self._frame_of(np.asarray(picture), format="rgb24")
        self._last = max(self._last + 1, round(time * TICKS))
        frame.pts, frame.time_base = self._last, Fraction(1, TICKS)
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Complete the file."""
        if self._last >= 0:
            self._container.mux(self._stream.encode())
        self._container.close()

    def _fitted(self, picture: Image.Image) -> Image.Image:
        """Return the image at the size of the first one, with even sides, which the format needs."""
        if self._last < 0:
            self._stream.width = picture.width + picture.width % 2
            self._stream.height = picture.height + picture.height % 2
            self._stream.pix_fmt = "yuv420p"
        size = (self._stream.width, self._stream.height)
        if picture.size == size:
            return picture
        sheet = Image.new("RGB", size)
        sheet.paste(picture)
        return sheet


class FrameRecords:
    """Writes `NAME.json` of a video, a line per frame, as they come.

    An object with task, height, width, categories and `frames`: of each its number, its time in seconds and
    what was found, as `Result.to_json` has it; segments of every task have their masks (`segmentation`).
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._count = 0

    def add(self, result: Result, index: int, time: float) -> None:
        """Write the record of a frame."""
        start = ","
        if self._count == 0:
            about = document(result.task, result.size, result.categories)
            start = f'{json_text(about, None)[:-1]}, "frames": ['
        self._count += 1
        self._file.write(f"{start}\n{json_text(_record(result, index, time), None)}")

    def close(self) -> None:
        """Write what comes after the last frame."""
        self._file.write("\n]}\n" if self._count else "{}\n")


def _record(result: Result, index: int, time: float) -> Record:
    about: Record = {"frame": index, "time": round(time, 6)}
    if result.task == "detection":
        return {**about, "boxes": [one.to_json() for one in result]}
    masks = zip(result, result.run_lengths, strict=True)
    return {**about, "segments": [{**one.to_json(), "segmentation": mask} for one, mask in masks]}
