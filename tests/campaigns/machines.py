"""A training in several processes of which one is killed: started again, it must equal the undisturbed run.

    python -m campaigns.machines [torchrun_2 torchrun_4 slurm namespaces]       (in `tests/`)

`torchrun_2` and `torchrun_4` run `deploy/torchrun/train.sh` on this machine, `slurm` runs
`deploy/slurm/train.sbatch` with a `srun` and a `scontrol` of its own, `namespaces` runs the torchrun script
in two network namespaces that are joined by a cable, as two machines that find each other by the rendezvous
(needs root). After the first checkpoint a process gets SIGKILL. What is compared are the weights, to the
last bit, and the losses in the log; the processes that are left must say why they end, in a sentence.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from campaigns.processes import descendants
from training.test_processes import difference, lines

ROOT = Path(__file__).parents[2]
TORCHRUN = ROOT / "deploy" / "torchrun" / "train.sh"
SLURM = ROOT / "deploy" / "slurm" / "train.sbatch"
STUBS = Path(__file__).parent / "slurm"
PATIENCE = 900.0  # seconds, on a very busy machine
STEPS = 24
SENTENCE = "another process of this training has ended"
WORDS = (
    "--preset", "tiny", "--data", "shapes:64x64", "--task", "panoptic", "--device", "cpu",
    "--set", f"training.steps={STEPS}", "--set", "training.checkpoint_every=4",
    "--set", "training.log_every=1", "--set", "training.evaluate_every=0",
)  # fmt: skip


Jobs = list[tuple[Sequence[str], Mapping[str, str]]]
"""Commands that run at once, each with its environment."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a job ended: the exit codes and what each of its commands said."""

    codes: tuple[int, ...]
    said: str


def environment(**more: str) -> dict[str, str]:
    """That of the jobs: the commands of this Python, one thread each, and no launcher's variables."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "TORCHELASTIC_", "MASTER_"))}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK"):
        own.pop(name, None)
    return {
        **own,
        "PATH": f"{Path(sys.executable).parent}:{own['PATH']}",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100000",  # a message is one line
        **more,
    }


def process_of_rank(parents: Sequence[int], rank: int) -> int | None:
    """The training process of a rank below some processes."""
    for process in (child for parent in parents for child in descendants(parent, "")):
        try:
            about = (Path("/proc") / str(process) / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if {f"RANK={rank}".encode(), f"SLURM_PROCID={rank}".encode()} & set(about):
            return process
    return None


def run_job(commands: Jobs, run: Path, kill: int | None) -> Ended:
    """Start the commands; kill the process of a rank as soon as the run has a checkpoint; wait for all."""
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in commands]
        jobs = [
            subprocess.Popen(words, env={**env}, stdout=file, stderr=file, start_new_session=True)
            for (words, env), file in zip(commands, files, strict=True)
        ]
        deadline = time.monotonic() + PATIENCE
        try:
            while kill is not None and time.monotonic() < deadline:
                if any((run / "checkpoints").glob("step_*/state.pt")):
                    process = process_of_rank([job.pid for job in jobs], kill)
                    assert process is not None, f"no process of rank {kill}"
                    os.kill(process, signal.SIGKILL)
                    kill = None
                assert any(job.poll() is None for job in jobs), "ended before its first checkpoint"
                time.sleep(0.02)
            codes = tuple(job.wait(max(1.0, deadline - time.monotonic())) for job in jobs)
        finally:
            for job in jobs:
                if job.poll() is None:
                    os.killpg(job.pid, signal.SIGKILL)
            said = ""
            for file in files:
                file.seek(0)
                said += file.read()
    return Ended(codes=codes, said=said)


def torchrun(processes: int, run: Path) -> Jobs:
    """The job of `deploy/torchrun/train.sh` on one machine."""
    words = (str(TORCHRUN), *WORDS, "--output", str(run))
    return [(words, environment(PROCESSES=str(processes), NODES="1"))]


def slurm(run: Path, restarts: int = 0) -> Jobs:
    """The job of `deploy/slurm/train.sbatch` on two nodes with a task each."""
    about = {
        "SLURM_JOB_ID": "24",
        "SLURM_JOB_NAME": "train",
        "SLURM_NNODES": "2",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_RESTART_COUNT": str(restarts),
        "REQUEUED": str(run.with_suffix(".requeued")),
    }
    env = environment(**about)
    env["PATH"] = f"{STUBS}:{env['PATH']}"
    return [((str(SLURM), *WORDS, "--output", str(run)), env)]


NAMES = ("unimask_a", "unimask_b")


def namespaces(run: Path) -> Jobs:
    """The jobs of `deploy/torchrun/train.sh` in two network namespaces, a process in each."""
    jobs: Jobs = []
    for number, name in enumerate(NAMES, 1):
        words = ("ip", "netns", "exec", name, str(TORCHRUN), *WORDS, "--output", str(run))
        env = environment(
            PROCESSES="1",
            NODES="2",
            HEAD="10.24.0.1:29400",
            ADDRESS=f"10.24.0.{number}",
            JOB="namespaces",
            GLOO_SOCKET_IFNAME=f"{name}_0",
        )
        jobs.append((words, env))
    return jobs


def join_namespaces() -> None:
    """Make two network namespaces with a cable between them."""
    a, b = NAMES
    commands = [f"ip netns add {a}", f"ip netns add {b}", f"ip link add {a}_0 type veth peer name {b}_0"]
    for number, name in enumerate(NAMES, 1):
        commands += [
            f"ip link set {name}_0 netns {name}",
            f"ip -n {name} addr add 10.24.0.{number}/24 dev {name}_0",
            f"ip -n {name} link set {name}_0 up",
            f"ip -n {name} link set lo up",
        ]
    for command in commands:
        subprocess.run(command.split(), check=True)


def remove_namespaces() -> None:
    """Remove what `join_namespaces` made."""
    for name in NAMES:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def compare(killed: Path, undisturbed: Path, ended: Ended) -> list[str]:
    """Return what is wrong, a sentence each."""
    problems = []
    if SENTENCE not in ended.said:
        problems.append("no process says that another one has ended")
    if re.search(r"^Traceback(?!.*torch/distributed/run)", ended.said, re.M) and "unimask/" in ended.said:
        tracebacks = re.findall(r"^ +File .*unimask/training.*$", ended.said, re.M)
        problems += [f"a traceback of the training is shown: {line}" for line in tracebacks[:1]]
    steps = [[line for line in lines(run) if line["kind"] == "step"] for run in (killed, undisturbed)]
    if [line["loss"] for line in steps[0]] != [line["loss"] for line in steps[1]]:
        problems.append("the losses in the log differ")
    if len(steps[0]) != STEPS:
        problems.append(f"the log has {len(steps[0])} steps of {STEPS}")
    if apart := difference(killed, undisturbed):
        problems.append(f"the weights differ by {apart:.2g}")
    return problems


CASES: Mapping[str, Callable[[Path], Jobs]] = {
    "torchrun_2": lambda run: torchrun(2, run),
    "torchrun_4": lambda run: torchrun(4, run),
    "slurm": slurm,
    "namespaces": namespaces,
}


def try_case(name: str, place: Path) -> tuple[list[str], str]:
    """Run a case, with a kill and without; return what is wrong and all that was said."""
    job = CASES[name]
    killed, undisturbed = place / "killed", place / "undisturbed"
    if name == "namespaces":
        remove_namespaces()
        join_namespaces()
    try:
        ended = run_job(job(killed), killed, kill=1)
        if name == "slurm":
            if not killed.with_suffix(".requeued").exists():
                return ["the job was not queued again"], ended.said
            again = run_job(slurm(killed, restarts=1), killed, kill=None)
            ended = Ended(codes=again.codes, said=ended.said + again.said)
        whole = run_job(job(undisturbed), undisturbed, kill=None)
    finally:
        if name == "namespaces":
            remove_namespaces()
    said = ended.said + whole.said
    if any(ended.codes) or any(whole.codes):
        return [f"exit codes {ended.codes} and, undisturbed, {whole.codes}"], said
    return compare(killed, undisturbed, ended), said


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], default=[])
    failed = False
    for name in parser.parse_args().cases or CASES:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as place:
            problems, said = try_case(name, Path(place))
        shown = [line for line in said.splitlines() if SENTENCE in line or "queued again" in line]
        print(f"{name}: {'; '.join(problems) or 'equal'} ({time.monotonic() - started:.0f} s)", flush=True)
        print(*(f"  {line}" for line in shown), sep="\n", flush=True)
        if problems:
            failed = True
            print(said)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
