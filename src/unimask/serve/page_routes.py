"""The routes of the page: its own files, and results for images that it has uploaded."""

from importlib.resources import files
from pathlib import Path
from threading import Lock
from typing import Annotated
from urllib.parse import quote

import torch
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, File, Form, UploadFile
from fastapi.responses import JSONResponse, Response
from jaxtyping import Bool
from torch import Tensor

from unimask.config.tasks import ALL_TASKS
from unimask.inference.predictions import TilePrediction
from unimask.results.result import Result
from unimask.serve.answers import page_answer
from unimask.serve.cached import CachedPrediction, result_of
from unimask.serve.downloads import download, formats_of
from unimask.serve.images import Decoded, encode
from unimask.serve.layers import Watched, describe, query_of, watch, why_not
from unimask.serve.limits import Refusal
from unimask.serve.service import Service
from unimask.serve.store import Kept, Store
from unimask.threads import aside

TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox allow-scripts allow-popups"
)
"""A report is one self-contained file of a run folder: it may run its own scripts, and load nothing else."""
READERS = 2  # results that are postprocessed at the same time
WATCHED = 4  # views whose layers are kept


def page_router(service: Service, examples: tuple[Path, ...]) -> APIRouter:
    """Return the routes of the page."""
    router = APIRouter(include_in_schema=False)
    _files(router)
    _examples(router, {path.name: path for path in examples})
    _reports(router, service)
    _images(router, PageResults(service, Store(service.limits.kept_bytes)))
    return router


def _files(router: APIRouter) -> None:
    """Return the files of the page by their addresses, read once: no address leads to another file."""
    contents = {
        one.name: one.read_bytes()
        for one in files("unimask.serve").joinpath("page").iterdir()
        if one.name.rpartition(".")[2] in TYPES
    }

    def file(name: str) -> Response:
        if name not in contents:
            raise Refusal(404, "There is nothing here.")
        headers = {"Cache-Control": "no-cache"}
        return Response(contents[name], media_type=TYPES[name.rpartition(".")[2]], headers=headers)

    @router.get("/")
    async def index() -> Response:
        return file("index.html")

    @router.get("/docs")
    async def documentation() -> Response:
        return file("docs.html")

    @router.get("/favicon.svg")
    async def icon() -> Response:
        return file("favicon.svg")

    @router.get("/static/{name}")
    async def static(name: str) -> Response:
        return file(name)


def _examples(router: APIRouter, examples: dict[str, Path]) -> None:
    @router.get("/page/examples")
    async def names() -> JSONResponse:
        return JSONResponse({"examples": list(examples)})

    @router.get("/page/examples/{name}")
    async def example(name: str) -> Response:
        if name not in examples:
            raise Refusal(404, "There is no such example.")
        kind = "image/jpeg" if examples[name].suffix.lower() in (".jpg", ".jpeg") else "image/png"
        return Response(await to_thread.run_sync(examples[name].read_bytes), media_type=kind)


def _reports(router: APIRouter, service: Service) -> None:
    @router.get("/report/{address}")
    async def report(address: str) -> Response:
        content = await to_thread.run_sync(service.report, address)
        headers = {"Content-Security-Policy": REPORT_POLICY}
        return Response(content, media_type=TYPES["html"], headers=headers)


class PageResults:
    """Results for the images that are kept; a few at a time, outside the engine's thread."""

    def __init__(self, service: Service, store: Store) -> None:
        self.service = service
        self.store = store
        self.limiter = CapacityLimiter(READERS)
        self._watched: dict[tuple[str, int], Watched] = {}
        self._lock = Lock()

    def result(
        self, name: str, task: str, score: float | None, overlap: float | None
    ) -> tuple[Result, dict[str, object]]:
        """Return the result, and the data from which the page draws it."""
        kept = self.store.get(name)
        thresholds = self.service.question(kept.model, task, score, overlap)
        offer = self.service.offer(kept.model, task)
        segmenter = self.service.engine.segmenters[kept.model]
        result = result_of(segmenter, kept.seen, offer.task, thresholds)
        return result, page_answer(result, offer.task, thresholds)

    def layers(
        self, name: str, task: str, score: float | None, overlap: float | None, segment: int, query: int
    ) -> dict[str, object]:
        """Return the layers of the query that a segment came from, or of query `query` if that is not -1."""
        kept = self.store.get(name)
        segmenter = self.service.engine.segmenters[kept.model]
        reason = why_not(segmenter)
        if reason:
            raise Refusal(422, reason)
        drawn = "instance" if task == "detection" else task
        result, _ = self.result(name, drawn, score, overlap)
        if not 1 <= segment <= len(result.prediction):
            raise Refusal(422, f"There is no segment {segment} in this result.")
        mask = kept.seen.tiles[0].in_frame(torch.from_numpy((result.id_maps() == segment).any(axis=0)))
        index = _best_view(kept.seen, mask)
        seen = self._watch(name, kept, index)
        if query < 0:
            label = int(result.prediction.labels[segment - 1])
            query = query_of(seen, mask[kept.seen.tiles[index].tile.window], label)
        return {
            "segment": segment,
            "views": len(kept.seen.tiles),
            **describe(seen, query, segmenter.categories),
        }

    def _watch(self, name: str, kept: Kept, index: int) -> Watched:
        key = (name, index)
        with self._lock:
            if key in self._watched:
                return self._watched[key]
        segmenter = self.service.engine.segmenters[kept.model]
        watched = watch(segmenter, kept.seen.image, kept.seen.tiles[index])
        with self._lock:
            self._watched[key] = watched
            while len(self._watched) > WATCHED:
                del self._watched[next(iter(self._watched))]
        return watched


def _best_view(seen: CachedPrediction, mask: Bool[Tensor, "height width"]) -> int:
    """Return the tile in which most of the segment lies; of several the one whose centre is nearest."""
    rows, columns = mask.nonzero().float().mean(dim=0).tolist()

    def worth(view: TilePrediction) -> tuple[int, float]:
        height, width = view.tile.size
        top, left = (part.start for part in view.tile.window)
        distance = (rows - top - height / 2) ** 2 + (columns - left - width / 2) ** 2
        return int(mask[view.tile.window].sum()), -distance

    return max(range(len(seen.tiles)), key=lambda index: worth(seen.tiles[index]))


def _images(router: APIRouter, results: PageResults) -> None:
    service = results.service

    @router.get("/page/formats")
    async def formats() -> JSONResponse:
        return JSONResponse({task: formats_of(task) for task in ALL_TASKS})

    def about(name: str, model: str, seen: CachedPrediction) -> JSONResponse:
        height, width = seen.image.shape[1:]
        return JSONResponse(
            {
                "id": name,
                "name": seen.name,
                "model": model,
                "width": width,
                "height": height,
                "views": len(seen.tiles),
                "notes": list(seen.notes),
                "layers_reason": why_not(service.engine.segmenters[model]),
            }
        )

    @router.post("/page/images")
    async def upload(
        image: Annotated[UploadFile, File()], model: Annotated[str, Form()] = ""
    ) -> JSONResponse:
        chosen = service.model(model)
        seen: CachedPrediction = await service.ask(chosen, image, lambda seen: seen)
        return about(results.store.put(Kept(model=chosen, seen=seen)), chosen, seen)

    @router.post("/page/images/{name}/model")
    async def again(name: str, model: Annotated[str, Form()]) -> JSONResponse:
        kept, chosen = results.store.get(name), service.model(model)
        decoded = Decoded(pixels=kept.seen.image, notes=kept.seen.notes)
        seen: CachedPrediction = await service.predicted(chosen, kept.seen.name, decoded, lambda seen: seen)
        return about(results.store.put(Kept(model=chosen, seen=seen)), chosen, seen)

    @router.get("/page/images/{name}/image.png")
    async def pixels(name: str) -> Response:
        content = await to_thread.run_sync(
            aside(encode), results.store.get(name).seen.image, limiter=results.limiter
        )
        return Response(content, media_type="image/png")

    @router.get("/page/images/{name}/result")
    async def result(
        name: str, task: str = "panoptic", score: float | None = None, overlap: float | None = None
    ) -> JSONResponse:
        _, drawn = await to_thread.run_sync(
            aside(results.result), name, task, score, overlap, limiter=results.limiter
        )
        return JSONResponse(drawn)

    @router.get("/page/images/{name}/files/{form}")
    async def file(
        name: str, form: str, task: str = "panoptic", score: float | None = None, overlap: float | None = None
    ) -> Response:
        def write() -> tuple[str, bytes]:
            return download(results.result(name, task, score, overlap)[0], form)

        saved_as, content = await to_thread.run_sync(aside(write), limiter=results.limiter)
        headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(saved_as)}"}
        return Response(content, media_type="application/octet-stream", headers=headers)

    @router.get("/page/images/{name}/layers")
    async def layers(
        name: str,
        segment: int,
        task: str = "panoptic",
        score: float | None = None,
        overlap: float | None = None,
        query: int = -1,
    ) -> JSONResponse:
        told = await to_thread.run_sync(
            aside(results.layers), name, task, score, overlap, segment, query, limiter=results.limiter
        )
        return JSONResponse(told)
