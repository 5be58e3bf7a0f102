"""A machine-learning backend of Label Studio: its tasks get predictions, to be corrected by hand."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast
from urllib.parse import urljoin, urlsplit
from xml.etree import ElementTree

import httpx
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from unimask.config.tasks import Task
from unimask.errors import UnimaskError, shown
from unimask.results.formats.label_studio import Labels
from unimask.results.found import Record
from unimask.results.result import Result
from unimask.serve.cached import CachedPrediction, result_of
from unimask.serve.images import decode, display_name
from unimask.serve.limits import Limits, Refusal
from unimask.serve.service import Service
from unimask.threads import aside

_LOG = logging.getLogger(__name__)
_CONTROLS: Mapping[str, Labels] = {
    "BrushLabels": "brush",
    "PolygonLabels": "polygon",
    "RectangleLabels": "rectangle",
}
"""Tags of a labelling interface that take predictions -> their kind, best first."""
_RENEWED_AFTER = 240  # seconds; Label Studio's access tokens live five minutes


@dataclass(frozen=True, kw_only=True)
class Interface:
    """The labelling interface of a project: where the image is, and how it is labelled."""

    control: str  # name of the tag of labels
    kind: Labels
    labels: Mapping[str, str]  # in small letters -> as they are written
    image: str  # name of the Image tag
    key: str  # of a task's data, where the address of the image is


def read_interface(text: str) -> Interface:
    """Return the labelling interface in an XML.

    Raises:
        Refusal: it is no XML, has no Image, or no tag that takes masks or boxes.
    """
    try:
        if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities can grow without bounds
            raise ElementTree.ParseError("declarations are not read")
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:  # also half characters
        raise Refusal(422, f"The labelling interface is not XML that is read here ({error}).") from None
    images = {one.get("name", ""): one.get("value", "") for one in root.iter("Image")}
    for tag, kind in _CONTROLS.items():
        for control in root.iter(tag):
            address = images.get(control.get("toName", ""), "")
            values = [one.get("value", "") for one in control.iter("Label")]
            labels = {value.lower(): value for value in values if value}
            if address.startswith("$") and labels:
                return Interface(
                    control=control.get("name", ""),
                    kind=kind,
                    labels=labels,
                    image=control.get("toName", ""),
                    key=address[1:],
                )
    raise Refusal(
        422,
        f"The labelling interface has no {', '.join(_CONTROLS)} with labels for an Image whose value "
        "is $NAME; add one.",
    )


@dataclass(frozen=True, kw_only=True)
class LabelStudio:
    """The address of Label Studio, the only one that images are fetched from.

    `token` is an access token of a user: of the older kind, or a personal one, which is exchanged for one
    that lives for minutes.
    """

    address: str
    token: str
    transport: httpx.AsyncBaseTransport | None = None  # None: the network
    _renewed: list[tuple[float, str]] = field(default_factory=list, repr=False)

    async def fetch(self, address: str, limits: Limits) -> bytes:
        """Return the bytes of a task's image.

        Raises:
            Refusal: it is not Label Studio's own, cannot be reached, or is too large.
        """
        try:
            wanted, own = urlsplit(urljoin(self.address, address)), urlsplit(self.address)
        except ValueError as error:
            raise Refusal(422, f"The image {address} has no address that can be read ({error}).") from None
        if (wanted.scheme, wanted.netloc) != (own.scheme, own.netloc):
            raise Refusal(
                422,
                f"The image {address} is not on {self.address}, and images of other places are not "
                "fetched; let Label Studio serve it (uploads, local files, or a storage with its proxy).",
            )
        try:
            async with self._client(limits) as client:
                headers = {"Authorization": await self._authorization(client)} if self.token else {}
                async with client.stream("GET", wanted.geturl(), headers=headers) as answer:
                    if answer.status_code != 200:
                        raise Refusal(
                            422,
                            f"Label Studio answers {answer.status_code} for {address}."
                            + _WHY.get(answer.status_code, ""),
                        )
                    return await _bounded(answer, limits)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise Refusal(422, f"{self.address} cannot be reached for {address} ({reason}).") from None

    def _client(self, limits: Limits) -> httpx.AsyncClient:
        return httpx.AsyncClient(timeout=limits.seconds, transport=self.transport, follow_redirects=False)

    async def _authorization(self, client: httpx.AsyncClient) -> str:
        if self.token.count(".") != 2:  # a personal token is a JSON web token, of three parts
            return f"Token {self.token}"
        if self._renewed and time.monotonic() - self._renewed[-1][0] < _RENEWED_AFTER:
            return f"Bearer {self._renewed[-1][1]}"
        answer = await client.post(urljoin(self.address, "/api/token/refresh"), json={"refresh": self.token})
        found = answer.json() if answer.status_code == 200 else None
        access = found.get("access") if isinstance(found, dict) else None
        if not isinstance(access, str):
            raise Refusal(
                422, f"Label Studio does not take the token ({answer.status_code}); make a new one."
            )
        self._renewed[:] = [(time.monotonic(), access)]
        return f"Bearer {access}"


_WHY = {
    302: " It sends images elsewhere; turn on the proxy of the storage (use pre-signed URLs: off).",
    401: " It wants a token: set LABEL_STUDIO_TOKEN to a user's access token.",
    403: " The token's user may not see it.",
}


async def _bounded(answer: httpx.Response, limits: Limits) -> bytes:
    content = bytearray()
    async for part in answer.aiter_bytes():
        content += part
        if len(content) > limits.bytes:
            raise Refusal(413, f"The image is larger than {limits.bytes / 2**20:g} MiB.")
    return bytes(content)


def label_studio_router(service: Service, studio: LabelStudio) -> APIRouter:
    """Return the routes that Label Studio calls: `/health`, `/setup`, `/predict`, `/versions` and `/webhook`.

    Source: github.com/HumanSignal/label-studio-ml-backend, `label_studio_ml/api.py` (addresses and fields).
    """
    router = APIRouter(include_in_schema=False)

    @router.get("/health")
    def health() -> JSONResponse:
        return JSONResponse({"status": "UP", "model_class": service.default})

    @router.get("/versions")
    def versions() -> JSONResponse:
        return JSONResponse({"versions": list(service.offers)})

    @router.post("/setup")
    async def setup(request: Request) -> JSONResponse:
        asked = await _object(request)
        if schema := asked.get("schema"):
            _match(service, service.default, read_interface(str(schema)))
        return JSONResponse({"model_version": service.default})

    @router.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        asked = await _object(request)
        tasks = asked.get("tasks")
        if not isinstance(tasks, list) or not all(isinstance(one, dict) for one in tasks):
            raise Refusal(422, "There is no list of tasks.")
        model = service.model(str(asked.get("model_version") or "") if len(service.offers) > 1 else "")
        interface = read_interface(str(asked.get("label_config") or ""))
        _match(service, model, interface)
        results = [await _predicted(service, studio, model, interface, one, len(tasks)) for one in tasks]
        return JSONResponse({"results": results, "model_version": model})

    @router.post("/webhook")
    @router.post("/train")
    async def webhook(request: Request) -> JSONResponse:
        """Accept and ignore events: nothing is trained here, and annotations stay in Label Studio."""
        await _object(request)
        return JSONResponse({}, 201)

    return router


async def _object(request: Request) -> Mapping[str, Any]:
    try:
        asked = await request.json()
    except (ValueError, RecursionError):
        raise Refusal(422, "The request is not JSON that can be read.") from None
    except ClientDisconnect:
        raise Refusal(400, "The request was broken off.") from None
    if not isinstance(asked, dict):
        raise Refusal(422, "The request is no JSON object.")
    return asked


def _match(service: Service, model: str, interface: Interface) -> None:
    """Check that the model fits the labelling interface.

    Raises:
        Refusal: no category of the model is a label, or the model finds no such shapes.
    """
    names = service.engine.segmenters[model].categories.names
    if not any(name.lower() in interface.labels for name in names):
        raise Refusal(
            422,
            f"None of the labels ({_listed(list(interface.labels.values()))}) is a category of the model "
            f"({_listed(names)}); give the labels these names.",
        )
    _task(service, model, interface)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _task(service: Service, model: str, interface: Interface) -> Task:
    """Return the task whose result fits the interface: instances, where the model can tell them apart."""
    offers = service.offers[model]
    wanted: tuple[Task, ...] = ("instance", "semantic") if interface.kind != "rectangle" else ("detection",)
    for task in wanted:
        if not offers[task].reason:
            return task
    raise Refusal(422, offers[wanted[0]].reason)


async def _predicted(
    service: Service,
    studio: LabelStudio,
    model: str,
    interface: Interface,
    task: Mapping[str, Any],
    tasks: int,
) -> Record:
    """Return the prediction of one task; of several tasks, a failing one is empty and says why."""
    try:
        data = task.get("data")
        address = data.get(interface.key) if isinstance(data, dict) else None
        if not isinstance(address, str) or not address:
            raise Refusal(422, f"Task {task.get('id')} has no address of an image under {interface.key!r}.")
        content = await studio.fetch(address, service.limits)
        segmenter, asked = service.engine.segmenters[model], _task(service, model, interface)
        decoded = await run_in_threadpool(aside(decode), content, service.limits, segmenter.reading)
        for note in decoded.notes:
            _LOG.warning("Label Studio's task %s: %s", task.get("id"), note)
        thresholds = service.question(model, asked, None, None)

        def finish(seen: CachedPrediction) -> Record:
            return _as_prediction(result_of(segmenter, seen, asked, thresholds), model, interface)

        name = display_name(urlsplit(address).path)
        found: Record = await service.predicted(model, name, decoded, finish)
        return found
    except (Refusal, UnimaskError) as error:
        if tasks == 1:
            raise
        sentence = shown(str(error))
        _LOG.warning("Label Studio's task %s: %s", shown(str(task.get("id"))), sentence)
        return {"model_version": model, "score": 0.0, "result": [], "error": sentence}


def _as_prediction(result: Result, model: str, interface: Interface) -> Record:
    """Return a prediction of what has a label in the interface, with its spelling."""
    categories = result.categories
    spelled = tuple(interface.labels.get(name.lower(), name) for name in categories.names)
    labelled = result[[name.lower() in interface.labels for name in result.names]]
    task = replace(labelled, categories=replace(categories, names=spelled)).to_label_studio(
        "", labels=interface.kind, model=model, from_name=interface.control, to_name=interface.image
    )
    (prediction,) = cast(list[Record], task["predictions"])
    return prediction
