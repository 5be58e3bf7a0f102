"""Which files of a folder are results that this library wrote: a line for each result in `.unimask.jsonl`.

A line names the files of a result with their sizes and digests, and what it was made with. It is written
before the files get their names, so that a kill in between leaves no unknown file. A file that somebody
changes is no longer a result: its digest differs. Several processes may add lines to one ledger.

In an object store, where nothing can be added to a file, each part of the ledger is a file in `.unimask`.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from unimask.errors import DataError
from unimask.files import complete_files, json_text, to_disk
from unimask.remote import Location, Url, at_once, files_in, read_whole, size_of

LEDGER_NAME = ".unimask.jsonl"
REMOTE_NAME = ".unimask"
"""The folder of the parts of a ledger in an object store."""
_PART = 1 << 20  # bytes that are read at a time


def digest_of(path: Path) -> str:
    """Return a digest of the content of a file."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while part := file.read(_PART):
            digest.update(part)
    return digest.hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def note(folder: Path, files: Mapping[str, Path], made_with: str) -> None:
    """Write a line for a result whose files, complete under other paths, are about to get names in a folder.

    Raises:
        OSError: the ledger cannot be written.
    """
    about = {name: [path.stat().st_size, digest_of(path)] for name, path in files.items()}
    line = json_text({"files": about, "made_with": made_with}, None, ascii_only=True)
    path = folder / LEDGER_NAME
    ledger = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        _lock(ledger)
        # in one piece, beside those of other processes; and after what a power cut may have cut off
        os.write(ledger, f"\n{line}\n".encode("ascii"))
    finally:
        os.close(ledger)
    to_disk(path)


def _lock(file: int) -> None:
    """Wait until no other process writes into the file, on other machines too; closing it ends that."""
    if sys.platform != "win32":
        import fcntl

        with suppress(OSError):  # some file systems of networks have no locks
            fcntl.lockf(file, fcntl.LOCK_EX)


class Ledger:
    """The ledger of a folder; lines that a kill cut off are skipped."""

    def __init__(self, folder: Location) -> None:
        self.folder = folder
        self._read = 0  # bytes
        self._parts: set[Url] = set()  # that have been read, of a store
        self._files: dict[str, set[tuple[int, str]]] = {}
        self._made: dict[str, dict[str, int]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read what has been added since."""
        if isinstance(self.folder, Url):
            parts = [
                part for part in files_in(self.folder.inside(REMOTE_NAME)) or () if part not in self._parts
            ]
            for content in at_once(read_whole, parts):
                for line in content.splitlines():
                    self._add(line)
            self._parts.update(parts)
            return
        path = self.folder / LEDGER_NAME
        size = path.stat().st_size if path.is_file() else 0
        if size < self._read:  # it was replaced
            self._read, self._files, self._made = 0, {}, {}
        if size > self._read:
            with path.open("rb") as file:
                file.seek(self._read)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._read += len(whole)
            for line in whole.splitlines():
                self._add(line)

    def _size(self, name: str) -> int | None:
        """Return how many bytes a file of the folder has; None where there is none."""
        if isinstance(self.folder, Url):
            return size_of(self.folder.inside(name))
        path = self.folder / name
        return path.stat().st_size if path.is_file() else None

    def _add(self, line: bytes) -> None:
        try:
            said = json.loads(line)
            files = {str(name): (int(size), str(digest)) for name, (size, digest) in said["files"].items()}
            made_with = str(said["made_with"])
        except (ValueError, TypeError, KeyError, AttributeError):
            return
        for name, known in files.items():
            self._files.setdefault(name, set()).add(known)
        if made_with:
            self._made[made_with] = {name: size for name, (size, _) in files.items()}

    def knows(self, name: str) -> bool:
        """Return whether a file of the folder is as long as one of this name that was written here."""
        return name in self._files and self._size(name) in {size for size, _ in self._files[name]}

    def owns(self, name: str) -> bool:
        """Return whether a file of the folder is, to the last byte, one that was written here."""
        if not self.knows(name):
            return False
        if isinstance(self.folder, Url):
            found = _digest(read_whole(self.folder.inside(name)))
        else:
            found = digest_of(self.folder / name)
        return any(digest == found for _, digest in self._files[name])

    def is_foreign(self, name: str) -> bool:
        """Return whether there is a file of this name in the folder that was not written here."""
        return self._size(name) is not None and not self.owns(name)

    def is_complete(self, made_with: str) -> bool:
        """Return whether a result that was made with this is here, with all of its files."""
        files = self._made.get(made_with, {})
        return bool(files) and all(self._size(name) == size for name, size in files.items())


@cache
def _ledger_at(folder: Location) -> Ledger:
    return Ledger(folder)


def ledger_of(folder: Location) -> Ledger:
    """Return the current ledger of a folder; it is read once, and then only the lines that are added."""
    ledger = _ledger_at(folder if isinstance(folder, Url) else folder.absolute())
    ledger.refresh()
    return ledger


@contextmanager
def result_files(
    folder: Path, names: Sequence[str], *, overwrite: bool = False, made_with: str | Callable[[], str] = ""
) -> Iterator[tuple[Path, ...]]:
    """Yield a temporary path for each file of a result, as `files.complete_files`, and note them.

    What they were made with may be a function that says so once they are written. A file that is there is
    replaced where it is a result of an earlier time, and any other one where `overwrite` is on.

    Raises:
        DataError: it is not a result, or somebody has changed it since.
    """
    there = [] if overwrite else [name for name in names if os.path.lexists(folder / name)]
    for name in there:
        if not ledger_of(folder).owns(name):
            raise foreign_files(folder, [name])
    with complete_files([folder / name for name in names]) as temporary:
        yield temporary
        said = made_with if isinstance(made_with, str) else made_with()
        note(folder, dict(zip(names, temporary, strict=True)), said)


def foreign_files(folder: Location, names: Sequence[str]) -> DataError:
    """Return the error of files that are not replaced."""
    others = f" (and {len(names) - 1} others)" if len(names) > 1 else ""
    return DataError(
        str(folder.inside(names[0])) if isinstance(folder, Url) else folder / names[0],
        f"is there{others} and was not written by unimask, or was changed since; name another folder with "
        "--output, or replace it with --overwrite",
    )
