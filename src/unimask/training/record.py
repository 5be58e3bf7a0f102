"""The log of a training: `metrics.jsonl`, TensorBoard, and which evaluation was best."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from unimask.errors import MissingPackageError, needs_extra
from unimask.training.run_folder import RunFolder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def _plain(value: int | float) -> int | float | None:
    """Return None for what JSON cannot hold: NaN and infinity."""
    return value if math.isfinite(value) else None


def _open_tensorboard(folder: Path, step: int, message: Callable[[str], None]) -> "SummaryWriter | None":
    """Open a log that goes on after `step`; without the extra `tensorboard`, say so and log nothing there."""
    try:
        with needs_extra("tensorboard", "the log for TensorBoard"):
            from torch.utils.tensorboard import SummaryWriter
    except MissingPackageError as error:
        message(str(error))
        return None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


class RunRecord:
    """The log of a run up to `step`; lines beyond it, written before a kill, are dropped."""

    def __init__(self, folder: RunFolder, step: int, primary: str, message: Callable[[str], None]) -> None:
        self._folder = folder
        self._primary = primary
        self._evaluations: dict[int, dict[str, float]] = {}
        for line in folder.rewind_metrics(step):
            if line["kind"] == "evaluation":
                self._evaluations[line["step"]] = {
                    name: math.nan if value is None else value for name, value in line["values"].items()
                }
        self._tensorboard = _open_tensorboard(folder.tensorboard, step, message)

    def _add_scalars(self, group: str, step: int, values: Mapping[str, int | float]) -> None:
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(f"{group}/{name}", value, step)

    def log_step(self, step: int, values: Mapping[str, int | float]) -> None:
        """Log losses, rates and speed."""
        self._folder.append_metrics(
            {"kind": "step", "step": step, **{k: _plain(v) for k, v in values.items()}}
        )
        self._add_scalars("training", step, values)

    def log_skip(self, step: int, problems: tuple[str, ...]) -> None:
        """Log a skipped step and why it was skipped."""
        self._folder.append_metrics({"kind": "skipped", "step": step, "problems": list(problems)})

    def log_evaluation(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        """Log the metrics of an evaluation."""
        self._evaluations[step] = dict(values)
        plain = {name: _plain(value) for name, value in values.items()}
        self._folder.append_metrics({"kind": "evaluation", "step": step, "seconds": seconds, "values": plain})
        self._add_scalars("evaluation", step, values)
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def has_evaluation(self, step: int) -> bool:
        """Return whether the model after this step has been evaluated."""
        return step in self._evaluations

    def score(self, step: int) -> float:
        """Return the primary metric after a step; NaN counts as worse than everything."""
        value = self._evaluations[step][self._primary]
        return -math.inf if math.isnan(value) else value

    def is_better(self, values: Mapping[str, int | float]) -> bool:
        """Return whether these metrics beat all earlier evaluations."""
        value = values[self._primary]
        best = self.best_step()
        return best == 0 or (not math.isnan(value) and value > self.score(best))

    def best_step(self) -> int:
        """Return the step of the best evaluation, the first of equals; 0 where there is none."""
        return max(self._evaluations, key=lambda step: (self.score(step), -step), default=0)

    def best(self) -> dict[str, float]:
        """Return the metrics of the best evaluation; empty where there is none."""
        return self._evaluations.get(self.best_step(), {})

    def last(self) -> dict[str, float]:
        """Return the metrics of the latest evaluation; empty where there is none."""
        return self._evaluations.get(max(self._evaluations, default=0), {})

    def close(self) -> None:
        """Close the log of TensorBoard."""
        if self._tensorboard is not None:
            self._tensorboard.close()

    def summary(self) -> dict[str, object]:
        """Return the final and the best evaluation, ready for JSON."""
        return {
            "final": {name: _plain(value) for name, value in self.last().items()},
            "best": {name: _plain(value) for name, value in self.best().items()},
            "best_step": self.best_step(),
            "primary_metric": self._primary,
        }
