"""Files of object stores by their addresses (`s3://bucket/photos/a.png`), through fsspec.

What is written appears complete: a store shows an object once all of it has arrived.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any, TypeVar
from urllib.parse import unquote

from unimask.errors import DataError, MissingPackageError, first_line
from unimask.threads import side_threads

CONNECTIONS = 16
"""How many objects are on their way at once."""

Given = TypeVar("Given")
Made = TypeVar("Made")

_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
_COMMITS = Lock()
"""Held while something is written to hf://, where each write is a commit and none may come during another."""
_NO_CREDENTIALS = "finds no credentials; set them as the client of the store documents (for s3:// in AWS_...)"


@dataclass(frozen=True)
class Url:
    """The address of a file or folder in an object store."""

    text: str

    def __str__(self) -> str:
        """Return the address."""
        return self.text

    @property
    def name(self) -> str:
        """Return the last part of the address."""
        return PurePosixPath(_SCHEME.sub(r"\g<rest>", self.text)).name

    @property
    def stem(self) -> str:
        """Return the name without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """Return the suffix of the name, with its point."""
        return PurePosixPath(self.name).suffix

    @property
    def folder_name(self) -> str:
        """Return the last part but one."""
        return PurePosixPath(_SCHEME.sub(r"\g<rest>", self.text)).parent.name

    def inside(self, name: str) -> "Url":
        """Return the address of what has this name in the folder."""
        return Url(f"{self.text.rstrip('/')}/{name}")


Location = Path | Url
"""Where a file or a folder is."""


def location(place: str | Path | Url) -> Location:
    """Return a path, or the address of something in a store; `file://` means a path."""
    match = None if isinstance(place, Path | Url) else _SCHEME.fullmatch(place)
    if match is None:
        return place if isinstance(place, Path | Url) else Path(place)
    if match["scheme"].lower() == "file":
        return Path(unquote(match["rest"]))
    assert isinstance(place, str)
    return Url(place)


@cache
def _store(scheme: str, process: int) -> Any:
    """Return the file system of a scheme for a process; what others write is seen: listings are not kept.

    A process that was forked needs one of its own, with connections of its own.
    """
    import fsspec

    return fsspec.filesystem(scheme, use_listings_cache=False)


@contextmanager
def _store_of(url: Url) -> Iterator[tuple[Any, str]]:
    """Yield the file system of an address, and its path there; its many errors become ours.

    Raises:
        DataError: there is no such store or object, it may not be had, or the store does not answer.
        MissingPackageError: the client of the store is not installed.
    """
    scheme = url.text.partition("://")[0].lower()
    try:
        store = _store(scheme, os.getpid())
    except ValueError:
        reason = (
            f"there is no store {scheme}://; there are s3://, gs://, hf://, memory:// and those of fsspec"
        )
        raise DataError(url.text, reason) from None
    except ImportError as error:
        package = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}.get(scheme)
        if package is None:
            raise DataError(url.text, f"its client is not installed ({first_line(error)})") from None
        raise MissingPackageError(url.text, package, "remote") from None
    try:
        yield store, store._strip_protocol(url.text)
    except (DataError, MissingPackageError):
        raise
    except FileNotFoundError:
        raise DataError(url.text, "no such file, folder or bucket") from None
    except PermissionError as error:
        raise DataError(
            url.text, f"may not be read or written with your credentials ({first_line(error)})"
        ) from None
    except Exception as error:  # each client has its own
        if "credential" in f"{type(error).__name__} {error}".lower():
            raise DataError(url.text, _NO_CREDENTIALS) from None
        what = f"{type(error).__name__}: {first_line(error)}"
        raise DataError(url.text, f"the store does not answer as it should ({what})") from None


def _one_at_a_time(url: Url) -> AbstractContextManager[object]:
    """Return what a write to this address has to hold meanwhile."""
    return _COMMITS if url.text.lower().startswith("hf://") else nullcontext()


def files_in(url: Url) -> list[Url] | None:
    """Return the files directly in a folder, sorted by name; None where the address is no folder.

    Raises:
        DataError: the store cannot be asked.
    """
    with _store_of(url) as (store, path):
        store.invalidate_cache(path)  # hf:// keeps listings all the same
        try:
            found = store.ls(path, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return None
        files = [one for one in found if one["type"] == "file"]
        if [one["name"].rstrip("/") for one in files] == [path.rstrip("/")]:
            return None
        names = sorted(PurePosixPath(one["name"]).name for one in files)
        return [url.inside(name) for name in names]


def size_of(url: Url) -> int | None:
    """Return how many bytes a file has; None where there is none.

    Raises:
        DataError: the store cannot be asked.
    """
    with _store_of(url) as (store, path):
        try:
            about = store.info(path)
        except FileNotFoundError:
            return None
        return int(about["size"]) if about["type"] == "file" else None


def read_part(url: Url, start: int, end: int) -> bytes:
    """Return the bytes of a file from `start` to before `end`.

    Raises:
        DataError: there is no such file, or it cannot be had.
    """
    with _store_of(url) as (store, path):
        content: bytes = store.cat_file(path, start=start, end=end)
        return content


def read_whole(url: Url) -> bytes:
    """Return the bytes of a file.

    Raises:
        DataError: there is no such file, or it cannot be had.
    """
    with _store_of(url) as (store, path):
        content: bytes = store.cat_file(path)
        return content


def fetch(url: Url, path: Path) -> None:
    """Copy a file of a store to a path.

    Raises:
        DataError: there is no such file, or it cannot be had.
    """
    with _store_of(url) as (store, place):
        store.get_file(place, str(path))


def put(path: Path, url: Url) -> None:
    """Copy a file into a store, where it appears complete.

    Raises:
        DataError: it may not be written there.
    """
    with _store_of(url) as (store, place), _one_at_a_time(url):
        store.put_file(str(path), place)


def discard(urls: Sequence[Url]) -> None:
    """Remove files from a store.

    Raises:
        DataError: they may not be removed.
    """

    def remove(url: Url) -> None:
        with _store_of(url) as (store, place), _one_at_a_time(url):
            store.rm_file(place)

    at_once(remove, urls)


def at_once(make: Callable[[Given], Made], given: Sequence[Given]) -> list[Made]:
    """Return what is made of each thing, of several at once: for what waits for a store."""
    with side_threads(CONNECTIONS) as pool:
        return list(pool.map(make, given))
