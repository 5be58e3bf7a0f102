"""Run the suites: `python -m benchmarks [--quick] [--device cuda] [--suite NAME ...]`.

A JSON and a Markdown file go into benchmarks/results. With --fill, nothing runs: the tables of a JSON are put
into a document.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

SUITES = ("inference", "reduced", "postprocessing", "training", "eomt", "loader", "metrics")
RESULTS = Path(__file__).parent / "results"


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: a test of the harness")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="on the CPU")
    parser.add_argument(
        "--precision", default="32-true", choices=("32-true", "bf16-mixed"), help="of training steps"
    )
    parser.add_argument(
        "--clock",
        default="wall",
        choices=("wall", "processor"),
        help="processor: seconds of this process's threads, for a machine with other work; on the CPU",
    )
    parser.add_argument("--suite", action="append", choices=SUITES, help="only this one; repeat for more")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--name", default="", help="name of the two files; by default device and date")
    parser.add_argument(
        "--fill",
        nargs=2,
        type=Path,
        metavar=("RESULTS.json", "DOCUMENT.md"),
        help="only put tables there",
    )
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    from benchmarks import report
    from benchmarks.settings import Outcome, Settings
    from benchmarks.suites import run_suite
    from unimask.benchmark.memory import in_fresh_process
    from unimask.errors import UnimaskError
    from unimask.machine import find_device

    given = parse(words)
    try:
        if given.fill:
            report.fill(given.fill[1], json.loads(given.fill[0].read_text(encoding="utf-8")))
            return 0
        device = find_device(given.device)
    except (UnimaskError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    settings = Settings(
        device=str(device),
        threads=given.threads,
        precision=given.precision,
        clock=given.clock,
        quick=given.quick,
    )
    about = report.about_the_run(settings)
    name = given.name or ("quick_" if given.quick else "") + time.strftime(f"{device.type}_%Y-%m-%d_%H%M")
    outcomes: dict[str, Outcome] = {}
    for suite in given.suite or SUITES:
        start = time.perf_counter()
        outcomes[suite] = in_fresh_process(run_suite, suite, settings)
        print(f"{suite}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        record = report.as_record(about, outcomes)
        paths = report.write(given.output, name, record)  # after each suite, so that a stop loses little
    print(report.markdown(record))
    print(*paths, sep="\n", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
