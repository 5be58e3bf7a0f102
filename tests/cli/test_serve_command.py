import os
import re
import signal
import socket
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from cli.command_line import picture, refused, save_tiny_model
from fastapi import FastAPI, Request, Response
from local_server import running

from unimask.serve.run import _listen


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("serve") / "tiny")


class Studio:
    """A Label Studio with one image, which it gives to those who know its token."""

    def __init__(self) -> None:
        self.address = ""

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/data/upload/1/one.png")
        def image(request: Request) -> Response:
            if request.headers.get("authorization") != "Token a1b2":
                return Response(status_code=401)
            content = BytesIO()
            picture().save(content, "png")
            return Response(content.getvalue())

        return app


INTERFACE = (
    '<View><Image name="image" value="$image"/><BrushLabels name="label" toName="image">'
    '<Label value="Cat"/></BrushLabels></View>'
)


def test_the_command_serves_until_it_is_stopped(model: Path) -> None:
    """Beyond loopback, where it makes up a token; and as the guide to Label Studio starts it."""
    arguments = ["serve", "--weights", str(model), "--host", "0.0.0.0", "--port", "0", "--batch-size", "1"]
    with running(Studio()) as studio:
        arguments += ["--label-studio", studio.address]
        program = f"import sys; sys.argv = ['unimask', *{arguments!r}]; from unimask.cli import main; main()"
        environment = {**os.environ, "LABEL_STUDIO_TOKEN": "a1b2"}
        with subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert process.stdout is not None
            said = process.stdout.readline()
            found = re.search(r"serves tiny on http://0\.0\.0\.0:(\d+)/#token=(\S+)", said)
            assert found is not None, said
            address, token = f"http://127.0.0.1:{found[1]}", found[2]
            transport = httpx.HTTPTransport(retries=20)
            with httpx.Client(base_url=address, transport=transport, timeout=60, trust_env=False) as client:
                assert client.get("/healthz").json()["status"] == "ok"
                assert client.get("/v1/models").status_code == 401
                told = client.get("/v1/models", headers={"Authorization": f"Bearer {token}"}).json()
                assert [one["name"] for one in told["models"]] == ["tiny"]
                asked = {
                    "tasks": [{"id": 1, "data": {"image": "/data/upload/1/one.png"}}],
                    "label_config": INTERFACE,
                }
                answer = client.post("/predict", json=asked, auth=("anybody", token))
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
    assert answer.is_success, answer.text
    regions = answer.json()["results"][0]["result"]
    assert {(one["from_name"], *one["value"]["brushlabels"]) for one in regions} == {("label", "Cat")}


def test_what_cannot_be_served(model: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert "try another --port" in refused("serve", "--weights", model, "--port", port)
    with _listen("127.0.0.1", 0) as other:  # a server that loads its models still
        port = other.getsockname()[1]
        assert "try another --port" in refused("serve", "--weights", model, "--port", port)
    for host in ("no such machine", "a" * 70, "a..b", "\ud800"):
        assert "cannot be used" in refused("serve", "--host", host, "--port", 0)
    for address in ("studio:8080", "http://[", "http://", "http://studio:x"):
        assert "must be an address such as" in refused(
            "serve", "--weights", model, "--port", 0, "--label-studio", address
        )
    assert "megapixels: must be a number that is finite" in refused("serve", "--megapixels", "inf")
    assert "no such folder" in refused("serve", "--weights", "nothing", "--port", 0)
    assert "given twice" in refused("serve", "--weights", model, "--weights", model, "--port", 0)
    assert "is no folder" in refused(
        "serve", "--weights", model, "--examples", tmp_path / "none", "--port", 0
    )
