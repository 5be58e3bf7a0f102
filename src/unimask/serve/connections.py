"""Limits of connections, before HTTP is parsed: how long one may be silent, how many a client may have."""

import asyncio
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from unimask.serve.limits import Limits

_KEY = "connection"  # of the state that the server hands to each request


class Connections:
    """The connections of a server: silent ones are closed, and their number per client is limited.

    The head of a request must be there within `limits.head_seconds` after the connection is made, or after
    the last answer. Body and answer of a request have limits of their own.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.held: Counter[str] = Counter()

    def protocol(self, http: Callable[..., asyncio.Protocol]) -> Any:  # uvicorn asks for a class
        """Return the factory of connections, for `uvicorn.Config(http=...)`; `http` parses the requests."""

        def connect(*, app_state: dict[str, Any], **more: Any) -> TimedProtocol:
            return TimedProtocol(self, lambda state: http(app_state={**app_state, **state}, **more))

        return connect


class TimedProtocol(asyncio.Protocol):
    """A connection, with a protocol of HTTP inside."""

    def __init__(
        self, connections: Connections, http: Callable[[dict[str, "TimedProtocol"]], asyncio.Protocol]
    ) -> None:
        self._connections = connections
        self._http = http({_KEY: self})
        self._answering = 0
        self._ended = False
        self._timer: asyncio.TimerHandle | None = None
        self._client = ""
        self._refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection, and close it where the client has too many."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self._client = str(peer[0]) if isinstance(peer, tuple) else ""
        held, most = self._connections.held, self._connections.limits.connections
        held[self._client] += 1
        if held[self._client] > most:
            self._refused = True
            self._close_with(503, f"At most {most} connections are taken from one client. Close some.")
            return
        self._http.connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Pass the bytes on."""
        if not self._refused:
            self._http.data_received(data)

    def eof_received(self) -> bool:
        """Stay open for the answer to a request before the client closed its side."""
        self._ended = True
        if not self._answering:
            self._arm(1.0, self._transport.close)  # the request may be there, and not begun
        return True

    def connection_lost(self, error: Exception | None) -> None:
        """Stop counting the connection."""
        self._disarm()
        self._connections.held[self._client] -= 1
        if not self._connections.held[self._client]:
            del self._connections.held[self._client]
        if not self._refused:
            self._http.connection_lost(error)

    def pause_writing(self) -> None:
        """Wait with writing: the client reads slowly."""
        if not self._refused:
            self._http.pause_writing()

    def resume_writing(self) -> None:
        """Go on writing: the client has caught up."""
        if not self._refused:
            self._http.resume_writing()

    def begin(self) -> None:
        """Begin the answer to a request whose head is complete."""
        self._answering += 1
        self._disarm()

    def end(self) -> None:
        """Close the connection after an answer if the client has closed it, else wait for the next head."""
        self._answering -= 1
        if self._answering or self._transport.is_closing():
            return
        if self._ended:
            self._transport.close()
        else:
            self._wait()

    def _wait(self) -> None:
        seconds = self._connections.limits.head_seconds
        sentence = f"The head of the request did not come in within {seconds:g} seconds. Send it again."
        self._arm(seconds, lambda: self._close_with(408, sentence))

    def _arm(self, seconds: float, then: Callable[[], None]) -> None:
        self._disarm()
        self._timer = asyncio.get_running_loop().call_later(seconds, then)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close_with(self, status: int, sentence: str) -> None:
        if not self._transport.is_closing():
            body = f'{{"error":"{sentence}"}}'
            head = (
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
                "Content-Type: application/json",
                f"Content-Length: {len(body)}",
                "Connection: close",
            )
            self._transport.write("\r\n".join((*head, "", body)).encode("ascii"))
            self._transport.close()


class Answering:
    """ASGI middleware that notifies a connection when an answer begins and ends."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        connection = scope.get("state", {}).get(_KEY)
        if not isinstance(connection, TimedProtocol):  # another server, without such limits
            await self._app(scope, receive, send)
            return
        connection.begin()
        try:
            await self._app(scope, receive, send)
        finally:
            connection.end()
