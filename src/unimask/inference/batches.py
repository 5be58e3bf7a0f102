"""Batches of items of one size, and work done ahead, in bounded memory."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from unimask.threads import side_threads

LOOKAHEAD = 4
"""So many batches of later images may be formed before an incomplete batch is run."""

Progress = Callable[[int, int], object]
"""Called after each image with the number of images done and of all images."""

Item = TypeVar("Item")
Given = TypeVar("Given")
Made = TypeVar("Made")


def batches(items: Iterable[tuple[int, Hashable, Item]], size: int) -> Iterator[list[Item]]:
    """Group items of one key into batches of at most `size`; each is yielded as soon as it is full.

    Items are (index of the image, key, item), by rising index; items of one key keep their order. An item
    waits for at most `LOOKAHEAD * size` later images.
    """
    waiting: dict[Hashable, list[tuple[int, Item]]] = {}  # the group that has waited longest is the first
    for image, key, item in items:
        while waiting and image - next(iter(waiting.values()))[0][0] > LOOKAHEAD * size:
            yield [one for _, one in waiting.pop(next(iter(waiting)))]
        group = waiting.setdefault(key, [])
        group.append((image, item))
        if len(group) >= size:
            yield [one for _, one in waiting.pop(key)]
    for group in waiting.values():
        yield [one for _, one in group]


def ahead(
    make: Callable[[Given], Made], given: Iterable[Given], count: int, threads: int = 1
) -> Iterator[tuple[Given, "Future[Made]"]]:
    """Yield each item with the future of `make(item)`; threads work on the next `count` items."""
    waiting: deque[tuple[Given, Future[Made]]] = deque()
    with side_threads(threads) as pool:
        for one in given:
            waiting.append((one, pool.submit(make, one)))
            if len(waiting) > count:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
