"""The limits of a server, and how it refuses requests."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from unimask.errors import shown

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that a client can ask for."""

    bytes: int = 32 * 2**20  # of a request
    pixels: int = 16_000_000  # of an image; known before it is decoded
    views: int = 1000  # tiles of an image, of models that see tiles
    waiting: int = 32  # requests that are being received, waiting or answered; more get 503
    seconds: float = 60.0  # until a request has come in, and then again until its answer must be there
    head_seconds: float = 10.0  # until the head of a request has come in; a silent connection is closed then
    connections: int = 64  # that one client holds at a time
    kept_bytes: int = 2**30  # of predictions kept for the page; the longest unused are dropped


class Refusal(Exception):
    """A request that is not answered: the HTTP status and a sentence that says why and what to do.

    What the sentence echoes of the request is escaped and cut (`errors.shown`).
    """

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] = NO_HEADERS) -> None:
        self.sentence = shown(sentence)
        super().__init__(self.sentence)
        self.status = status
        self.headers = headers


def too_late(limits: Limits) -> Refusal:
    """Return the refusal of a request that took too long."""
    return Refusal(
        504, f"This took longer than {limits.seconds:g} seconds. Send a smaller image, or try again later."
    )
