import io
import math
from dataclasses import replace

import pytest
from rich.console import Console

from unimask.config.training import TrainingConfig
from unimask.training.progress import PlainReporter, RichReporter, describe, duration
from unimask.training.speed import Window, report_step


def window() -> Window:
    window = Window()
    for loss in (4.0, 2.0):
        window.add_update({"total": loss, "mask": 0.5}, norm=3.0)
        window.add_time(6, seconds=1.5)
    return window


def test_means_speed_and_time_left() -> None:
    config = TrainingConfig(steps=110, batch_size=6, evaluate_every=40)
    report = report_step(window(), 10, config, 1e-4, 7.0, unit="images", logged=True)
    assert (report.loss, report.terms, report.speed) == (3.0, {"mask": 0.5}, 4.0)
    assert report.seconds_left == pytest.approx(100 * 6 / 4.0 + 3 * 7.0)  # evaluations after 40, 80 and 110
    record = window().as_record(1e-4, 2, 99.0, unit="images")
    assert (record["loss"], record["mask"], record["gradient_norm"], record["skipped_steps"]) == (
        3.0,
        0.5,
        3.0,
        2,
    )


def test_a_window_of_skipped_steps_has_no_loss() -> None:
    empty = Window()
    empty.add_time(6, 1.0)
    assert math.isnan(empty.as_record(1e-4, 1, 1.0, unit="images")["loss"])
    assert report_step(empty, 1, TrainingConfig(), 1e-4, 0.0, unit="images", logged=False).terms == {}


def test_a_window_survives_a_checkpoint() -> None:
    assert Window.from_state(window().state()) == window()
    assert Window.from_state({"pictures": 5}).items == 5  # as it was called before


def test_plain_lines() -> None:
    written: list[str] = []
    reporter = PlainReporter(written.append)
    reporter.start(steps=110, done=9)
    report = report_step(
        window(), 10, TrainingConfig(steps=110, evaluate_every=0), 1e-4, 0.0, unit="images", logged=False
    )
    reporter.step(report)  # the first one is shown at once
    reporter.step(replace(report, step=11))
    reporter.step(replace(report, step=12, logged=True))
    reporter.stop()
    first, estimated, second, third = written
    assert first == "going on after step 9 of 110"
    assert (
        estimated == "the first step is done; the 100 to come take 0:02:30 or less, evaluations not counted"
    )
    assert second == describe(report)
    assert third.startswith("step 12/110")
    assert second.startswith("step 10/110  loss 3.000 (mask 0.500)")
    assert "4.00 images/s" in second


def test_a_bar() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    reporter = RichReporter(console)
    reporter.start(steps=110, done=9)
    reporter.step(report_step(window(), 10, TrainingConfig(steps=110), 1e-4, 0.0, unit="images", logged=True))
    reporter.evaluating(1, 3)
    reporter.evaluating(3, 3)
    reporter.message("evaluation [1]: pq 0.5")
    reporter.stop()
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "10/110" in shown
    assert shown.count("the first step is done; the 100 to come take") == 1
    assert "4.00 images/s" in shown
    assert "evaluation [1]: pq 0.5" in shown


def test_a_bar_on_a_narrow_terminal_keeps_steps_and_time() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=60)
    reporter = RichReporter(console)
    reporter.start(steps=1500, done=0)
    report = report_step(window(), 10, TrainingConfig(steps=1500), 1e-4, 0.0, unit="images", logged=True)
    reporter.step(replace(report, seconds_left=65_000.0))
    reporter.stop()
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "10/1500" in shown
    assert "18:03:20 left" in shown
    assert "`--set training.steps=NUMBER` makes it shorter" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3723, "1:02:03"), (-1, "0:00:00")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
