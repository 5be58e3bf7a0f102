"""Files that appear complete (written beside their own name, then renamed), and files read with care."""

import codecs
import hashlib
import json
import math
import os
import platform
import re
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from unimask.errors import DataError, WeightsError, first_line, instead_of

MOST_BYTES = 4 << 30  # of a file that is read at once


@contextmanager
def complete_files(paths: Sequence[Path]) -> Iterator[tuple[Path, ...]]:
    """Yield a temporary path for each of `paths`; they take their names together when the block ends.

    The caller writes a file or a folder under each temporary path. A reader sees the old content or the new
    one, never a part of it, also after a power cut: contents reach the disk before they get their names.
    Where the block fails, nothing of it stays; what a kill leaves is removed by `clean_up`, at the latest
    when a process writes into that folder for the first time. Missing parent folders are made, and removed
    again where it fails.
    """
    temporary = tuple(path.with_name(_temporary_name(path.name[:50], "part")) for path in paths)
    folders = tuple(dict.fromkeys(path.parent for path in paths))
    missing = _missing(folders)
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            _clean_up_once(folder.absolute())
        yield temporary
        for part in temporary:
            for inner in part.rglob("*") if part.is_dir() else ():
                to_disk(inner)
            to_disk(part)
        for part, path in zip(temporary, paths, strict=True):
            _take_place(part, path)
        for folder in folders:
            to_disk(folder)
        missing.clear()
    finally:
        for part in temporary:
            remove(part)
        for folder in missing:
            with suppress(OSError):  # it was not made, or somebody else wrote into it
                folder.rmdir()


def _missing(folders: Sequence[Path]) -> list[Path]:
    """Return the folders, and parents of them, that are not there, inner ones first."""
    missing = [place for folder in folders for place in (folder, *folder.parents) if not exists(place)]
    return sorted(dict.fromkeys(missing), key=lambda place: -len(place.parts))


@contextmanager
def complete_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a single file or folder; see `complete_files`."""
    with complete_files([path]) as (temporary,):
        yield temporary


def write_text(path: Path, content: str) -> None:
    """Write a text file in UTF-8 so that a reader sees the old content or the new one, never a part of it."""
    with complete_file(path) as temporary:
        put_text(temporary, content)


def put_text(path: Path, content: str) -> None:
    """Write a text file in UTF-8 at once, for a caller who sees to it that it appears complete."""
    path.write_text(content, encoding="utf-8", errors="backslashreplace", newline="\n")


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


def to_disk(path: Path) -> None:
    """Wait until what was written into a file, or the names in a folder, would survive a power cut (fsync).

    Raises:
        OSError: the disk is full or failing.
    """
    if path.is_dir():
        if sys.platform != "win32":  # which cannot open folders
            with suppress(OSError):  # as can some file systems of networks
                _sync(path, os.O_RDONLY)
    elif path.is_file():
        _sync(path, os.O_RDWR)


def _sync(path: Path, mode: int) -> None:
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _take_place(part: Path, path: Path) -> None:
    if not (part.is_dir() and path.is_dir()):
        os.replace(part, path)
        return
    before = path.with_name(_temporary_name(path.name, "old"))  # a folder cannot be replaced in one step
    os.rename(path, before)
    os.replace(part, path)
    remove(before)


# what processes that were killed leave behind

_TEMPORARY = re.compile(
    r"\.(?P<name>.+)\.(?:(?P<place>[0-9a-f]{6})-(?P<process>\d+)-)?[0-9a-f]{6,8}\.(?P<kind>part|old)"
)
_DAY = 24 * 60 * 60  # seconds; so long may a process on another machine write one file


def _temporary_name(name: str, kind: str) -> str:
    return f".{name}.{_place()}-{os.getpid()}-{uuid.uuid4().hex[:6]}.{kind}"


@cache
def _place() -> str:
    """Return a mark of the processes that see each other's numbers: those of a machine, or of a container."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:  # only Linux has it
        space = ""
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:6]


def is_temporary(name: str) -> bool:
    """Return whether a name in a folder is one of those under which files are written first."""
    return _TEMPORARY.fullmatch(name) is not None


def clean_up(folder: Path, *, alone: bool = False) -> None:
    """Remove what processes that were killed left in a folder; what they were replacing gets its name back.

    Files of processes that run are left alone, and those of other machines for a day. `alone` says that no
    other process writes here, so that whatever is temporary is of a dead one.
    """
    if not folder.is_dir():
        return
    for item in list(folder.iterdir()):
        match = _TEMPORARY.fullmatch(item.name)
        if match is None or not (alone or _is_of_a_dead_process(match, item)):
            continue
        original = folder / match["name"]
        if match["kind"] == "old" and not original.exists():
            os.rename(item, original)
        else:
            remove(item)


@cache
def _clean_up_once(folder: Path) -> None:
    with suppress(OSError):  # what cannot be removed is in nobody's way
        clean_up(folder)


def _is_of_a_dead_process(match: re.Match[str], path: Path) -> bool:
    if match["place"] is None:  # as an earlier version named them: not surely of ours
        return False
    if match["place"] == _place() and sys.platform != "win32":
        return not _runs(int(match["process"]))
    try:
        return time.time() - path.stat().st_mtime > _DAY
    except OSError:  # gone already
        return False


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)  # a signal that nothing receives
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # of another user
        return True
    return True


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
        raise error(path, f"no such file{instead_of(str(path))}") from None
    except PermissionError:
        raise error(path, "may not be read; check its permissions") from None
    except MemoryError:
        raise error(path, "does not fit into memory") from None
    except (OSError, ValueError) as reason:  # a name too long or with a null, a loop of links, a failing disk
        raise error(path, f"cannot be read ({first_line(reason)})") from None


def exists(path: Path) -> bool:
    """Return whether there is something; False also for what can be no path, such as a name too long."""
    return os.path.exists(path)


def is_file(path: Path) -> bool:
    """Return whether there is a file; see `exists`."""
    return os.path.isfile(path)


def is_folder(path: Path) -> bool:
    """Return whether there is a folder; see `exists`."""
    return os.path.isdir(path)


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
    return text_of(read_bytes(path, error, most), path, error)


def text_of(content: bytes, path: Path | str, error: type[DataError] | type[WeightsError] = DataError) -> str:
    """Return the text of what a file holds, as `read_text`; `path` is for the message.

    Raises:
        DataError: the bytes are no such text. `error` is raised in its place.
    """
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
    return json_of(read_text(path, error), path, error)


def json_of(text: str, path: Path | str, error: type[DataError] | type[WeightsError] = DataError) -> object:
    """Return what the JSON of a file holds; `path` is for the message.

    Raises:
        DataError: it is not valid JSON. `error` is raised in its place.
    """
    try:
        content: object = json.loads(text)
    except RecursionError:
        raise error(path, "is not valid JSON (nested too deeply)") from None
    except ValueError as reason:  # also a number of more digits than are converted
        raise error(path, f"is not valid JSON ({first_line(reason)}); it may be cut off") from None
    return content
