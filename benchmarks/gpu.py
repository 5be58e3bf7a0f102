"""What needs a CUDA device: `python -m benchmarks.gpu [--section NAME ...] [--tune] [--output FOLDER]`.

Checks the kernels of deformable sampling against the plain version at real sizes, measures them and how much
of the device's memory bandwidth they reach; then the whole model beside transformers' Mask2Former with the
same weights: forward, training step, compiled, as a CUDA graph, in mixed precision. Whatever is compared is
measured in turn (A B A B); ratios are medians over rounds. A table and a JSON are written. Exit code 1: a
check failed; 2: there is no CUDA device.

`--rehearse` goes through every step on the CPU at toy sizes, with Triton's interpreter: a test of this file,
whose numbers mean nothing.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.gpu_kernels import kernels, tune
from benchmarks.gpu_measure import Failures, Plan
from benchmarks.gpu_models import compiled, forward, training
from unimask.machine import describe_machine
from unimask.ops.deformable import cuda as deformable_cuda

SECTIONS: dict[str, Callable[[Plan, Failures], list[dict[str, object]]]] = {
    "kernels": kernels,
    "forward": forward,
    "compiled": compiled,
    "training": training,
}


def shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def table(title: str, rows: list[dict[str, object]]) -> str:
    lines = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0])]
    lines += [" | ".join(map(shown, row.values())) for row in rows]
    return "\n".join([f"## {title}", "", *(f"| {line} |" for line in lines), ""])


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--section", action="append", choices=SECTIONS, help="only this one; repeat for more")
    parser.add_argument("--tune", action="store_true", help="also try other sizes of a kernel's program")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output", type=Path, default=Path("output/benchmarks"))
    parser.add_argument("--rehearse", action="store_true", help="on the CPU; numbers mean nothing")
    given = parser.parse_args(words)
    if not given.rehearse and not torch.cuda.is_available():
        print("error: this benchmark needs a CUDA device, and PyTorch finds none", file=sys.stderr)
        return 2
    if not deformable_cuda.HAS_TRITON:
        print(
            "error: this benchmark needs Triton, which is not installed: pip install triton", file=sys.stderr
        )
        return 2
    if given.rehearse:
        if os.environ.get("TRITON_INTERPRET") != "1":  # Triton reads it when it is imported
            os.environ["TRITON_INTERPRET"] = "1"
            os.execv(sys.executable, [sys.executable, "-m", "benchmarks.gpu", *words])
        plan = Plan(
            device=torch.device("cpu"),
            real=False,
            rounds=1,
            pictures=((32, 64),),
            batches=(1,),
            crop=(64, 64),
            segments=(3,),
        )
    else:
        plan = Plan(
            device=torch.device("cuda"),
            real=True,
            rounds=given.rounds,
            pictures=((640, 640), (800, 1088)),
            batches=(1, 2, 8),
            crop=(512, 512),
            segments=(10, 30),
        )
    return run(plan, given.section or list(SECTIONS), given.tune, given.output)


def run(plan: Plan, sections: list[str], tuning: bool, output: Path) -> int:
    failures = Failures()
    record: dict[str, object] = {"real": plan.real, **describe_machine(plan.device)}
    text = [f"# {torch.cuda.get_device_name() if plan.real else 'REHEARSAL, no CUDA device'}", ""]
    output.mkdir(parents=True, exist_ok=True)
    todo = {name: SECTIONS[name] for name in sections}
    if tuning:
        todo["tuning"] = lambda plan, _: tune(plan)
    for name, section in todo.items():
        rows = section(plan, failures)
        record[name] = rows
        record["failures"] = list(failures)
        text.append(table(name, rows))
        print(text[-1], flush=True)
        (output / "gpu.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        (output / "gpu.md").write_text("\n".join(text), encoding="utf-8")
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
