"""A cluster of Ray, or one that is started on this machine: connecting, how many actors fit, errors."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from unimask.errors import ConfigError, UnimaskError, first_line, needs_extra

_CPUS = 4  # of an actor without a GPU, unless a number of actors is given


@dataclass(frozen=True, kw_only=True)
class ActorPool:
    """How many actors there are, and what each of them has."""

    actors: int
    cpus: float
    gpus: int

    @property
    def threads(self) -> int:
        """The threads that an actor computes with."""
        return max(1, int(self.cpus))

    @classmethod
    def of(cls, ray: Any, device: str, actors: int) -> "ActorPool":
        """Return a pool that fills the cluster, or one of `actors` actors that share its CPUs."""
        if actors < 0:
            raise ConfigError("actors", f"must be 1 or more; got {actors}")
        machines = [one["Resources"] for one in ray.nodes() if one["Alive"]]
        cpus = [one["CPU"] for one in machines if one.get("CPU")] or [1.0]
        gpus = int(sum(one.get("GPU", 0) for one in machines)) if device in ("auto", "cuda") else 0
        count = actors or gpus or max(1, int(sum(cpus)) // _CPUS)
        share = min(sum(cpus) / count, *cpus) if len(cpus) > 1 else cpus[0] / count
        return cls(actors=count, cpus=float(int(share)) if share >= 1 else share, gpus=1 if gpus else 0)


def import_ray() -> Any:
    """Return Ray with its data sets.

    Raises:
        MissingPackageError: Ray is not installed.
    """
    with needs_extra("ray", "--engine ray"):
        import ray
        import ray.data
    return ray


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Yield Ray, connected to a cluster, or started on this machine and ended after the block.

    Raises:
        ConfigError: no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports to its makers only where asked to
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as its later versions do
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # errors arrive as exceptions
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    place = address or os.environ.get("RAY_ADDRESS") or "local"
    started = {"include_dashboard": False} if place == "local" else {}
    try:
        ray.init(place, log_to_driver=False, logging_level="ERROR", **started)
    except Exception as error:  # of many kinds
        reason = f"no cluster of Ray answers at {place} ({first_line(error)}); `ray start --head` starts one"
        if "RAY_AUTH_MODE" not in os.environ:
            reason += ", and one that wants a token (Ray 2.59 and later) also wants RAY_AUTH_MODE=token here"
        if place == "local":
            reason = f"Ray does not start on this machine ({first_line(error)}); is it too busy?"
        raise ConfigError("address", reason) from None
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Let a logger write nothing: errors of Ray arrive as exceptions or as images that are lost."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def as_our_error(error: BaseException) -> Exception:
    """Return the error of this library that caused one of Ray, else a sentence about Ray's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UnimaskError):
            return cause
        inner = getattr(cause, "cause", None)
        cause = inner if isinstance(inner, BaseException) else cause.__cause__
    return ConfigError("engine", f"Ray gave up ({first_line(error)}); --resume goes on")
