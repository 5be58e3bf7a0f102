import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from cli.command_line import refused, save_tiny_model

from unimask.serve.run import _listen


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("serve") / "tiny")


def test_the_command_serves_until_it_is_stopped(model: Path) -> None:
    """Beyond loopback, where it makes up a token."""
    arguments = ["serve", "--weights", str(model), "--host", "0.0.0.0", "--port", "0", "--batch-size", "1"]
    program = f"import sys; sys.argv = ['unimask', *{arguments!r}]; from unimask.cli import main; main()"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
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
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


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
