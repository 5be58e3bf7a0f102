"""200 images, bad ones among them, by processes that are lost on the way: each image exactly once.

Under torchrun a process is killed, or all are told to end (SIGTERM, as by a cluster that wants its machines
back), and the same command with `--resume` follows. A real Ray loses actors, its driver, and a machine.

    python -m campaigns.many_images                 (in `tests/`)
    python -m campaigns.many_images --machines      two Ray nodes in two network namespaces; needs root

The files must be those of the plain command to the last byte (one image at a time, with one thread), and of
Ray every image must have one row.
"""

import argparse
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from campaigns.processes import descendants
from cli.command_line import picture, save_tiny_model
from pyarrow import parquet

COUNT, BROKEN = 200, 8
BIN = Path(sys.executable).parent
NETWORK = "10.97.31"  # of the two namespaces
BYTES = ("--batch-size", 1)  # the images of a batch decide which kernels compute, and so the last digits
FAST = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # of the cluster


class Case:
    """A model, images, and what the plain command makes of them."""

    def __init__(self, folder: Path, count: int = COUNT) -> None:
        self.folder, self.count = folder, count
        self.photos = folder / "photos"
        self.photos.mkdir(parents=True)
        for number in range(count):
            picture(15 + number % 7, 19 + number % 3, seed=number).save(self.photos / f"{number:03}.png")
        for number in range(BROKEN):
            (self.photos / f"{number * count // BROKEN:03}b.png").write_bytes(b"no image")
        self.model = save_tiny_model(folder / "model")
        self.run("plain").wait()
        self.plain = self.files("plain")
        assert len(self.plain) == count

    def run(self, name: str, *more: object, before: Sequence[str] = ()) -> "subprocess.Popen[str]":
        words = ["predict", self.photos, "--weights", self.model, "--output", self.folder / name, "--device"]
        words += ["cpu", "--format", "json", *BYTES, *more]
        return subprocess.Popen(
            [*before, str(BIN / "unimask"), *map(str, words)],
            env={**os.environ, **FAST, **TOKEN},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def files(self, name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.folder / name).glob("[!.]*.json")}

    def check_files(self, name: str, process: "subprocess.Popen[str]", code: int = 2) -> None:
        """Wait for a run; its files must be right."""
        said, _ = process.communicate()
        assert process.returncode == code, said  # some images are broken
        assert f"{BROKEN} of {self.count + BROKEN} images could not be segmented" in said, said
        assert self.files(name) == self.plain, (name, len(self.files(name)))

    def check(self, name: str, process: "subprocess.Popen[str]") -> None:
        """Wait for a run of Ray; its files and its rows must be right."""
        self.check_files(name, process)
        rows = parquet.read_table(self.folder / name / "images.parquet").to_pylist()
        assert len(rows) == len({row["path"] for row in rows}) == self.count + BROKEN
        assert sum(row["status"] == "failed" for row in rows) == BROKEN
        assert all(row["status"] in ("segmented", "failed", "complete before") for row in rows)
        print(f"{name}: {len(self.plain)} files as of the plain command, {len(rows)} rows", flush=True)

    def wait_for(self, name: str, share: float, process: "subprocess.Popen[str]") -> None:
        """Wait until a share of the results is there."""
        while len(list((self.folder / name).glob("*.json"))) < share * self.count:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)


def written(case: Case, name: str) -> dict[Path, int]:
    """The results that a lost run leaves, and when each was written."""
    found = {path: path.stat().st_mtime_ns for path in (case.folder / name).glob("[!.]*.json")}
    assert 0 < len(found) < case.count
    return found


def torchrun_loses_its_processes(case: Case) -> None:
    launch = (str(BIN / "torchrun"), "--nproc-per-node", "2", "--no-python")
    for name, number in (("killed_process", signal.SIGKILL), ("preempted", signal.SIGTERM)):
        process = case.run(name, before=launch)
        case.wait_for(name, 0.3, process)
        lost = process.pid if number == signal.SIGTERM else descendants(process.pid, "predict")[-1]
        os.kill(lost, number)
        process.communicate()
        before = written(case, name)
        case.check_files(name, case.run(name, "--resume", before=launch), code=1)  # that of torchrun
        assert all(path.stat().st_mtime_ns == at for path, at in before.items())  # none is done again
        print(f"{name}: {len(before)} files before, all after --resume as of the plain command", flush=True)


def actors(case: Case) -> None:
    for number in (2, 4):
        case.check(f"actors_{number}", case.run(f"actors_{number}", "--engine", "ray", "--actors", number))


def an_actor_is_killed(case: Case) -> None:
    process = case.run("killed_actor", "--engine", "ray", "--actors", 2)
    case.wait_for("killed_actor", 0.4, process)
    os.kill(descendants(process.pid, "MapWorker")[0], signal.SIGKILL)
    case.check("killed_actor", process)


def the_driver_is_killed(case: Case) -> None:
    process = case.run("killed_driver", "--engine", "ray", "--actors", 2)
    case.wait_for("killed_driver", 0.4, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    time.sleep(5)  # Ray ends what is left of it
    before = written(case, "killed_driver")
    case.check("killed_driver", case.run("killed_driver", "--engine", "ray", "--actors", 2, "--resume"))
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())  # none is done again


def two_machines(case: Case) -> None:
    """Two Ray nodes that share nothing but a network and a disk; then one of them goes."""

    def sh(*words: str) -> None:
        subprocess.run(words, check=True, capture_output=True)

    names = ("unimask-a", "unimask-b")
    sh("ip", "link", "add", "unimask-br", "type", "bridge")
    sh("ip", "link", "set", "unimask-br", "up")
    for number, name in enumerate(names, start=1):
        sh("ip", "netns", "add", name)
        sh("ip", "link", "add", f"um{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
        sh("ip", "link", "set", f"um{number}", "master", "unimask-br", "up")
        sh("ip", "-n", name, "addr", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
        sh("ip", "-n", name, "link", "set", "eth0", "up")
        sh("ip", "-n", name, "link", "set", "lo", "up")
    nodes = []
    try:
        head = ["--head", "--port", "6379", "--include-dashboard", "false"]
        for number, name in enumerate(names, start=1):
            role = head if number == 1 else ["--address", f"{NETWORK}.1:6379"]
            words = ["ip", "netns", "exec", name, str(BIN / "ray"), "start", "--block", *role]
            words += ["--node-ip-address", f"{NETWORK}.{number}", "--num-cpus", "1"]
            words += ["--object-store-memory", str(100 << 20), "--temp-dir", f"/tmp/ray-{name}"]
            node = subprocess.Popen(
                words,
                env={**os.environ, **FAST, **TOKEN},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            nodes.append(node)
            time.sleep(15)
        inside = ["ip", "netns", "exec", names[0]]
        cluster = ["--engine", "ray", "--actors", 2, "--address", f"{NETWORK}.1:6379"]
        case.check("machines", case.run("machines", *cluster, before=inside))
        process = case.run("lost_machine", *cluster, before=inside)
        case.wait_for("lost_machine", 0.3, process)
        for pid in [*descendants(nodes[1].pid, ""), nodes[1].pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        case.check("lost_machine", process)
    finally:
        for node in nodes:
            node.terminate()
        time.sleep(5)
        for name in names:
            subprocess.run(["ip", "netns", "del", name])
        subprocess.run(["ip", "link", "del", "unimask-br"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machines", action="store_true", help="two Ray nodes in two network namespaces")
    parser.add_argument("--count", type=int, default=COUNT, help="images, beside the bad ones")
    parser.add_argument("--only", default="", help="a part of the name of a check")
    options = parser.parse_args()
    checks: list[Callable[[Case], None]] = [
        torchrun_loses_its_processes,
        actors,
        an_actor_is_killed,
        the_driver_is_killed,
    ]
    folder = Path(tempfile.mkdtemp(prefix="unimask-campaign-"))
    try:
        case = Case(folder / "case", options.count)
        for check in [two_machines] if options.machines else checks:
            if re.search(options.only, check.__name__):
                start = time.monotonic()
                check(case)
                print(f"{check.__name__}: {time.monotonic() - start:.0f} s", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
