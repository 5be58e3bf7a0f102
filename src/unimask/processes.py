"""The processes that work together: which one this is, and how they exchange values (torch.distributed)."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from unimask.errors import ConfigError

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # how long processes wait for the slowest one; one that dies is noticed at once


def _alone() -> bool:
    return not (distributed.is_available() and distributed.is_initialized())


def sum_of_all(values: Tensor) -> Tensor:
    """Return the sum over all processes, in each process."""
    if _alone():
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total


def gather(thing: T) -> list[T]:
    """Return the things of all processes, in the order of their ranks, in each process."""
    if _alone():
        return [thing]
    everyone: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everyone, thing)
    return everyone


def first_says(thing: T) -> T:
    """Return what the first process has, in each process."""
    return gather(thing)[0]


def first_alone(action: Callable[[], object]) -> None:
    """Run the action in the first process, while the others wait.

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


@dataclass(frozen=True, kw_only=True)
class Team:
    """This process among those that share the work."""

    rank: int
    size: int
    local_rank: int  # on this machine
    meets: bool  # whether the launcher says where the processes can meet

    @property
    def speaks(self) -> bool:
        """Return whether this process shows what was found: the first one, or each where they cannot meet."""
        return self.rank == 0 or not self.meets

    def share(self, things: Sequence[T]) -> list[T]:
        """Return this process's share: every n-th of the things, where n is the number of processes.

        Each process sees all of them, in the same order, so the shares have neither gaps nor doubles.
        """
        return list(things[self.rank :: self.size])

    def device(self, name: str) -> str:
        """Return the device to use: each process of a machine gets its own of several CUDA devices."""
        count = torch.cuda.device_count() if self.size > 1 and name in ("auto", "cuda") else 0
        return f"cuda:{self.local_rank % count}" if count else name


def find_team() -> Team:
    """Return the team in the environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR), else one alone.

    Raises:
        ConfigError: RANK and WORLD_SIZE are no numbers that fit each other.
    """
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        raise ConfigError("RANK", f"is {rank!r} of {size!r} processes; expected 0 to WORLD_SIZE - 1")
    local = os.environ.get("LOCAL_RANK", rank)
    return Team(
        rank=int(rank),
        size=int(size),
        local_rank=int(local) if local.isdecimal() else 0,
        meets=int(size) > 1 and {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys(),
    )


@contextmanager
def meeting(team: Team) -> Iterator[None]:
    """Join the processes of a team inside the block, so that `gather` reaches all of them."""
    if not team.meets:
        yield
        return
    distributed.init_process_group("gloo", rank=team.rank, world_size=team.size, timeout=PATIENCE)
    try:
        yield
    finally:
        distributed.destroy_process_group()
