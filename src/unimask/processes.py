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


class _SumOfAll(torch.autograd.Function):
    """The sum over all processes: each of them gets the gradients of all."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        return sum_of_all(values.contiguous())

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return sum_of_all(gradients[0].contiguous())


def sum_of_all_with_gradient(values: Tensor) -> Tensor:
    """Return the sum over all processes, in each process; gradients flow back into all of them."""
    if _alone():
        return values
    total: Tensor = _SumOfAll.apply(values)
    return total


def count_of_all() -> int:
    """Return how many processes work together."""
    return 1 if _alone() else distributed.get_world_size()


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


def launched(devices: int, nodes: int) -> tuple[int, int]:
    """Return how many processes a machine has, and how many machines there are: as asked, or as started.

    Where nothing is asked (1 and 1) and torchrun or SLURM's srun has started several processes, there are as
    many as those.
    """
    if (devices, nodes) != (1, 1):
        return devices, nodes
    about = os.environ
    if "TORCHELASTIC_RUN_ID" in about:
        local, total = about.get("LOCAL_WORLD_SIZE", ""), about.get("WORLD_SIZE", "")
        if local.isdecimal() and total.isdecimal() and int(local):
            return int(local), int(total) // int(local)
    elif "SLURM_PROCID" in about and about.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        local, machines = about.get("SLURM_NTASKS_PER_NODE", ""), about.get("SLURM_NNODES", "1")
        if local.isdecimal() and machines.isdecimal():
            return int(local), int(machines)
    return devices, nodes


_LOST = (  # how gloo and NCCL say that a process at the other end has gone
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "socket closed",
    "recvvalue failed",
    "read error",
    "application timeout caused pair closure",
    "remote process exited",
    "nccl communicator was aborted",
    "nccl error",
    "timed out waiting",
)


def is_lost_connection(error: RuntimeError) -> bool:
    """Return whether the error says that another process cannot be reached any more."""
    if isinstance(error, distributed.DistBackendError | distributed.DistNetworkError):
        return True
    return not _alone() and any(words in str(error).lower() for words in _LOST)


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
