"""The middleware of every request: who may ask, how much, and how long."""

import asyncio
import base64
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unimask.serve.limits import Limits, Refusal

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
WORKING = ("/v1/segment", "/page/images", "/predict")  # what counts as a request that waits for the models
# without the token there is no answer; the last four are Label Studio's
CLOSED = ("/v1/", "/page/", "/metrics", "/predict", "/setup", "/webhook", "/train")
OPEN = frozenset({"/healthz", "/favicon.svg"})  # beside the files of the page: without a token
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may ask. `token`: what clients must send; empty: nothing. `names`: the host names of the server.

    Other names in the address are refused where there is no token: a page of another site whose name leads
    to this machine (DNS rebinding) must not ask. Names are in small letters; without names any is accepted.
    `origins` are the pages of other sites that may ask (as in the header `Origin`).
    """

    token: str
    names: frozenset[str]
    origins: frozenset[str] = frozenset()


class Middleware:
    """ASGI middleware. A request that is not allowed is answered here, with a sentence."""

    def __init__(self, app: ASGIApp, access: Access, limits: Limits, full: Callable[[], Refusal]) -> None:
        self._app = app
        self._access = access
        self._limits = limits
        self._full = full
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), scope["path"]
        working = path.startswith(WORKING)
        refusal = self._check(headers, path, working)
        if refusal is not None:
            await refused(refusal)(scope, receive, _secured(send))
            return
        self._inside += working
        try:
            # an answer to HEAD is that to GET; the server leaves out its body
            asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
            await self._app(asked, _bounded(receive, self._limits), _secured(send))
        finally:
            self._inside -= working

    def _check(self, headers: Headers, path: str, working: bool) -> Refusal | None:
        host = headers.get("host", "").lower()
        names = self._access.names
        if names and not {host, host.rpartition(":")[0]} & names:
            return Refusal(
                421, "This server answers to its own name only. Open it as it told when it started."
            )
        foreign = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        if foreign and working and headers.get("origin", "") not in self._access.origins:
            return Refusal(403, "Requests from pages of other sites are not answered.")
        token = self._access.token
        if token and _needs_token(path) and not _same(_token_given(headers), token):
            return Refusal(
                401,
                "This server wants the token it showed at its start (`Authorization: Bearer TOKEN`).",
                {"WWW-Authenticate": "Bearer"},
            )
        if working and self._inside >= self._limits.waiting:
            return self._full()
        length = headers.get("content-length", "0").lstrip("0")
        digits = length.isascii() and length.isdigit()  # which can be more than an int is made of
        if digits and (len(length) > 18 or int(length) > self._limits.bytes):
            return _too_long(self._limits)
        return None


def _needs_token(path: str) -> bool:
    return path.startswith(CLOSED) and path not in OPEN


def _token_given(headers: Headers) -> str:
    """Return the token of a request: `Bearer TOKEN`, or the password of `Basic`, which other tools send."""
    kind, _, given = headers.get("authorization", "").partition(" ")
    if kind.lower() != "basic":
        return given.strip() if kind.lower() == "bearer" else ""
    try:
        return base64.b64decode(given, validate=True).decode("utf-8").partition(":")[2]
    except ValueError:
        return ""


def _same(one: str, other: str) -> bool:
    """Return whether two texts are equal, in constant time."""
    return hmac.compare_digest(one.encode(), other.encode())


def _too_long(limits: Limits) -> Refusal:
    return Refusal(
        413, f"The file is too large: at most {limits.bytes / 2**20:g} MiB are taken. Send it smaller."
    )


def _bounded(receive: Receive, limits: Limits) -> Receive:
    """Return the body of a request, until it is too long or comes too slowly."""
    taken = 0
    deadline = time.monotonic() + limits.seconds
    complete = False

    async def bounded() -> Message:
        nonlocal taken, complete
        if complete:  # the next message is that the client disconnects, without a limit of time
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), max(0.01, deadline - time.monotonic()))
        except TimeoutError:
            raise HTTPException(
                408, f"The request did not come in within {limits.seconds:g} seconds. Send it again."
            ) from None
        taken += len(message.get("body", b""))
        complete = not message.get("more_body", False)
        if taken > limits.bytes:
            raise HTTPException(413, _too_long(limits).sentence)
        return message

    return bounded


def _secured(send: Send) -> Send:
    """Return a `send` that adds the security headers for browsers to the answer."""

    async def secured(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return secured


def refused(refusal: Refusal) -> JSONResponse:
    """Return the answer to a refused request: `{"error": "a sentence"}`."""
    return JSONResponse({"error": refusal.sentence}, refusal.status, dict(refusal.headers))
