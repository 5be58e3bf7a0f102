"""Means since the last line of the log, and the time left."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from unimask.config.training import TrainingConfig
from unimask.training.progress import StepReport

_OLD_NAMES = {"pictures": "items"}  # before 0.2


@dataclass(kw_only=True)
class Window:
    """Sums over the steps since the last line of the log."""

    losses: dict[str, float] = field(default_factory=dict)
    norm: float = 0.0
    updates: int = 0
    items: int = 0  # images, or tokens
    steps: int = 0
    seconds: float = 0.0

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> "Window":
        """Return the window of a `state`.

        Raises:
            ValueError: it can be no state of a window.
        """
        known = {_OLD_NAMES.get(name, name): value for name, value in state.items()}
        losses = known.get("losses", {})
        if known.keys() - {one.name for one in fields(Window)} or not isinstance(losses, dict):
            raise ValueError("no state of a window")
        numbers = [*losses.values(), *(value for name, value in known.items() if name != "losses")]
        if not all(isinstance(number, int | float) for number in numbers):
            raise ValueError("no state of a window: it holds what is no number")
        return Window(**known)

    def add_update(self, losses: Mapping[str, float], norm: float) -> None:
        """Add a step that was taken; `norm` is that of the gradient before clipping."""
        for name, value in losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + value
        self.norm += norm
        self.updates += 1

    def add_time(self, items: int, seconds: int | float) -> None:
        """Add the duration of a step, taken or skipped."""
        self.items += items
        self.steps += 1
        self.seconds += seconds

    def means(self) -> dict[str, float]:
        """Return the mean losses over the steps that were taken; empty where none was."""
        return {name: value / self.updates for name, value in self.losses.items()}

    def items_per_second(self) -> float:
        """Return the speed of training, without evaluations."""
        return self.items / self.seconds if self.seconds > 0 else 0.0

    def as_record(self, rate: float, skipped: int, seconds: float, *, unit: str) -> dict[str, int | float]:
        """Return a line of the log, with NaN for unknown values."""
        means = self.means()
        return {
            "loss": means.pop("total", math.nan),
            **means,
            "gradient_norm": self.norm / self.updates if self.updates else math.nan,
            "learning_rate": rate,
            f"{unit}_per_second": self.items_per_second(),
            "skipped_steps": skipped,
            "seconds": seconds,
        }

    def state(self) -> dict[str, Any]:
        """Return plain values for the checkpoint; `from_state` is the inverse."""
        return {
            "losses": dict(self.losses),
            "norm": self.norm,
            "updates": self.updates,
            "items": self.items,
            "steps": self.steps,
            "seconds": self.seconds,
        }


def report_step(
    window: Window,
    step: int,
    config: TrainingConfig,
    rate: float,
    evaluation_seconds: float,
    *,
    unit: str,
    logged: bool,
) -> StepReport:
    """Return the report of a step; the time left counts the evaluations to come."""
    left = (config.steps - step) * window.seconds / max(1, window.steps)
    if config.evaluate_every > 0:
        left += -(-(config.steps - step) // config.evaluate_every) * evaluation_seconds
    means = window.means()
    return StepReport(
        step=step,
        steps=config.steps,
        loss=means.pop("total", math.nan),
        terms=means,
        learning_rate=rate,
        speed=window.items_per_second(),
        unit=unit,
        seconds_left=left,
        logged=logged,
    )
