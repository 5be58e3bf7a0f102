"""Files that appear complete (written beside their own name, then renamed), and files read with care."""

import codecs
import json
import math
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from unimask.errors import DataError, WeightsError, first_line

MOST_BYTES = 4 << 30  # of a file that is read at once


@contextmanager
def complete_files(paths: Sequence[Path]) -> Iterator[tuple[Path, ...]]:
    """Yield a temporary path for each of `paths`; they take their names together when the block ends.

    The caller writes a file or a folder under each temporary path. A reader sees the old content or the new
    one, never a part of it; where the block fails, nothing of it stays. Missing parent folders are made.
    """
    token = uuid.uuid4().hex[:8]
    temporary = tuple(path.with_name(f".{path.name}.{token}.part") for path in paths)
    try:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        for part, path in zip(temporary, paths, strict=True):
            if part.is_dir() and path.is_dir():
                shutil.rmtree(path)  # a folder cannot be replaced in one step
            os.replace(part, path)
    finally:
        for part in temporary:
            remove(part)


@contextmanager
def complete_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a single file or folder; see `complete_files`."""
    with complete_files([path]) as (temporary,):
        yield temporary


def write_text(path: Path, content: str) -> None:
    """Write a text file in UTF-8 so that a reader sees the old content or the new one, never a part of it."""
    with complete_file(path) as temporary:
        temporary.write_text(content, encoding="utf-8", newline="\n")


_NUMBERS = re.compile(r"\[\s+(-?[\d.eE+-]+(?:,\s+-?[\d.eE+-]+)*)\s+\]")


def json_text(value: object, indent: int | None = 1, *, ascii_only: bool = False, rows: bool = False) -> str:
    """Return a value as JSON: the one writer of the library. With `rows` a list of numbers is on one line.

    JSON has no NaN and no infinity, so a number that is not finite (a measure that does not exist) is null.
    """
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=ascii_only, allow_nan=False)
    except ValueError:
        text = json.dumps(_with_nulls(value), indent=indent, ensure_ascii=ascii_only, allow_nan=False)
    if not rows:
        return text
    return _NUMBERS.sub(
        lambda found: f"[{' '.join(found[1].split())}]", text
    )  # a string never has a line break


def _with_nulls(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _with_nulls(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_with_nulls(part) for part in value]
    return value


def write_json(path: Path, value: object, *, rows: bool = False) -> None:
    """Write a JSON file that is complete when it appears; see `json_text`."""
    write_text(path, json_text(value, rows=rows) + "\n")


def remove(path: Path) -> None:
    """Remove a file or a folder with all it holds; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def read_bytes(
    path: Path, error: type[DataError] | type[WeightsError] = DataError, most: int = MOST_BYTES
) -> bytes:
    """Return the content of a regular file.

    Raises:
        DataError: the file is missing, a folder, a device or a pipe, may not be read, or has more than `most`
            bytes. `error` is raised in its place.
    """
    try:
        about = path.stat()
        if stat.S_ISDIR(about.st_mode):
            raise error(path, "is a folder, expected a file")
        if not stat.S_ISREG(about.st_mode):
            raise error(path, "is no regular file (a pipe or a device); copy what it gives into a file")
        if about.st_size > most:
            raise error(path, f"has {about.st_size:,} bytes, more than the {most:,} that are read")
        return path.read_bytes()
    except FileNotFoundError:
        raise error(path, "no such file") from None
    except PermissionError:
        raise error(path, "may not be read; check its permissions") from None
    except MemoryError:
        raise error(path, "does not fit into memory") from None
    except (OSError, ValueError) as reason:  # a name too long or with a null, a loop of links, a failing disk
        raise error(path, f"cannot be read ({first_line(reason)})") from None


def first_bytes(path: Path, count: int) -> bytes:
    """Return how a file begins, to tell its format; nothing where it is no regular file or cannot be read."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(count)
    except (OSError, ValueError):  # what is wrong is said where the file is read
        return b""


def read_text(
    path: Path, error: type[DataError] | type[WeightsError] = DataError, most: int = MOST_BYTES
) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 where a byte order mark says so; the mark is left out.

    Raises:
        DataError: as `read_bytes`, or the bytes are no such text. `error` is raised in its place.
    """
    content = read_bytes(path, error, most)
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as reason:
        raise error(path, f"is no text in UTF-8 (byte {reason.start}); save it as UTF-8") from None


def read_json(path: Path, error: type[DataError] | type[WeightsError] = DataError) -> object:
    """Return what a JSON file holds.

    Raises:
        DataError: as `read_text`, or it is not valid JSON. `error` is raised in its place.
    """
    text = read_text(path, error)
    try:
        content: object = json.loads(text)
    except RecursionError:
        raise error(path, "is not valid JSON (nested too deeply)") from None
    except ValueError as reason:  # also a number of more digits than are converted
        raise error(path, f"is not valid JSON ({first_line(reason)}); it may be cut off") from None
    return content
