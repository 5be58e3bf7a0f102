"""The training engine (lightning-fabric): devices, processes, how they share a model, and what ends them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from unimask.config.training import TrainingConfig
from unimask.errors import ConfigError
from unimask.processes import is_lost_connection, launched
from unimask.training.checks import check_device, check_settings
from unimask.training.result import LostProcessError
from unimask.training.sharding import shard

_PATIENCE = timedelta(hours=1)  # how long processes wait for the slowest one


@dataclass(frozen=True, kw_only=True)
class Machines:
    """The machines that a training runs on, as in `run.train`."""

    device: str
    devices: int
    nodes: int


def start_engine(config: TrainingConfig, machines: Machines) -> Fabric:
    """Return the engine, with its processes started, each of which returns from here.

    Raises:
        ConfigError: the settings or the machines are not available, or a launcher started other processes.
    """
    devices, nodes = launched(machines.devices, machines.nodes)
    processes = devices * nodes
    check_settings(config, processes)
    accelerator, selected = check_device(machines.device, devices, config.precision)
    try:
        fabric = Fabric(
            accelerator=accelerator,
            devices=selected,
            num_nodes=nodes,
            strategy=_strategy(config, processes),
            precision=config.precision,
        )
    except ValueError as error:  # the launcher's numbers are others
        raise ConfigError("devices", f"{error}") from None
    fabric.launch()
    return fabric


def _strategy(config: TrainingConfig, processes: int) -> Strategy | str:
    if processes == 1:
        return "auto"
    if config.strategy == "ddp":
        # else gradients are put together in another order from the second step on, also after resuming, and
        # the sums of more than two processes are rounded in another way
        return DDPStrategy(timeout=_PATIENCE, find_unused_parameters=True)
    return ModelParallelStrategy(
        _shard, data_parallel_size=processes, tensor_parallel_size=1, timeout=_PATIENCE
    )


def _shard(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    shard(module, mesh["data_parallel"])
    return module


def mesh_of(fabric: Fabric) -> DeviceMesh | None:
    """Return the processes over which the engine splits a model; None where each has all of it."""
    strategy = fabric.strategy
    return strategy.device_mesh["data_parallel"] if isinstance(strategy, ModelParallelStrategy) else None


@contextmanager
def lost_processes_said(folder: Path, saved: Callable[[], int]) -> Iterator[None]:
    """Report in a sentence that another process has ended; `saved` gives the step of the newest checkpoint.

    Raises:
        LostProcessError: it has.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise LostProcessError(
            f"{folder}: another process of this training has ended (what it says is the reason; where it "
            "says nothing, it was killed, or its machine is gone); the same command with --resume goes on "
            f"after step {saved()}"
        ) from None
