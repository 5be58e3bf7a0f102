"""The images of the page: in bounded memory, under names that cannot be guessed."""

import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass

from unimask.serve.cached import CachedPrediction
from unimask.serve.limits import Refusal


@dataclass(frozen=True, kw_only=True, eq=False)
class Kept:
    """An image that was uploaded, and the model for it."""

    model: str
    seen: CachedPrediction


class Store:
    """Keeps images under names that cannot be guessed; the longest unused ones are dropped for new ones."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._kept: OrderedDict[str, tuple[Kept, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """The memory of all that is kept."""
        return self._bytes

    def put(self, kept: Kept) -> str:
        """Keep an image; return the name under which `get` finds it, at least until the next one is put."""
        name, size = secrets.token_urlsafe(18), kept.seen.bytes
        with self._lock:
            self._kept[name] = (kept, size)
            self._bytes += size
            while self._bytes > self._most_bytes and len(self._kept) > 1:
                _, (_, freed) = self._kept.popitem(last=False)
                self._bytes -= freed
        return name

    def get(self, name: str) -> Kept:
        """Return what was put under the name.

        Raises:
            Refusal: nothing was, or it has been dropped.
        """
        with self._lock:
            if name not in self._kept:
                raise Refusal(
                    404, "This image is no longer here, others took its place. Choose it once more."
                )
            self._kept.move_to_end(name)
            return self._kept[name][0]
