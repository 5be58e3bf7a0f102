"""A training killed at its file-system events: resumed, it must equal the run that nobody killed.

    python -m campaigns.kills --kills 60       (in `tests/`)

An event is a file that is opened to be written, made, linked, renamed or removed in the folder of the run,
or a write into a checkpoint or the log, of which half comes through. A small training is killed (SIGKILL) at
the n-th of them, in a process of its own, resumed and killed again twice, and then resumed to its end. Then
the weights of the model, of the best one and of the checkpoints, the optimiser, and the log but for its times
are compared to the last bit, and so are the names of all files. Nothing temporary may be left.
"""

import argparse
import builtins
import json
import os
import random
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image
from training.small_runs import run

from unimask.training import display, run_folder
from unimask.training.image_job import MaskJob
from unimask.training.job import Drawing

SETTINGS: dict[str, object] = {
    "training__steps": 5,
    "training__checkpoint_every": 2,
    "training__evaluate_every": 3,
    "training__log_every": 1,
    "training__ema_decay": 0.9,
    "training__workers": 0,
}
NAMES = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link")
TIMES = ("seconds", "images_per_second", "evaluation_seconds")
COUNTED = "events.txt"  # beside the folder of the run: what happened, a line each


Place = tuple[bool, int]
"""Whether within a write, and the number of the event among its like, from 1 on; 0: nowhere."""
NOWHERE: Place = (False, 0)
EACH = 3  # kills of one training


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one case."""

    places: tuple["Place", ...]  # at which it was to be killed
    kinds: tuple[str, ...]  # of the event at each; "no kill" where the run was over before
    problems: tuple[str, ...]  # none where the resumed run equals the other


class Events:
    """Counts what happens to the files of a run, and kills this process at one of the events."""

    def __init__(self, folder: Path, at: Place) -> None:
        self.folder, self.at, self.counts = str(folder) + os.sep, at, {True: 0, False: 0}
        self.log = os.open(folder.parent / COUNTED, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        sys.addaudithook(self.audit)
        run_folder.open = self.open  # type: ignore[attr-defined]  # in the place of the builtin one

    def audit(self, event: str, given: tuple[Any, ...]) -> None:
        if event not in NAMES:
            return
        paths = [str(one) for one in given[:2] if isinstance(one, str | os.PathLike)]
        here = [path for path in paths if path.startswith(self.folder) and "/tensorboard" not in path]
        if here and (event != "open" or given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            self.happens(event)

    def happens(self, kind: str, last_words: Callable[[], object] = lambda: None) -> None:
        of_writes = kind == "write"
        self.counts[of_writes] += 1
        os.write(self.log, f"{kind}\n".encode())
        if (of_writes, self.counts[of_writes]) == self.at:
            last_words()
            os.kill(os.getpid(), signal.SIGKILL)

    def open(self, path: Path, mode: str, **options: Any) -> "Half":
        return Half(builtins.open(path, mode, **options), self)


class Half:
    """A file; where the process is killed at one of its writes, half of that comes through."""

    def __init__(self, file: Any, events: Events) -> None:
        self.file, self.events = file, events

    def __enter__(self) -> "Half":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, content: Any) -> int:
        def half() -> None:
            self.file.write(content[: len(content) // 2])
            self.file.flush()

        self.events.happens("write", half)
        return int(self.file.write(content))

    def flush(self) -> None:
        self.file.flush()

    def fileno(self) -> int:
        return int(self.file.fileno())


def no_drawing(*given: object) -> Drawing:
    """Images take longer than such a training."""
    return Drawing(images={}, tables={})


def blank(part: object) -> Image.Image:
    return Image.new("RGB", (8, 8))


def in_a_process(folder: Path, at: Place = NOWHERE) -> tuple[int, list[str]]:
    """Train in a process of its own, killed at an event; return its exit code and the events."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            Events(folder, at)
            with (
                mock.patch.object(MaskJob, "draw", no_drawing),
                mock.patch.object(display, "as_image", blank),
            ):
                code = 0 if run(folder, resume=True, **SETTINGS).completed else 3
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), (folder.parent / COUNTED).read_text().split()


def without_times(value: Any) -> Any:
    """What JSON holds, without the times that it took."""
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if key not in TIMES}
    return value


def content(path: Path) -> object:
    """What a file holds, as far as it must be equal in both runs."""
    if path.name == "state.pt":
        state = torch.load(path, weights_only=True)
        return [repr(without_times({"state": {**state, "window": None}})), _tensors(state)]
    if path.name == "metrics.jsonl":
        return [without_times(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".safetensors" or path.name == "config.json":
        return path.read_bytes()
    if path.name == "results.json":
        said = json.loads(path.read_text())
        return [said[key] for key in ("final", "best", "best_step", "steps", "skipped_steps")]
    return None


def _tensors(value: Any) -> list[bytes]:
    if isinstance(value, torch.Tensor):
        return [value.numpy().tobytes()]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def files_of(folder: Path) -> set[str]:
    """The names of all files, but for the log of TensorBoard, which goes on in a file of its own."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in paths if path.parts[0] != "tensorboard"}


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two runs."""
    names, others = files_of(one), files_of(other)
    found = [f"only in one of them: {name}" for name in sorted(names ^ others)]
    return found + [
        f"differs: {name}" for name in sorted(names & others) if content(one / name) != content(other / name)
    ]


def case(folder: Path, unbroken: Path, places: Sequence[Place]) -> Outcome:
    """Kill a training at an event, and again while it resumes; then resume it to its end."""
    kinds, problems = [], []
    for at in places:
        code, happened = in_a_process(folder, at)
        kinds.append(happened[-1] if code == -signal.SIGKILL else "no kill")
        if code not in (0, -signal.SIGKILL):
            problems.append(f"exit code {code}")
    code, _ = in_a_process(folder)
    problems += [f"resuming ended with {code}"] if code else differences(unbroken, folder)
    return Outcome(places=tuple(places), kinds=tuple(kinds), problems=tuple(problems))


def campaign(kills: int, seed: int) -> list[Outcome]:
    """Kill trainings so many times; a third of the kills within writes."""
    torch.set_num_threads(1)
    generator, outcomes = random.Random(seed), list[Outcome]()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        code, events = in_a_process(root / "0" / "run")
        assert code == 0, "the run that nobody kills failed"
        counts = {True: events.count("write"), False: len(events) - events.count("write")}

        def somewhere() -> Place:
            of_writes = generator.random() < 1 / 3
            return of_writes, generator.randint(1, counts[of_writes])

        while kills > 0:
            places = [somewhere() for _ in range(min(EACH, kills))]
            outcomes.append(case(root / str(len(outcomes) + 1) / "run", root / "0" / "run", places))
            kills -= sum(kind != "no kill" for kind in outcomes[-1].kinds)
    return outcomes


def main() -> int:
    """See the top of the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    outcomes = campaign(asked.kills, asked.seed)
    kinds = Counter(kind for one in outcomes for kind in one.kinds if kind != "no kill")
    print(", ".join(f"{count} at {kind}" for kind, count in kinds.most_common()))
    bad = [one for one in outcomes if one.problems]
    for one in bad:
        print(f"killed at {one.places} ({', '.join(one.kinds)}): {'; '.join(one.problems)}")
    equal = len(outcomes) - len(bad)
    print(f"{sum(kinds.values())} kills of {len(outcomes)} trainings, {equal} equal to the last bit")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
