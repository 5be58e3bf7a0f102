"""What lies in `deploy/`: linted by the tools of its kind, and its commands are commands of this version."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
import uvicorn
import yaml
from campaigns import machines
from serve.served import USUAL, as_file, color_segmenter, scene
from typer.testing import CliRunner

from unimask.cli import app
from unimask.serve.app import create_app
from unimask.serve.middleware import LOOPBACK_NAMES, Access

ROOT = Path(__file__).parents[2]
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
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


@pytest.mark.parametrize("script", ["slurm/train.sbatch", "torchrun/train.sh"])
def test_the_scripts_of_launchers_are_linted_and_run_a_command_that_exists(script: str) -> None:
    text = (DEPLOY / script).read_text(encoding="utf-8")
    assert os.access(DEPLOY / script, os.X_OK)
    (words,) = re.findall(r"^ *(?:srun|--no-python).* unimask (.*?)(?: &)?$", text, re.M)
    assert_is_a_command(words.replace('"$@"', "--data my_data --output runs/first").split())
    linter = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    if linter is None:
        pytest.skip("shellcheck is not installed")
    found = subprocess.run([linter, DEPLOY / script], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def slurm(place: Path, programs: dict[str, str], **about: str) -> subprocess.CompletedProcess[str]:
    """Run the batch script with these shell scripts in the place of programs."""
    for name, text in programs.items():
        (place / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        (place / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{place}:{os.environ['PATH']}", "SLURM_JOB_ID": "24", **about}
    words = [DEPLOY / "slurm" / "train.sbatch", "--data", "my_data"]
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)


@needs_bash
@pytest.mark.parametrize(
    ("code", "restarts", "again"),
    [
        (0, 0, False),
        (2, 0, False),
        (1, 0, False),
        (130, 0, False),
        (137, 0, True),
        (75, 2, True),
        (75, 3, False),
    ],
)
def test_a_slurm_job_is_queued_again_where_that_helps(
    tmp_path: Path, code: int, restarts: int, again: bool
) -> None:
    programs = {
        "srun": f'echo "$@" > {tmp_path}/asked; exit {code}',
        "scontrol": f'echo "$@" > {tmp_path}/queued',
    }
    ended = slurm(tmp_path, programs, SLURM_RESTART_COUNT=str(restarts))
    assert ended.returncode == (0 if again else code), ended.stderr
    asked = (tmp_path / "asked").read_text(encoding="utf-8")
    assert asked == "--kill-on-bad-exit=1 unimask train --data my_data --resume\n"
    assert (tmp_path / "queued").exists() == again
    assert (f"ended with exit code {code}: the job is queued again" in ended.stderr) == again


@needs_bash
def test_a_slurm_job_is_queued_again_before_its_time_is_over(tmp_path: Path) -> None:
    """The signal goes to the script alone, which must not wait for its tasks."""
    programs = {
        "srun": f"kill -USR1 $PPID; exec sleep 5 > {tmp_path}/out 2>&1",
        "scontrol": f'echo "$@" > {tmp_path}/queued',
    }
    ended = slurm(tmp_path, programs)
    assert ended.returncode == 0
    assert "the time is nearly over: the job is queued again" in ended.stderr
    assert (tmp_path / "queued").read_text(encoding="utf-8") == "requeue 24\n"


@needs_bash
@pytest.mark.parametrize(
    ("launcher", "strategy"), [(machines.slurm, "ddp"), (partial(machines.torchrun, 2), "fsdp")]
)
def test_a_training_under_a_launcher(
    tmp_path: Path, launcher: Callable[[Path], machines.Jobs], strategy: str
) -> None:
    """As many processes as were started, without being told."""
    run = tmp_path / "run"
    (job,) = launcher(run)
    words, env = job
    words = [*words, "--set", "training.steps=2", "--strategy", strategy]
    ended = subprocess.run(words, env={**env}, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert json.loads((run / "results.json").read_text(encoding="utf-8"))["processes"] == 2
    assert len(list(run.glob("checkpoints/*/shards/*.distcp"))) == (2 if strategy == "fsdp" else 0)
    assert ended.stdout.count("try it: unimask predict IMAGE") == 1


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
            answer = client.post("v1/segment", files={"image": ("a.png", as_file(scene(1)))})
            assert len(answer.json()["segments"]) == 3
            assert "unimask_requests_total" in client.get("metrics").text
            long = client.post("v1/segment", files={"image": ("a.png", b"x" * (33 * 2**20))})
            assert long.status_code == 413
        assert httpx.get(address, headers={"Host": "elsewhere.org"}).status_code == 421
