"""One thread that owns the models; requests wait in a queue, and those that fit share a batch."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from unimask.config.data import Whole
from unimask.config.values import check_count
from unimask.inference.segmenter import Segmenter
from unimask.inference.tiles import tile_placement, tiling_of
from unimask.machine import seconds_of
from unimask.serve.cached import CachedPrediction, predict_cached
from unimask.serve.limits import Limits, Refusal, too_late
from unimask.serve.telemetry import Telemetry

BATCH_SIZES = (1, 2, 4, 8)  # that are tried
WORTH = 0.9  # a larger batch is taken if a tile takes at most this share of the time before
LONGEST_TRIAL = 1.0  # seconds; where one pass takes longer, larger batches are not tried


@dataclass(frozen=True, kw_only=True, eq=False)
class _Request:
    """An image for a model, and what is to be made of its prediction."""

    model: str
    name: str
    image: UInt8[Tensor, "3 height width"]
    finish: Callable[[CachedPrediction], object]
    views: int
    shape: tuple[int, ...]  # jobs of one shape can share a batch
    since: float  # when it came
    deadline: float
    future: "Future[Any]"


class Engine:
    """Answers requests one batch after the other.

    `batch_size` is the largest number of tiles that go through a model together; 0: what is fastest here,
    measured for each model when the thread starts. `telemetry` tells how long the stages take.
    """

    def __init__(self, segmenters: Mapping[str, Segmenter], limits: Limits, batch_size: int = 0) -> None:
        check_count(batch_size, "batch_size", least=0)
        self.segmenters = MappingProxyType(dict(segmenters))
        self.limits = limits
        self.batch_sizes = dict.fromkeys(segmenters, max(1, batch_size))
        self.largest_batch = 0  # of requests, so far
        self.telemetry = Telemetry()
        self.telemetry.watch(lambda: self.waiting)
        self._measure = batch_size == 0
        self._line: deque[_Request] = deque()
        self._change = threading.Condition()
        self._open = True
        self._running = 0
        self._seconds = 1.0  # that recent requests took
        self._thread = threading.Thread(target=self._work, name="unimask-engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests in the queue and in work."""
        return len(self._line) + self._running

    def retry_after(self) -> int:
        """Return in how many seconds there may be room, at least 1."""
        return max(1, min(600, math.ceil(self._seconds * self.waiting / 2)))

    def submit(
        self,
        model: str,
        name: str,
        image: UInt8[Tensor, "3 height width"],
        finish: Callable[[CachedPrediction], object],
    ) -> "Future[Any]":
        """Return the future of what `finish`, run in the engine's thread, makes of the model's prediction.

        Raises:
            Refusal: the image has too many tiles, the queue is full, or the engine is closed.
        """
        config = self.segmenters[model].model_file.experiment.data
        size = image.shape[1], image.shape[2]
        views = len(tiling_of(size, config).tiles)
        if views > self.limits.views:
            raise Refusal(
                413,
                f"This model would see the image in {views:,} tiles, and at most {self.limits.views:,} are "
                "taken. Send it in parts, or use `unimask predict`.",
            )
        now = time.monotonic()
        job = _Request(
            model=model,
            name=name,
            image=image,
            finish=finish,
            views=views,
            shape=tile_placement(size, config).canvas
            if isinstance(config.view, Whole)
            else (config.view.size,),
            since=now,
            deadline=now + self.limits.seconds,
            future=Future(),
        )
        with self._change:
            if not self._open:
                raise Refusal(503, "The server is shutting down.", {"Retry-After": "10"})
            if self.waiting >= self.limits.waiting:
                raise full(self.retry_after())
            self._line.append(job)
            self._change.notify()
        return job.future

    def close(self) -> None:
        """Finish the requests in work and refuse those that wait."""
        with self._change:
            self._open = False
            left = list(self._line)
            self._line.clear()
            self._change.notify()
        for job in left:
            _refuse(job, Refusal(503, "The server is shutting down.", {"Retry-After": "10"}))
        self._thread.join(timeout=self.limits.seconds)

    def _work(self) -> None:
        if self._measure:
            for model, segmenter in self.segmenters.items():
                self.batch_sizes[model] = fastest_batch_size(segmenter)
        while jobs := self._take():
            started = time.monotonic()
            try:
                self._answer(jobs)
            except Exception as error:  # the thread goes on after any error
                for job in jobs:
                    _refuse(job, error)
            with self._change:
                self._running = 0
            share = (time.monotonic() - started) / len(jobs)
            self._seconds += 0.2 * (share - self._seconds)

    def _take(self) -> list[_Request]:
        """Return the first job of the queue and those that share its batch; none if the engine is closed."""
        with self._change:
            while self._open and not self._line:
                self._change.wait()
            if not self._open:
                return []
            jobs = [self._line.popleft()]
            room = self.batch_sizes[jobs[0].model] - jobs[0].views
            for job in list(self._line):
                if job.views <= room and (job.model, job.shape) == (jobs[0].model, jobs[0].shape):
                    self._line.remove(job)
                    jobs.append(job)
                    room -= job.views
            self._running = len(jobs)
            return jobs

    def _answer(self, jobs: list[_Request]) -> None:
        for job in jobs:
            self.telemetry.spent("waiting", time.monotonic() - job.since)
        wanted = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        for job in wanted:
            if _late(job):
                job.future.set_exception(too_late(self.limits))
        wanted = [job for job in wanted if not job.future.done()]
        if not wanted:
            return
        self.largest_batch = max(self.largest_batch, len(wanted))
        try:
            seen = self._predict(wanted)
        except Exception as error:
            if len(wanted) == 1:
                wanted[0].future.set_exception(error)
                return
            seen = []
        if not seen:  # one of them failed; the others are tried alone
            for job in wanted:
                self._answer_alone(job)
            return
        for job, one in zip(wanted, seen, strict=True):
            self._finish(job, one)

    def _answer_alone(self, job: _Request) -> None:
        try:
            (seen,) = self._predict([job])
        except Exception as error:
            job.future.set_exception(error)
        else:
            self._finish(job, seen)

    def _finish(self, job: _Request, seen: CachedPrediction) -> None:
        try:
            with self.telemetry.stage("answer"):
                answer = job.finish(seen)
        except Exception as error:
            job.future.set_exception(error)
        else:
            job.future.set_result(answer)

    def _predict(self, jobs: list[_Request]) -> list[CachedPrediction]:
        def check_time() -> None:
            if all(_late(job) for job in jobs):
                raise too_late(self.limits)

        model = jobs[0].model
        with self.telemetry.stage("model", images=len(jobs)):
            return predict_cached(
                self.segmenters[model],
                [job.image for job in jobs],
                [job.name for job in jobs],
                self.batch_sizes[model],
                check_time,
            )


def full(seconds: int) -> Refusal:
    """Return the refusal of a request beyond the limit."""
    return Refusal(
        503,
        f"There are too many requests at the moment. Try again in {seconds} seconds.",
        {"Retry-After": str(seconds)},
    )


def _late(job: _Request) -> bool:
    return time.monotonic() > job.deadline


def _refuse(job: _Request, error: Exception) -> None:
    if not job.future.done() and (job.future.running() or job.future.set_running_or_notify_cancel()):
        job.future.set_exception(error)


def fastest_batch_size(segmenter: Segmenter) -> int:
    """Return how many tiles go through the model together: the fastest of a few numbers, on a grey image."""
    config = segmenter.model_file.experiment.data
    side = 512 if isinstance(config.view, Whole) else config.view.size
    image = torch.full((3, side, side), 127, dtype=torch.uint8)
    best, least = 1, math.inf
    try:
        _seconds(segmenter, image, 1)  # the first pass of all is slower
        for size in BATCH_SIZES:
            seconds = min(_seconds(segmenter, image, size) for _ in range(2))
            if seconds / size <= WORTH * least:
                best, least = size, seconds / size
            if seconds > LONGEST_TRIAL:
                break
    except Exception:  # too little memory for one of them: the best so far is taken
        return best
    return best


def _seconds(segmenter: Segmenter, image: UInt8[Tensor, "3 height width"], size: int) -> float:
    images, names = [image] * size, [""] * size
    return seconds_of(lambda: predict_cached(segmenter, images, names, size, lambda: None), segmenter.device)
