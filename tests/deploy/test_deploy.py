"""What lies in `deploy/`: linted by the tools of its kind, and its commands are commands of this version."""

import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
import yaml
from serve.served import USUAL, as_file, color_segmenter, scene
from typer.testing import CliRunner

from unimask.cli import app
from unimask.serve.app import create_app
from unimask.serve.gate import LOOPBACK_NAMES, Access

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def assert_is_a_command(words: list[str]) -> None:
    """Every option exists: click looks at all of them before it shows its help."""
    shown = CliRunner().invoke(app, [*words, "--help"])
    assert shown.exit_code == 0, shown.output
    assert "Usage" in shown.output


def test_options_that_do_not_exist_would_be_seen() -> None:
    with pytest.raises(AssertionError):
        assert_is_a_command(["serve", "--hots", "0.0.0.0"])


def test_the_dockerfile_is_linted() -> None:
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if linter is None:
        pytest.skip("hadolint is not installed")
    found = subprocess.run([linter, DEPLOY / "Dockerfile"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_the_container_gets_all_that_a_wheel_is_made_of() -> None:
    lines = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = {word for line in lines if re.match(r"COPY (?!--from)", line) for word in line.split()[1:-1]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [*wheel["packages"], *wheel["force-include"], project["project"]["readme"]]
    needed += [*project["project"]["license-files"], project["tool"]["hatch"]["version"]["path"]]
    assert {Path(path).parts[0] for path in needed} | {"pyproject.toml"} == copied


def test_containers_run_commands_that_exist() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]
    targets = re.findall(r"^FROM .* AS (\w+)$", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), re.M)
    for service in services.values():
        assert_is_a_command(service["command"])
        assert service["build"]["target"] in targets
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_the_unit_is_verified_and_runs_a_command_that_exists(tmp_path: Path) -> None:
    text = (DEPLOY / "unimask.service").read_text(encoding="utf-8")
    (program, *words) = re.search(r"^ExecStart=(.*)$", text, re.M).group(1).split()
    assert_is_a_command(words)
    verifier = shutil.which("systemd-analyze")
    if verifier is None:
        pytest.skip("systemd is not installed")
    unit = tmp_path / "unimask.service"
    unit.write_text(text.replace(program, shutil.which("true")), encoding="utf-8")
    found = subprocess.run([verifier, "verify", unit], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")


@contextmanager
def running(access: Access) -> Iterator[int]:
    """A server of our own in a thread; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(
            create_app({"first": color_segmenter()}, USUAL, access, batch_size=1), log_level="error"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def proxied(folder: Path, port: int) -> Iterator[str]:
    """The shipped location in a real nginx; gives its address."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin")
    if program is None:
        pytest.skip("nginx is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        own = free.getsockname()[1]
    location = (
        (DEPLOY / "nginx.conf").read_text(encoding="utf-8").replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    )
    places = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; {places}\n"
        f"server {{ listen 127.0.0.1:{own}; server_name example.org;\n{location}}} }}\n",
        encoding="utf-8",
    )
    nginx = subprocess.Popen([program, "-e", folder / "error.log", "-c", folder / "nginx.conf"])
    try:
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", own), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"http://127.0.0.1:{own}/tools/unimask/"
    finally:
        nginx.terminate()
        nginx.wait()


def test_nginx_serves_the_page_below_a_path(tmp_path: Path) -> None:
    access = Access(token="", names=LOOPBACK_NAMES | {"example.org"})
    with running(access) as port, proxied(tmp_path, port) as address:
        with httpx.Client(base_url=address, headers={"Host": "example.org"}) as client:
            page = client.get("")
            assert page.status_code == 200
            linked = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
            assert any(one.endswith(".js") for one in linked)
            for one in linked:
                assert client.get(one).status_code == 200, one
            answer = client.post("v1/segment", files={"picture": ("a.png", as_file(scene(1)))})
            assert len(answer.json()["segments"]) == 3
            assert "unimask_requests_total" in client.get("metrics").text
            long = client.post("v1/segment", files={"picture": ("a.png", b"x" * (33 * 2**20))})
            assert long.status_code == 413
        assert httpx.get(address, headers={"Host": "elsewhere.org"}).status_code == 421
