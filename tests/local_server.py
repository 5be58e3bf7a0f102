"""Stand-ins of others' servers, on this machine."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import uvicorn
from fastapi import FastAPI


class StandIn(Protocol):
    """A server that is told its own address."""

    address: str

    def app(self) -> FastAPI: ...


Server = TypeVar("Server", bound=StandIn)


@contextmanager
def running(stand_in: Server) -> Iterator[Server]:
    """Answer with it in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        stand_in.address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(stand_in.app(), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield stand_in
        finally:
            server.should_exit = True
            thread.join()
