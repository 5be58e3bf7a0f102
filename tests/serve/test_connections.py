"""A server on a real socket, with clients that half-send, half-close, and come in crowds."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn
from serve.served import as_file, color_segmenter, scene
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from unimask.serve.app import create_app
from unimask.serve.connections import Connections
from unimask.serve.limits import Limits
from unimask.serve.middleware import Access

LIMITS = Limits(head_seconds=1.5, connections=12)


@contextmanager
def running(limits: Limits) -> Iterator[tuple[int, Connections]]:
    connections = Connections(limits)
    app = create_app({"colors": color_segmenter()}, limits, Access(token="", names=frozenset()), batch_size=1)
    config = uvicorn.Config(app, http=connections.protocol(AutoHTTPProtocol), log_level="error", ws="none")
    server = uvicorn.Server(config)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield listening.getsockname()[1], connections
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[int, Connections]]:
    with running(LIMITS) as found:
        yield found


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def everything(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def until_free(connections: Connections) -> None:
    for _ in range(1000):
        if not connections.held:
            return
        time.sleep(0.02)
    raise AssertionError(connections.held)


def upload() -> bytes:
    """A whole request with a picture."""
    content = as_file(scene(1))
    parts = [
        b"--edge",
        b'Content-Disposition: form-data; name="image"; filename="a.png"',
        b"",
        content,
        b"--edge--",
        b"",
    ]
    body = b"\r\n".join(parts)
    head = (
        b"POST /v1/segment HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=edge\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    )
    return head + body


@pytest.mark.parametrize(
    "sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: a\r\n"], ids=["nothing", "half a head"]
)
def test_a_silent_connection_is_closed_with_a_sentence(server: tuple[int, Connections], sent: bytes) -> None:
    port, connections = server
    with connect(port) as one:
        one.sendall(sent)
        begun = time.monotonic()
        answer = everything(one)
    assert time.monotonic() - begun > 1
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert "head of the request" in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    until_free(connections)


def test_half_a_head_after_an_answer_is_closed_too(server: tuple[int, Connections]) -> None:
    port, connections = server
    with connect(port) as one:
        one.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = b""
        while b'"ok"' not in answer:
            answer += one.recv(65536)
        one.sendall(b"GET /healthz HT")
        assert b"408" in everything(one)
    until_free(connections)


def test_a_client_that_closes_its_side_gets_its_answer(server: tuple[int, Connections]) -> None:
    port, connections = server
    for request, status in ((upload(), b"200"), (b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", b"200")):
        with connect(port) as one:
            one.sendall(request)
            one.shutdown(socket.SHUT_WR)
            answer = everything(one)
        assert answer.startswith(b"HTTP/1.1 " + status), answer[:200]
        json.loads(answer.partition(b"\r\n\r\n")[2])
    until_free(connections)


def test_a_crowd_of_half_sent_heads_shuts_nobody_out(server: tuple[int, Connections]) -> None:
    port, connections = server
    crowd = [connect(port) for _ in range(LIMITS.connections)]
    for one in crowd:
        one.sendall(b"GET / HTTP/1.1\r\n")
    while connections.held.total() < LIMITS.connections:
        time.sleep(0.02)
    with connect(port) as one:
        assert b"503" in everything(one)
    time.sleep(LIMITS.head_seconds + 0.5)
    with connect(port) as one:
        one.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert b'"ok"' in everything(one)
    for one in crowd:
        one.close()
    until_free(connections)


def test_an_answer_may_take_longer_than_a_head(server: tuple[int, Connections]) -> None:
    """A body that comes slowly is held to another limit than the head."""
    port, connections = server
    request = upload()
    with connect(port) as one:
        one.sendall(request[:300])
        time.sleep(LIMITS.head_seconds + 0.5)
        one.sendall(request[300:])
        assert one.recv(65536).startswith(b"HTTP/1.1 200")
    until_free(connections)


def test_head_is_answered_without_a_body(server: tuple[int, Connections]) -> None:
    port, _ = server
    for path in (b"/", b"/docs", b"/openapi.json", b"/v1/models", b"/healthz"):
        with connect(port) as one:
            one.sendall(b"HEAD " + path + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            head, _, body = everything(one).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), (path, head)
        assert b"content-length: 0" not in head.lower()
        assert body == b""
