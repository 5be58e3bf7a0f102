"""Train one row of an ablation in a process of its own, to measure its own peak of memory.

`python -m unimask.training.ablation.row FOLDER` trains what `FOLDER/request.json` asks for, in `FOLDER/run`,
and writes `FOLDER/measured.json`, or `FOLDER/error.txt` where it fails. A row that was stopped goes on.
"""

import json
import sys
from pathlib import Path

import torch

from unimask.config.images import experiment_from_dict
from unimask.errors import UnimaskError
from unimask.files import write_json
from unimask.machine import memory_now, peak_memory
from unimask.training.checks import check_device
from unimask.training.progress import Reporter, StepReport, automatic_reporter
from unimask.training.run import train

DONE, BROKEN, REFUSED, STOPPED = 0, 1, 2, 130  # exit codes


class MeasuringReporter:
    """Measure the peak of memory of the steps before the first evaluation, and pass everything on."""

    def __init__(self, inner: Reporter, device: torch.device, before: int) -> None:
        self._inner, self._device = inner, device
        self.peak = before
        self._training = True

    def start(self, *, steps: int, done: int) -> None:
        """Pass it on."""
        self._inner.start(steps=steps, done=done)

    def step(self, report: StepReport) -> None:
        """Measure the peak of memory, and pass it on."""
        if self._training:
            self.peak = peak_memory(self._device)
        self._inner.step(report)

    def evaluating(self, done: int, total: int) -> None:
        """Stop measuring, because the peak may be that of the evaluation, and pass it on."""
        self._training = False
        self._inner.evaluating(done, total)

    def message(self, text: str) -> None:
        """Pass it on."""
        self._inner.message(text)

    def stop(self) -> None:
        """Pass it on."""
        self._inner.stop()


def run(folder: Path) -> int:
    """Train the row; return the exit code.

    Raises:
        UnimaskError: it cannot be trained.
    """
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    experiment = experiment_from_dict(request["experiment"])
    accelerator, selected = check_device(request["device"], 1, experiment.training.precision)
    index = selected[0] if isinstance(selected, list) else 0
    device = torch.device("cuda", index) if accelerator == "cuda" else torch.device("cpu")
    before = memory_now(device)
    reporter = MeasuringReporter(automatic_reporter(), device, before)
    result = train(
        experiment,
        request["data"],
        folder / "run",
        task=request["task"],
        resume=True,
        initial=request["initial"],
        device=request["device"],
        reporter=reporter,
    )
    path = folder / "measured.json"
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    measured = {
        "completed": result.completed,
        "memory_of_training": max(reporter.peak - before, earlier.get("memory_of_training", 0)),
        "peak_memory": max(reporter.peak, earlier.get("peak_memory", 0)),
    }
    write_json(path, measured)
    return DONE if result.completed else STOPPED


def main(folder: Path) -> int:
    """Run the row and write to `error.txt` why it failed, if it did; return the exit code."""
    failure = folder / "error.txt"
    failure.unlink(missing_ok=True)
    try:
        return run(folder)
    except UnimaskError as error:
        failure.write_text(f"{error}\n", encoding="utf-8")
        return REFUSED
    except KeyboardInterrupt:
        return STOPPED
    except Exception as error:
        failure.write_text(f"{type(error).__name__}: {error}\n", encoding="utf-8")
        sys.excepthook(type(error), error, error.__traceback__)
        return BROKEN


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
