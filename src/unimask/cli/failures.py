"""Error messages and exit codes of the command line."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unimask.cli import output as show
from unimask.errors import DataError, is_out_of_memory

BAD_INPUT, UNEXPECTED, STOPPED = 2, 1, 130  # exit codes
AGAIN = 75  # EX_TEMPFAIL of sysexits.h: the same command can continue


def explain(error: Exception) -> int:
    """Show an error as one message, and return the exit code."""
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename is not None else ""
        show.show_error(
            f"{place}{error.strerror}; check the path, its permissions and the space that is left"
        )
        return BAD_INPUT
    if is_out_of_memory(error):
        show.show_error(
            "not enough memory; train with a smaller training.batch_size or data.crop or a larger "
            "training.accumulate, predict on smaller images, or take another --device"
        )
        return BAD_INPUT
    show.show_error(f"{type(error).__name__}: {error}", "unexpected error")
    show.errors.print(
        "This is an error in unimask. Please report it with your command; with UNIMASK_TRACEBACK=1 before "
        "the command it shows where it happened."
    )
    return UNEXPECTED


def check_folder(folder: Path) -> None:
    """Check before the work that results can be written to a folder, which may not exist yet.

    Raises:
        DataError: the folder, or the nearest parent that exists, is a file or not writable.
    """
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir():
        raise DataError(place, "is a file; name a folder with --output")
    if not os.access(place, os.W_OK):
        raise DataError(place, "may not be written to; name another folder with --output")


@contextmanager
def naming(data: str) -> Iterator[None]:
    """Replace the path of errors about the data as a whole ("data") by the path `data`."""
    try:
        yield
    except DataError as error:
        if error.path != "data":
            raise
        raise DataError(data, error.reason) from None
