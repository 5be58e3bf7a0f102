"""The log of a training: `metrics.jsonl`, its curves and tables, loggers, and which evaluation was best."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unimask.training.display import Display
from unimask.training.job import Drawing
from unimask.training.loggers import LoggedRun, Logger, Loggers
from unimask.training.run_folder import RunFolder

Value = int | float | None
"""Of a metric; None where there was nothing to measure."""


def _plain(value: Value) -> Value:
    """Return None for NaN and infinity, which JSON does not have."""
    return value if value is not None and math.isfinite(value) else None


def _nothing() -> Drawing:
    return Drawing(images={}, tables={})


class RunRecord:
    """The log of a run up to `step`; lines beyond it, written before a kill, are dropped."""

    def __init__(
        self,
        folder: RunFolder,
        step: int,
        primary: str,
        message: Callable[[str], None],
        loggers: Sequence[str | Logger] = (),
        best: Mapping[str, Any] | None = None,
    ) -> None:
        """Read the log; `best` is the line of the best evaluation that the checkpoint keeps (`best_line`)."""
        self._folder = folder
        self._primary = primary
        self._evaluations: dict[int, dict[str, Value]] = {}
        for line in folder.rewind_metrics(step, message, best):
            if line["kind"] == "evaluation":
                self._evaluations[line["step"]] = line["values"]
        self._display = Display(folder, step, message)
        about = LoggedRun(folder=folder.path, step=step, description=folder.description())
        self._loggers = Loggers(loggers, about, message)

    def log_step(self, step: int, values: Mapping[str, int | float]) -> None:
        """Log losses, rates and speed."""
        self._folder.append_metrics(
            {"kind": "step", "step": step, **{k: _plain(v) for k, v in values.items()}}
        )
        self._loggers.values("training", step, values)

    def log_skip(self, step: int, problems: tuple[str, ...]) -> None:
        """Log a skipped step and why it was skipped."""
        self._folder.append_metrics({"kind": "skipped", "step": step, "problems": list(problems)})

    def log_evaluation(
        self,
        step: int,
        values: Mapping[str, Value],
        seconds: float,
        per_category: Mapping[str, Mapping[str, float]] | None = None,
        draw: Callable[[], Drawing] = _nothing,
    ) -> None:
        """Write the images of an evaluation, then log its metrics."""
        images = self._display.draw(step, draw)
        plain = {name: _plain(value) for name, value in values.items()}
        self._evaluations[step] = plain
        self._folder.append_metrics(
            {
                "kind": "evaluation",
                "step": step,
                "seconds": seconds,
                "values": plain,
                "per_category": {name: dict(numbers) for name, numbers in (per_category or {}).items()},
            }
        )
        for name, image in images.items():
            self._loggers.image(name, step, image)
        measured = {name: value for name, value in plain.items() if value is not None}
        self._loggers.values("evaluation", step, measured)
        self._display.refresh()

    def has_evaluation(self, step: int) -> bool:
        """Return whether the model after this step has been evaluated."""
        return step in self._evaluations

    def scores(self) -> dict[int, float]:
        """Return the primary metric after each step at which it could be measured."""
        values = {step: metrics.get(self._primary) for step, metrics in self._evaluations.items()}
        return {step: value for step, value in values.items() if isinstance(value, int | float)}

    def best_line(self) -> dict[str, Any] | None:
        """Return the line of the best evaluation, without what takes space; None where there is none."""
        step = self.best_step()
        values = {self._primary: self.scores()[step]} if step else {}
        line = {"kind": "evaluation", "step": step, "seconds": 0.0, "values": values, "per_category": {}}
        return line if step else None

    def is_better(self, values: Mapping[str, Value]) -> bool:
        """Return whether these metrics beat all earlier evaluations; unmeasured ones do not."""
        value = _plain(values[self._primary])
        return value is not None and value > max(self.scores().values(), default=-math.inf)

    def best_step(self) -> int:
        """Return the step of the best evaluation, the first of equals; 0 where none could be measured."""
        scores = self.scores()
        return max(scores, key=lambda step: (scores[step], -step), default=0)

    def best(self) -> dict[str, Value]:
        """Return the metrics of the best evaluation; empty where there is none."""
        return self._evaluations.get(self.best_step(), {})

    def last(self) -> dict[str, Value]:
        """Return the metrics of the latest evaluation; empty where there is none."""
        return self._evaluations.get(max(self._evaluations, default=0), {})

    def finish(self) -> None:
        """Draw the run as it ended."""
        self._display.refresh()

    def close(self) -> None:
        """Close the loggers."""
        self._loggers.close()

    def summary(self) -> dict[str, object]:
        """Return the final and the best evaluation, ready for JSON."""
        return {
            "final": self.last(),
            "best": self.best(),
            "best_step": self.best_step(),
            "primary_metric": self._primary,
        }
