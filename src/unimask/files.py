"""Files and folders that appear complete: written under a temporary name beside their own, then renamed."""

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


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


def remove(path: Path) -> None:
    """Remove a file or a folder with all it holds; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
