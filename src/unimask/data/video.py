"""Videos, frame by frame: one frame is in memory at a time (PyAV)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from unimask.errors import DataError, first_line, instead_of, needs_extra

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".ts"})


_AGAIN = "copy it again, or convert it to MP4"


def is_video(file: Path) -> bool:
    """Return whether a file is one of a video, by its name."""
    return file.suffix.lower() in VIDEO_SUFFIXES


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A frame of a video, as it is shown: turned as the file says."""

    index: int  # from 0 on
    time: float  # seconds from the start
    image: UInt8[Tensor, "3 height width"]


class Video:
    """An open video."""

    def __init__(self, path: Path, container: Any) -> None:  # PyAV is optional, and so are its types
        self._path, self._container = path, container
        self._stream = container.streams.video[0]
        self._reason = ""
        self.damage: DataError | None = None
        """What ended the frames too early, once `frames` has come to their end."""

    @property
    def rate(self) -> Fraction:
        """Frames per second, on average; 25 where the file does not say."""
        return Fraction(self._stream.average_rate or self._stream.guessed_rate or 25)

    @property
    def length(self) -> int:
        """The number of frames as the file states it or as its duration tells; 0 where neither does."""
        if self._stream.frames:
            return int(self._stream.frames)
        return round(self._duration * self.rate)

    @property
    def _duration(self) -> float:
        return (self._container.duration or 0) / 1_000_000

    def frames(self, every: int = 1) -> Iterator[Frame]:
        """Yield every n-th frame, from the first on. An error that ends them early is kept as `damage`."""
        index, time = -1, 0.0
        for index, frame in enumerate(self._decoded()):
            stated = math.nan if frame.time is None else float(frame.time)
            time = stated if math.isfinite(stated) else float(index / self.rate)
            if index % every == 0:
                yield Frame(index=index, time=time, image=_to_tensor(frame))
        alone = len(self._container.streams) == 1  # sound may be longer
        slack = (0.25 if alone else 2.0) + 0.02 * self._duration + float(1 / self.rate)
        reason = self._reason or ("a part is missing" if time < self._duration - slack else "")
        if index < 0:
            self.damage = DataError(self._path, f"holds no frame that can be decoded; {_AGAIN}")
        elif reason:
            self.damage = DataError(
                self._path, f"is damaged or cut off after {index + 1} frames ({reason}); {_AGAIN}"
            )

    def _decoded(self) -> Iterator[Any]:
        """Yield the frames of PyAV until the end or the first damage, whose reason is kept."""
        packets = 0
        try:
            for packet in self._container.demux(self._stream):
                if packet.size and packet.is_corrupt:
                    break
                packets += packet.size > 0
                yield from packet.decode()
        except (OSError, ValueError) as error:  # PyAV's errors are both
            self._reason = _reason(error)
        if packets < self._stream.frames:
            self._reason = self._reason or "a part is missing"
            with suppress(OSError, ValueError):
                yield from self._stream.decode(None)  # the frames that the decoder still has


@contextmanager
def open_video(path: Path) -> Iterator[Video]:
    """Open a video to read its frames in order.

    Raises:
        DataError: there is no such file, it is no video, or its head is damaged.
        MissingPackageError: PyAV is not installed (the extra `video` of unimask).
    """
    with needs_extra("video", path):
        import av
    if not path.is_file():
        raise DataError(path, "is no file" if path.exists() else f"no such file{instead_of(str(path))}")
    if path.stat().st_size == 0:
        raise DataError(path, "the file is empty (0 bytes); copy it again")
    try:
        container = av.open(str(path))
    except (OSError, ValueError) as error:  # PyAV's errors are both
        reason = f"cannot be opened as a video ({_reason(error)}); {_AGAIN}"
        raise DataError(path, reason) from None
    with container:
        if not container.streams.video:
            raise DataError(path, "has no pictures, only sound or text; name a video")
        yield Video(path, container)


def _to_tensor(frame: Any) -> UInt8[Tensor, "3 height width"]:
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4  # counterclockwise
    pixels = np.rot90(pixels, turns)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _reason(error: Exception) -> str:
    """Return the error of PyAV without the number before it and the file after it."""
    return str(getattr(error, "strerror", "") or first_line(error))
