"""What the command line shows: progress and messages on standard error, results on standard output."""

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from unimask.files import json_text
from unimask.training.progress import duration, progress_bars

errors = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
screen = Console(highlight=False, markup=False, emoji=False)


def show_error(message: object, title: str = "error") -> None:
    """Write a message to standard error, with its title in red."""
    errors.print(Text.assemble((title, "bold red"), f" {message}"))


def show_warning(message: object) -> None:
    """Write a warning to standard error."""
    errors.print(Text.assemble(("warning", "bold yellow"), f" {message}"))


def show_json(value: object) -> None:
    """Write JSON to standard output, in ASCII, so that its encoding does not matter."""
    typer.echo(json_text(value, 2, ascii_only=True))


def show_line(text: str) -> None:
    """Write a line to standard output without wrapping it, so that it can be copied."""
    screen.print(text, soft_wrap=True)


@contextmanager
def without_others() -> Iterator[None]:
    """Suppress the warnings and log lines of other packages in the output of a command.

    Both are settings of the whole process, so only commands may change them, and not the library.
    """
    warnings.simplefilter("ignore")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def ignore_deprecation_in_ray() -> None:
    """Ignore the deprecation of what limits retries, for which `pyproject.toml` bounds the version of Ray."""
    with suppress(ImportError):
        import ray.util.annotations  # noqa: F401  # its own filter, which shows it, comes before ours
    warnings.filterwarnings("ignore", message="`ray_remote_args_fn` is deprecated")


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with speed and time left; yield a function to call with the images done and all images.

    Nothing is shown before the first call.
    """
    bars = progress_bars(errors)
    bar = bars.add_task(label, details="")
    started = time.monotonic()
    begun = False

    def advance(done: int, total: int) -> None:
        nonlocal begun
        begun = True
        bars.start()
        seconds = time.monotonic() - started
        left = f"{duration(seconds / done * (total - done))} left  " if done else ""
        details = left if done < total else f"in {duration(seconds)}  "
        details += f"{done / max(seconds, 1e-3):.2f} images/s" if done else ""
        bars.update(bar, completed=done, total=total, details=details)

    try:
        yield advance
    finally:
        if begun:  # else it would leave an empty line where there is no terminal
            bars.stop()


@contextmanager
def counting(label: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar for each split; yield a function to call with the split, the images done and all images.

    Nothing is shown before the first call.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with ExitStack() as stack:
        # without a terminal a bar would leave an empty line
        bars = Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal)
        known: dict[str, TaskID] = {}

        def count(split: str, done: int, total: int) -> None:
            if not known:
                stack.enter_context(bars)
            if split not in known:
                known[split] = bars.add_task(f"{label} {split}", total=total)
            bars.update(known[split], completed=done)

        yield count
