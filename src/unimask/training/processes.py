"""What the processes of a training tell each other; with a single process nothing is said."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, distributed

T = TypeVar("T")


def _alone() -> bool:
    return not (distributed.is_available() and distributed.is_initialized())


def sum_of_all(values: Tensor) -> Tensor:
    """The sum over all processes, the same in each."""
    if _alone():
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total


def gather(thing: T) -> list[T]:
    """The things of all processes, in their order, in each."""
    if _alone():
        return [thing]
    everyone: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everyone, thing)
    return everyone


def first_says(thing: T) -> T:
    """What the first process has, in each."""
    return gather(thing)[0]


def first_alone(action: Callable[[], object]) -> None:
    """Runs the action in the first process, while the others wait.

    Where it fails, its error is raised there and the others exit: one message is enough.
    """
    error: Exception | None = None
    if _alone() or distributed.get_rank() == 0:
        try:
            action()
        except Exception as caught:
            error = caught
    failed = first_says(error is not None)
    if error is not None:
        raise error
    if failed:
        sys.exit(2)
