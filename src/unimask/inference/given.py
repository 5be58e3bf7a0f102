"""Images as users give them: one, several, or an endless stream; those of one call are read alike."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from unimask.data.decisions import decide_for_run
from unimask.data.pixels import EIGHT_BITS, Read, depth_of
from unimask.data.read import Channels, image_name, is_one_image, read
from unimask.data.reading import Reading

_log = logging.getLogger(__name__)
Tell = Callable[[str, str], object]
"""Called with the name of an image and a sentence about it."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """Images, and in which form results go back: alone, as a list, or one by one as they are asked for."""

    form: Literal["one", "list", "stream"]
    images: Iterable[object]
    known: Sequence[object]  # before the first one is read; none of a stream


def as_given(image: object) -> Given:
    """Return the argument of a user as a sequence of images.

    An iterable that is no image is a stream. Anything else counts as one image, and is refused
    where it is read.
    """
    if isinstance(image, list | tuple):
        return Given(form="list", images=image, known=image)
    if not is_one_image(image) and isinstance(image, Iterable):
        return Given(form="stream", images=image, known=())
    return Given(form="one", images=(image,), known=(image,))


@dataclass
class Speaker:
    """Logs each sentence once, as a warning, with the first image that it is about."""

    said: set[str] = field(default_factory=set)

    def __call__(self, name: str, sentence: str) -> None:
        """Log the sentence if it is new."""
        if sentence not in self.said:
            self.said.add(sentence)
            _log.warning("%s: %s", name, sentence)


def read_given(given: Given, reading: Reading, channels: Channels, tell: Tell) -> Iterator[tuple[str, Read]]:
    """Read images one after the other as they are needed, and yield each with its name.

    Their depth is decided once: for images that are known by all of them, else by the first one that has more
    than 8 bits.

    Raises:
        DataError: something cannot be read as an image.
    """
    reading, said = decide_for_run(given.known, reading)
    for sentence in said:
        tell(f"{len(given.known)} images", sentence)
    for number, image in enumerate(given.images):
        name = image_name(image, number)
        found = read(image, reading, channels=channels)
        for sentence in found.notes:
            tell(name, sentence)
        if reading.depth == "auto" and found.span != EIGHT_BITS:
            reading = replace(reading, depth=depth_of(found.span[1], 16, "auto"))
        yield name, found
