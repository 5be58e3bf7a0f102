"""A file that one process holds at a time, until it lets go of it or ends, however it ends."""

import errno
import os
import platform
from contextlib import suppress
from pathlib import Path

from unimask.errors import DataError

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

_TAKEN = (errno.EACCES, errno.EAGAIN)


def hold(path: Path) -> int | None:
    """Make a file and hold it; return what `let_go` takes, None where files cannot be held.

    The lock is of this process alone: processes that it forks do not keep it.

    Raises:
        DataError: another process holds it; the message names its folder and the process.
        OSError: the file cannot be made.
    """
    while fcntl is not None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 200).decode("utf-8", "replace")
            os.close(descriptor)
            if error.errno not in _TAKEN:  # a file system without locks
                return None
            reason = f"is in use by another training ({holder or 'a process'}); wait for it, or stop it first"
            raise DataError(path.parent, reason) from None
        if os.fstat(descriptor).st_nlink:  # else its last holder has just removed it
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
            return descriptor
        os.close(descriptor)
    return None


def let_go(path: Path, held: int | None) -> None:
    """Remove a file that `hold` made, and let go of it."""
    if held is not None:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(held)
