"""Threads beside the one that runs the model: they read and write, and leave the cores to it."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import torch
from threadpoolctl import threadpool_limits

P = ParamSpec("P")
T = TypeVar("T")
_here = threading.local()


def compute_alone() -> None:
    """Let PyTorch compute in this thread alone, without further threads of OpenMP; others are not affected.

    OpenMP gives every thread that computes in parallel a team of its own, which lasts as long as the thread.
    As soon as the teams have more threads than the machine has cores, libgomp lets them sleep between two
    parallel sections instead of waiting awake, also those of the thread that runs the model, whose sections
    are many and short: it takes almost twice as long, even while all other threads are idle.

    Source: libgomp's manual, GOMP_SPINCOUNT ("more managed threads than available CPUs").
    """
    if not getattr(_here, "computes_alone", False):
        torch.get_num_threads()  # a thread takes what `torch.set_num_threads` said when it is first asked
        threadpool_limits(limits=1, user_api="openmp")
        _here.computes_alone = True


def side_threads(count: int) -> ThreadPoolExecutor:
    """Return an executor for what goes on while a model runs in the calling thread."""
    return ThreadPoolExecutor(count, initializer=compute_alone)


def aside(function: Callable[P, T]) -> Callable[P, T]:
    """Return the function for a thread of somebody else's, which computes alone from then on."""

    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        compute_alone()
        return function(*args, **kwargs)

    return run
