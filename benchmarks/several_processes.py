"""What several processes cost and save in training: memory of each, and seconds of a step.

    python -m benchmarks.several_processes memory [--preset coco_panoptic_swin_tiny] [--output FILE]
    python -m benchmarks.several_processes time [--preset small] [--rounds 3] [--output FILE]

`memory` builds a model of the preset with AdamW and an average, takes two steps on random pixels, and counts
the bytes of weights, gradients, optimiser and average that each process holds; beside them the memory of the
process (resident, after what is free has been given back). `time` trains on generated images, the same batch
on 1, 2 and 4 processes with both strategies, one after the other in each round, and takes the median over the
rounds. Processes are given one thread each and share this machine's cores.
"""

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from unimask.config.overrides import override
from unimask.models.build import build_model
from unimask.presets import PRESETS
from unimask.processes import gather
from unimask.training.engine import Machines, start_engine
from unimask.training.learner import Learner
from unimask.training.optimizer import parameters_of

MEGABYTE = 2**20
CASES = ((1, "ddp"), (2, "ddp"), (2, "fsdp"), (4, "ddp"), (4, "fsdp"))
STEPS, BATCH = 12, 8


def resident() -> int:
    """Bytes of this process that are in memory, after giving back what is free."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def held(tensors: Iterable[Tensor | None]) -> int:
    """Bytes that this process holds of some tensors."""
    own = [
        tensor.to_local() if isinstance(tensor, DTensor) else tensor
        for tensor in tensors
        if tensor is not None
    ]
    return sum(tensor.nbytes for tensor in own)


def measure_memory(preset: str, processes: int, strategy: str) -> None:
    """Measure one case; run in a process of its own, which starts the others."""
    torch.set_num_threads(1)
    experiment = override(PRESETS[preset](), {"training.strategy": strategy, "training.ema_decay": 0.999})
    fabric = start_engine(experiment.training, Machines(device="cpu", devices=processes, nodes=1))
    before = resident()
    torch.manual_seed(0)

    def build() -> nn.Module:
        return build_model(experiment.model, 133)

    learner = Learner(fabric, build(), experiment.training, build, None)
    pixels, valid = torch.randn(1, 3, 64, 64), torch.ones(1, 64, 64, dtype=torch.bool)

    def measure(model: nn.Module) -> dict[str, Tensor]:
        found = model(pixels, valid)
        parts = (found.class_logits, found.mask_embeddings, found.mask_features)
        return {"total": sum((part.square().mean() for part in parts), torch.zeros(()))}

    for step in range(2):
        fabric.backward(learner.module(measure)["total"])
        gradients = held(parameter.grad for parameter in learner.model.parameters())
        learner.optimizer.step()
        learner.follow()
        if step == 0:
            learner.optimizer.zero_grad()
    state = learner.optimizer.optimizer.state
    optimizer = held(
        tensor
        for parameter in parameters_of(learner.optimizer.optimizer)
        for tensor in state[parameter].values()
    )
    mine = {
        "weights": held(learner.model.parameters()),
        "gradients": gradients,
        "optimizer": optimizer,
        "average": held(learner.average.module.parameters()) if learner.average else 0,
        "resident": resident() - before,
    }
    everyone = gather(mine)
    if fabric.is_global_zero:
        print(
            json.dumps(
                [{name: round(value / MEGABYTE, 1) for name, value in one.items()} for one in everyone]
            )
        )


def run(*words: str) -> str:
    """Run a command in one thread; return what it prints."""
    return subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def memory(preset: str) -> list[dict[str, object]]:
    """Return megabytes of each process, for each case."""
    results = []
    for processes, strategy in CASES:
        said = run("-m", "benchmarks.several_processes", "one", preset, str(processes), strategy)
        results.append({"processes": processes, "strategy": strategy, "megabytes": json.loads(said)})
        print(json.dumps(results[-1]), flush=True)
    return results


def seconds_of_a_step(preset: str, processes: int, strategy: str) -> float:
    """Train on generated images; return the median seconds of a step, without the first ones."""
    with tempfile.TemporaryDirectory() as place:
        settings = {
            "steps": STEPS,
            "batch_size": BATCH,
            "log_every": 1,
            "evaluate_every": 0,
            "checkpoint_every": 1000,
            "workers": 0,
        }
        words = [word for name, value in settings.items() for word in ("--set", f"training.{name}={value}")]
        words += ["--set", "data.crop=[128, 128]", "--output", f"{place}/run"]
        words += ["--devices", str(processes), "--strategy", strategy, "--device", "cpu"]
        command = str(Path(sys.executable).with_name("unimask"))
        run(command, "train", "--preset", preset, "--data", "shapes:128x128", "--task", "panoptic", *words)
        lines = [
            json.loads(line) for line in (Path(place) / "run" / "metrics.jsonl").read_text().splitlines()
        ]
    return statistics.median(
        BATCH / line["pictures_per_second"] for line in lines[3:] if line["kind"] == "step"
    )


def timing(preset: str, rounds: int) -> list[dict[str, object]]:
    """Return the seconds of a step of each case, and how they compare with one process."""
    measured: dict[tuple[int, str], list[float]] = {case: [] for case in CASES}
    for _ in range(rounds):
        for case in CASES:
            measured[case].append(seconds_of_a_step(preset, *case))
            print(*case, f"{measured[case][-1]:.3f} s", flush=True)
    return [
        {
            "processes": processes,
            "strategy": strategy,
            "seconds": round(statistics.median(seconds), 3),
            "of_one": round(
                statistics.median(a / b for a, b in zip(seconds, measured[CASES[0]], strict=True)), 2
            ),
        }
        for (processes, strategy), seconds in measured.items()
    ]


def main() -> None:
    """See the top of the file."""
    if sys.argv[1:2] == ["one"]:
        measure_memory(sys.argv[2], int(sys.argv[3]), sys.argv[4])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["memory", "time"])
    parser.add_argument("--preset", default="")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    if asked.what == "memory":
        results = memory(asked.preset or "coco_panoptic_swin_tiny")
    else:
        results = timing(asked.preset or "small", asked.rounds)
    print(json.dumps(results, indent=1))
    if asked.output:
        asked.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
