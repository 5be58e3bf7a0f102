"""What several processes and Ray cost: `python -m benchmarks.scale --weights nuclei --images photos/`.

Images a second of `unimask predict` by 1, 2 and 4 processes (torchrun) and by as many actors of Ray, runs of
the two in turn, and the peak of the memory of each kind of process; and where the time of one process goes. A
rate is that between the results of the first image of each worker and the last result, so starting does not
count; the seconds of processors in that time are given too, for a machine with other work. On Linux. Markdown
tables and a JSON file come out.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import unimask
from unimask.data.read import image_files, read
from unimask.inference.segmenter import Segmenter
from unimask.results.found import save_result
from unimask.results.writing import Place, files_of

DRIVER = "driver or process"
SIDES = ("processes", "ray")
STAGES = ("reading", "model", "postprocessing", "encoding", "writing")
REST = "rest of Ray"
KINDS = {"ray::MapWorker": "actor", "ray::": REST, "raylet": REST, "gcs_server": REST, "/ray/": REST}


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--weights", default="nuclei")
    parser.add_argument("--images", type=Path, default=Path("examples"))
    parser.add_argument("--count", type=int, default=48, help="images of a run; those given, over and over")
    parser.add_argument("--workers", default="1,2,4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="a JSON file")
    return parser.parse_args(words)


def stages(segmenter: Segmenter, files: Sequence[Path], folder: Path) -> dict[str, list[float]]:
    """The seconds of a processor for each stage, for each image, one after the other."""
    spent: dict[str, list[float]] = defaultdict(list)

    def timed(stage: str, make: Callable[[], Any]) -> Any:
        start = time.process_time()  # one thread: what others do on the machine is left out, and waiting too
        made = make()
        spent[stage].append(time.process_time() - start)
        return made

    thresholds = segmenter.model_file.experiment.postprocess
    for number, file in enumerate(files):
        image = timed("reading", lambda file=file: read(file, segmenter.reading)).pixels
        seen = timed("model", lambda image=image: list(segmenter.see([image])))
        found = timed(
            "postprocessing", lambda seen=seen: segmenter.postprocess(seen, segmenter.task, thresholds)
        )
        result = segmenter.result(file.stem, image, found, segmenter.task)
        place = Place(folder=folder, name=str(number), image=str(file), pixel_size=None)
        memory: dict[str, bytes] = {}

        def encode(result: Any = result, place: Place = place, memory: dict[str, bytes] = memory) -> None:
            with tempfile.TemporaryDirectory(dir="/dev/shm") as shm:
                for name, write in files_of(result, (), place).items():
                    write(Path(shm) / name)
                    memory[name] = (Path(shm) / name).read_bytes()

        timed("encoding", encode)
        ready = {
            name: lambda path, content=content: path.write_bytes(content) for name, content in memory.items()
        }
        timed("writing", lambda ready=ready, number=number: save_result(folder, str(number), ready))
    return {stage: values[1:] for stage, values in spent.items()}  # the first image warms up


def command(side: str, workers: int, weights: str, photos: Path, output: Path) -> list[str]:
    words = ["predict", str(photos), "--weights", weights, "--output", str(output), "--device", "cpu"]
    bin_folder = Path(sys.executable).parent
    if side == "ray":
        return [str(bin_folder / "unimask"), *words, "--engine", "ray", "--actors", str(workers)]
    if workers == 1:
        return [str(bin_folder / "unimask"), *words]
    launcher = [str(bin_folder / "torchrun"), "--standalone", "--nproc-per-node", str(workers), "--no-python"]
    return [*launcher, str(bin_folder / "unimask"), *words]


@dataclass(frozen=True)
class Run:
    """What one run cost."""

    rate: float  # images a second, from the first results on
    processor: float  # seconds of processors per image, of all processes, from the first results on
    start: float  # seconds until the first results
    memory: dict[str, int]  # the peak in bytes by kind of process; of the rest of Ray the sum


def run(side: str, workers: int, weights: str, photos: Path) -> Run:
    """Predict once, and watch the processes."""
    output = Path(tempfile.mkdtemp(prefix="unimask-scale-"))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers)),
        "RAY_worker_niceness": "0",  # as the processes that it is compared with
    }
    peaks: dict[int, tuple[str, int]] = {}
    spent: list[tuple[float, float]] = []  # when, and the seconds of processors until then
    begun = time.time()
    process = subprocess.Popen(
        command(side, workers, weights, photos, output),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None:
        spent.append((time.time(), sample(process.pid, peaks)))
        time.sleep(0.3)
    if process.returncode:
        raise RuntimeError(process.stderr.read() if process.stderr else "")
    times = sorted(path.stat().st_mtime for path in output.glob("[!.]*.json"))
    shutil.rmtree(output)
    first, last, count = times[workers - 1], times[-1], len(times) - workers
    memory: dict[str, int] = defaultdict(int)
    for kind, peak in peaks.values():
        memory[kind] = memory[kind] + peak if kind == REST else max(memory[kind], peak)
    within = [seconds for when, seconds in spent if first <= when <= last]
    return Run(
        rate=count / (last - first),
        processor=(max(within) - min(within)) / count if within else 0.0,
        start=first - begun,
        memory=memory,
    )


def sample(root: int, peaks: dict[int, tuple[str, int]]) -> float:
    """Note the memory of a process and of all that it started; return their seconds of processors."""
    children: dict[int, list[int]] = defaultdict(list)
    ticks: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children[int(fields[1])].append(int(entry.name))
            ticks[int(entry.name)] = int(fields[11]) + int(fields[12])
    waiting, total = [root], 0
    while waiting:
        number = waiting.pop()
        waiting += children[number]
        total += ticks.get(number, 0)
        try:
            name = (Path("/proc") / str(number) / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            status = (Path("/proc") / str(number) / "status").read_text()
        except OSError:
            continue
        peak = [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")]
        kind = next((kind for part, kind in KINDS.items() if part in name), DRIVER)
        if peak and "torchrun" not in name:
            peaks[number] = (kind, peak[0])
    return total / os.sysconf("SC_CLK_TCK")


def main(words: Sequence[str] | None = None) -> None:
    options = parse(words)
    given = image_files([options.images])
    found: dict[str, Any] = {"weights": options.weights, "count": options.count, "cpus": os.cpu_count()}
    with tempfile.TemporaryDirectory(prefix="unimask-scale-") as temporary:
        photos = Path(temporary) / "photos"
        photos.mkdir()
        for number in range(options.count):
            source = given[number % len(given)]
            shutil.copy(source, photos / f"{number:05}{source.suffix}")
        torch.set_num_threads(1)
        segmenter = unimask.load(options.weights, device="cpu")
        spent = stages(segmenter, sorted(photos.iterdir())[: min(options.count, 13)], Path(temporary) / "out")
        found["seconds per image"] = {stage: statistics.median(spent[stage]) for stage in STAGES}
        print("| stage | processor ms per image | share |\n|---|---|---|")
        total = sum(found["seconds per image"].values())
        for stage, seconds in found["seconds per image"].items():
            print(f"| {stage} | {seconds * 1000:.1f} | {seconds / total:.1%} |", flush=True)
        print(
            "\n| workers | images/s: processes, Ray | lost | processor s per image | first results | memory |"
        )
        print("|---|---|---|---|---|---|")
        found["runs"] = []
        for workers in map(int, options.workers.split(",")):
            runs: dict[str, list[Run]] = {side: [] for side in SIDES}
            for number in range(options.rounds):
                for side in SIDES if number % 2 == 0 else SIDES[::-1]:
                    runs[side].append(run(side, workers, options.weights, photos))
            found["runs"].append(
                {"workers": workers, **{k: [vars(one) for one in v] for k, v in runs.items()}}
            )
            print(row(workers, runs["processes"], runs["ray"]), flush=True)
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")


def row(workers: int, processes: Sequence[Run], ray: Sequence[Run]) -> str:
    """A row of the table: medians; what is lost is the median of pairs that ran one after the other."""

    def both(pick: Callable[[Run], float], form: str) -> str:
        return ", ".join(f"{statistics.median(map(pick, side)):{form}}" for side in (processes, ray))

    lost = statistics.median(1 - b.rate / a.rate for a, b in zip(processes, ray, strict=True))
    memory = [
        f"{kind} {one.memory[kind] / 2**20:,.0f} MB"
        for one, kinds in ((processes[-1], [DRIVER]), (ray[-1], [DRIVER, "actor", REST]))
        for kind in kinds
    ]
    memory[:2] = [memory[0].replace(DRIVER, "process"), memory[1].replace(DRIVER, "driver")]
    return (
        f"| {workers} | {both(lambda one: one.rate, '.2f')} | {lost:.0%} "
        f"| {both(lambda one: one.processor, '.2f')} | {both(lambda one: one.start, '.0f')} s "
        f"| {', '.join(memory)} |"
    )


if __name__ == "__main__":
    main()
