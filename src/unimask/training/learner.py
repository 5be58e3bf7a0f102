"""A model in the training engine, with its average and its optimiser."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from torch import nn

from unimask.config.training import TrainingConfig
from unimask.nn.synchronised import synchronise_norms
from unimask.training.average import average_of
from unimask.training.engine import mesh_of
from unimask.training.optimizer import build_optimizer
from unimask.training.sharding import (
    fill_optimizer,
    learned,
    load_shards,
    save_in_parts,
    shard,
    take_apart,
    whole_model,
)
from unimask.training.step import LossModule, NormStatistics


class Learner:
    """A model, whole in each process or split over them, with its average and its optimiser.

    `build` makes another model of the same architecture. `averaged` is the state of the average, if it has
    one already.
    """

    def __init__(
        self,
        fabric: Fabric,
        model: nn.Module,
        config: TrainingConfig,
        build: Callable[[], nn.Module],
        averaged: dict[str, Any] | None,
    ) -> None:
        self.fabric, self.mesh, self._build = fabric, mesh_of(fabric), build
        self.average = average_of(model, config.ema_decay) if config.ema_decay > 0 else None
        if self.average is not None and averaged:
            self.average.load_state_dict(averaged)
        if fabric.world_size > 1:
            synchronise_norms(model, fabric.device)
        self.model = model.train()
        self.module = fabric.setup_module(LossModule(model))  # here the engine splits it
        if self.average is not None:
            self.average.to(fabric.device)
            if self.mesh is not None:
                shard(self.average.module, self.mesh)
        self.optimizer: Any = fabric.setup_optimizers(build_optimizer(model, config))  # wrapped by the engine
        self.statistics = NormStatistics(model)

    def backward_pass(self, *, last: bool) -> AbstractContextManager[None]:
        """Return the context of a pass: processes exchange gradients in the last one of a step.

        Where the model is split, they do so in each: a process has memory for its part of the sum only.
        """
        if self.mesh is not None:
            return nullcontext()
        return self.fabric.no_backward_sync(self.module, enabled=not last)

    def follow(self) -> None:
        """Update the average, after a step of the optimiser."""
        if self.average is not None:
            self.average.update_parameters(self.model)

    def forget(self) -> None:
        """Drop the gradients of a step that is skipped."""
        self.optimizer.zero_grad()
        if self.mesh is not None:
            take_apart(self.module)

    def weights(self, *, everywhere: bool = False) -> nn.Module:
        """Return the model whose weights are evaluated and saved: the average where there is one.

        It is whole in the first process, or `everywhere`. All processes must call this.
        """
        best: nn.Module = self.model if self.average is None else self.average.module
        if self.mesh is None:
            return best
        needed = everywhere or self.fabric.is_global_zero
        return whole_model(best, self._build, self.fabric.device, needed=needed)

    def state(self) -> dict[str, Any]:
        """Return the state for one file of the checkpoint; of a model that is split, without the tensors."""
        state: dict[str, Any] = {
            "precision": self.fabric.strategy.precision.state_dict(),
            "sharded": self.mesh is not None,
        }
        if self.mesh is None:
            state["model"] = self.model.state_dict()
            state["average"] = self.average.state_dict() if self.average is not None else {}
            state["optimizer"] = self.optimizer.state_dict()
        return state

    def save_in_parts(self, write: Callable[[Callable[[Path], None]], None]) -> None:
        """Call `write` in the first process, with a function that writes split tensors into a folder.

        All processes must call this. Where it fails, its error is raised in the first one, and the others
        exit.
        """
        tensors = {} if self.mesh is None else learned(self.model, self.average, self.optimizer.optimizer)
        save_in_parts(write, tensors, first=self.fabric.is_global_zero)

    def restore(self, state: dict[str, Any], parts: Path) -> None:
        """Load the state of a checkpoint; `parts` is the folder of the tensors where they were split.

        Whole weights are in the model already, since they are needed before it is split.
        """
        if state.get("sharded"):
            load_shards(parts, self.model, self.average, self.optimizer.optimizer)
        else:
            fill_optimizer(self.optimizer, state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
