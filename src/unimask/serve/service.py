"""What the routes share: the models, their tasks and thresholds, and the way of an image to them."""

import asyncio
import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import UploadFile
from starlette.concurrency import run_in_threadpool

from unimask.config.tasks import ALL_TASKS, Task
from unimask.inference.segmenter import Segmenter
from unimask.results.found import Record, category_records
from unimask.serve.cached import CachedPrediction, Offer, Thresholds, offers_of
from unimask.serve.engine import Engine
from unimask.serve.images import Decoded, decode, display_name
from unimask.serve.limits import Refusal, too_late
from unimask.threads import aside


class Service:
    """The models that are served, their tasks and thresholds, and the limits."""

    def __init__(self, engine: Engine, reports: Mapping[str, Path]) -> None:
        """Share an engine; `reports` are those of the runs that models come from, by the names of models."""
        self.engine = engine
        self.reports = {secrets.token_urlsafe(18): (model, path) for model, path in reports.items()}
        self.limits = engine.limits
        self.offers = {name: offers_of(segmenter) for name, segmenter in engine.segmenters.items()}
        self.default = next(iter(engine.segmenters))

    def model(self, name: str) -> str:
        """Return the name of a model that is served; of the first one for an empty name.

        Raises:
            Refusal: no model has this name.
        """
        if name and name not in self.offers:
            raise Refusal(422, f"There is no model {name!r} here; there are: {', '.join(self.offers)}.")
        return name or self.default

    def question(self, model: str, task: str, score: float | None, overlap: float | None) -> Thresholds:
        """Return the thresholds of a request, the model's own where none are given.

        Raises:
            Refusal: the model does not have the task, the task no such threshold, or it is not from 0 to 1.
        """
        offer = self.offer(model, task)
        given = {"score": score, "overlap": overlap}
        for name, value in given.items():
            if value is None:
                continue
            if name not in offer.adjustable:
                raise Refusal(422, f"The result of {task} has no threshold of {name}; leave it out.")
            if not 0 <= value <= 1:
                raise Refusal(422, f"A threshold is from 0 to 1; got {value:g} for {name}.")
        return Thresholds(
            **{
                name: vars(offer.thresholds)[name] if value is None else value
                for name, value in given.items()
            }
        )

    def offer(self, model: str, task: str) -> Offer:
        """Return what the model offers for a task.

        Raises:
            Refusal: there is no such task, or the model does not have it.
        """
        found = next((one for name, one in self.offers[model].items() if name == task), None)
        if found is None:
            raise Refusal(422, f"There is no task {task!r}; there are: {', '.join(ALL_TASKS)}.")
        if found.reason:
            raise Refusal(422, found.reason)
        return found

    async def ask(self, model: str, upload: UploadFile, finish: Callable[[CachedPrediction], object]) -> Any:
        """Return what `finish` makes of a model's prediction for an uploaded image.

        Raises:
            Refusal: the image cannot be used, the queue is full, or the time is up.
        """
        content = await upload.read()
        reading = self.engine.segmenters[model].reading
        decoded = await run_in_threadpool(aside(decode), content, self.limits, reading)
        del content
        name = display_name(upload.filename or "")
        return await self.predicted(model, name, decoded, finish)

    async def predicted(
        self, model: str, name: str, decoded: Decoded, finish: Callable[[CachedPrediction], object]
    ) -> Any:
        """Return what `finish` makes of a model's prediction for an image, which keeps the notes about it.

        Raises:
            Refusal: the queue is full, or the time is up.
        """

        def with_notes(seen: CachedPrediction) -> object:
            return finish(replace(seen, notes=decoded.notes))

        return await self.wait(self.engine.submit(model, name, decoded.pixels, with_notes))

    async def wait(self, future: "Future[Any]") -> Any:
        """Return the engine's answer.

        Raises:
            Refusal: the time is up. The engine stops too, after its next tile.
        """
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.limits.seconds + 5)
        except TimeoutError:
            raise too_late(self.limits) from None

    def models(self) -> list[Record]:
        """Return the models and the limits, as `/v1/models` answers."""
        return [
            self._about(name, segmenter, self.offers[name])
            for name, segmenter in self.engine.segmenters.items()
        ]

    def report(self, address: str) -> bytes:
        """Return the current report of the run that a model comes from.

        Raises:
            Refusal: there is none at this address, which `/v1/models` tells and which cannot be guessed.
        """
        try:
            return self.reports[address][1].read_bytes()
        except (KeyError, OSError):
            raise Refusal(404, "There is no report here. Open it from the page.") from None

    def _about(self, name: str, segmenter: Segmenter, offers: Mapping[Task, Offer]) -> Record:
        tasks = [offer.task for offer in offers.values() if not offer.reason]
        trained = segmenter.model_file.task
        reports = [
            f"report/{key}" for key, (model, path) in self.reports.items() if model == name and path.is_file()
        ]
        return {
            "name": name,
            "tasks": tasks,
            "task": trained if trained in tasks else next(iter(tasks), trained),
            "report": reports[0] if reports else "",
            "reasons": {offer.task: offer.reason for offer in offers.values() if offer.reason},
            "thresholds": {
                offer.task: {key: vars(offer.thresholds)[key] for key in offer.adjustable}
                for offer in offers.values()
                if not offer.reason
            },
            "categories": category_records(segmenter.categories),
            "licence": segmenter.model_file.licence,
            "view": segmenter.model_file.experiment.data.view.kind,
            "batch_size": self.engine.batch_sizes[name],
        }
