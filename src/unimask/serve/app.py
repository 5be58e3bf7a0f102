"""The interface over HTTP: `/v1/segment`, `/v1/models`, `/healthz`, `/metrics`, the page, and OpenAPI."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from unimask import __version__
from unimask.config.tasks import ALL_TASKS, Task
from unimask.errors import UnimaskError
from unimask.files import json_text
from unimask.inference.segmenter import Segmenter
from unimask.serve.answers import BoxAnswer, SegmentAnswer, answer, id_map
from unimask.serve.cached import CachedPrediction, result_of
from unimask.serve.connections import Answering
from unimask.serve.engine import Engine, full
from unimask.serve.images import png
from unimask.serve.label_studio import LabelStudio, label_studio_router
from unimask.serve.limits import Limits, Refusal
from unimask.serve.middleware import Access, Middleware, refused
from unimask.serve.page_routes import page_router
from unimask.serve.service import Service
from unimask.serve.telemetry import Counting

OutputName = Literal["json", "overlay", "ids"]
DESCRIPTION = """An image becomes segments. Send it to `/v1/segment`; errors are `{"error": "a sentence"}`."""


def create_app(
    segmenters: Mapping[str, Segmenter],
    limits: Limits,
    access: Access,
    *,
    batch_size: int = 0,
    examples: tuple[Path, ...] = (),
    reports: Mapping[str, Path] = MappingProxyType({}),
    label_studio: LabelStudio | None = None,
) -> FastAPI:
    """Return the application, with an engine that ends with it. The first model is the default.

    `examples` are images of the server's own that the page offers; `reports` are the pages about the runs
    that models come from, by the names of models. With `label_studio` it is a backend of Label Studio.
    """
    engine = Engine(segmenters, limits, batch_size)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(engine.close)

    app = FastAPI(
        title="unimask",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's page loads scripts from other sites; /docs is written here
        redoc_url=None,
    )
    app.state.engine = engine
    service = Service(engine, reports)
    _interface(app, service)
    app.include_router(page_router(service, examples))
    if label_studio is not None:
        app.include_router(label_studio_router(service, label_studio))
    _errors(app)
    app.add_middleware(Middleware, access=access, limits=limits, full=lambda: full(engine.retry_after()))
    if access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(access.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization"],
        )
    app.add_middleware(Counting, telemetry=engine.telemetry)
    app.add_middleware(Answering)
    return app


def _interface(app: FastAPI, service: Service) -> None:
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"description": description}
        for status, description in (
            (401, "The token is missing or wrong."),
            (413, "The image is too large."),
            (415, "It is no image."),
            (422, "The image is damaged, or a field is wrong."),
            (503, "Too many requests; `Retry-After` says when to come back."),
            (504, "It took too long."),
        )
    }

    @app.post(
        "/v1/segment",
        response_model=SegmentAnswer | BoxAnswer,
        responses={200: {"content": {"image/png": {}}}, **refusals},
        summary="Segment an image",
    )
    async def segment(
        request: Request,
        image: Annotated[UploadFile, File(description="A file: PNG, JPEG, WebP, TIFF, BMP, GIF, ...")],
        task: Annotated[
            str, Form(description=f"One of: {', '.join(ALL_TASKS)}; empty: what the model was trained for.")
        ] = "",
        model: Annotated[str, Form(description="A name of `/v1/models`; empty: the first.")] = "",
        threshold: Annotated[
            float | None, Form(description="Lowest score, 0 to 1; without it the model's own.")
        ] = None,
        overlap: Annotated[
            float | None, Form(description="Panoptic: least visible share of a segment, 0 to 1.")
        ] = None,
        output: Annotated[
            OutputName,
            Form(
                description="json: segments with masks in COCO's run lengths. overlay: a PNG to look at. "
                "ids: a PNG with the id of each pixel's segment, R + 256 G + 65536 B."
            ),
        ] = "json",
    ) -> Response:
        """Segment an image; the answer is JSON or a PNG."""
        check_fields(
            request, await request.form(), ("image", "task", "model", "threshold", "overlap", "output")
        )
        name = service.model(model)
        task = task or service.engine.segmenters[name].task
        thresholds = service.question(name, task, threshold, overlap)
        if output == "ids" and task == "detection":
            raise Refusal(422, "Boxes have no id map; ask for json or overlay.")
        chosen: Task = service.offer(name, task).task
        segmenter = service.engine.segmenters[name]

        def finish(seen: CachedPrediction) -> Response:
            result = result_of(segmenter, seen, chosen, thresholds)
            if output == "json":
                return JSONResponse(answer(name, result, seen.notes))
            drawn = id_map(result) if output == "ids" else result.plot()
            told = {"X-Notes": json_text(seen.notes, None, ascii_only=True)} if seen.notes else {}
            return Response(png(drawn), media_type="image/png", headers=told)

        response: Response = await service.ask(name, image, finish)
        return response

    @app.get("/v1/models", summary="What is served")
    async def models() -> JSONResponse:
        """Return each model with its tasks, thresholds and categories; and the limits."""
        return JSONResponse({"models": service.models(), "limits": vars(service.limits)})

    @app.get("/healthz", summary="Whether the server is alive")
    async def health() -> JSONResponse:
        """Return `ok`, and how many requests wait."""
        return JSONResponse({"status": "ok", "waiting": service.engine.waiting})

    @app.get("/metrics", summary="What the server does, for Prometheus")
    def metrics() -> Response:
        """Return requests by route and status, the length of the queue, and seconds by stage."""
        return service.engine.telemetry.response()


def check_fields(request: Request, form: FormData, known: tuple[str, ...]) -> None:
    """Check that nothing in a request would be ignored.

    Raises:
        Refusal: it has a field that does not exist, a field twice, or something in the address.
    """
    for name in request.query_params:
        raise Refusal(422, f"The field `{name}` stands in the address; send it in the form.")
    for name in form:
        if name not in known:
            raise Refusal(422, f"There is no field `{name}`; there are: {', '.join(known)}.")
        if len(form.getlist(name)) > 1:
            raise Refusal(422, f"The field `{name}` is there more than once; send one image at a time.")


def _errors(app: FastAPI) -> None:
    """Answer every error with a sentence; none stops the server."""

    @app.exception_handler(Refusal)
    async def on_refusal(request: Request, error: Refusal) -> JSONResponse:
        return refused(error)

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        sentences = {404: "There is nothing here.", 405: "This address does not take such requests."}
        sentence = sentences.get(error.status_code, str(error.detail))
        return refused(Refusal(error.status_code, sentence, error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def on_validation(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:]) or "body"
        return refused(Refusal(422, f"The field `{field}` is wrong: {first['msg']}."))

    @app.exception_handler(UnimaskError)
    async def on_input(request: Request, error: UnimaskError) -> JSONResponse:
        return refused(Refusal(422, f"{error}."))

    @app.exception_handler(Exception)
    async def on_anything(request: Request, error: Exception) -> JSONResponse:
        return refused(
            Refusal(500, "Something went wrong inside the server. Try again, or try another image.")
        )
