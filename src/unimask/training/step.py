"""One forward pass of a training step: what leaves the wrapped model is plain tensors."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unimask.structures import (
    Batch,
    ImageBatch,
    Losses,
    Prediction,
    Uniform,
    map_tensors,
)

Criterion = Callable[[Any, Any, Uniform], Losses]
"""Prediction and targets are of one kind, that of the model."""


def random_seed(*numbers: int) -> int:
    """A seed for PyTorch, well mixed from the numbers: a step's randomness depends on nothing but them."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def uniform_source(seed: int, device: torch.device) -> Uniform:
    """Draws uniform numbers on `device` from a generator of its own."""
    generator = torch.Generator(device=device).manual_seed(seed)

    def uniform(shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=generator, device=device, dtype=torch.float32)

    return uniform


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`; placements and ids are no tensors."""
    if device.type == "cpu":
        return batch
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


Forward = Callable[[nn.Module, ImageBatch], Prediction]
"""Calls the model on images."""


def as_predicted(model: nn.Module, images: ImageBatch) -> Prediction:
    """Call the model as a prediction does."""
    prediction: Prediction = model(images.pixels, images.valid)
    return prediction


class LossOfBatch:
    """Calls the model on a batch and measures the losses; keeps both, to say what went wrong."""

    def __init__(
        self, batch: Batch, criterion: Criterion, uniform: Uniform, forward: Forward = as_predicted
    ) -> None:
        self.batch = batch
        self.criterion = criterion
        self.uniform = uniform
        self.forward = forward
        self.seen: tuple[Prediction, Losses] | None = None

    def __call__(self, model: nn.Module) -> dict[str, Tensor]:
        """`total`, and each term of the final prediction, not weighted."""
        prediction = self.forward(model, self.batch.images)
        losses = self.criterion(prediction, self.batch.targets, self.uniform)
        self.seen = (prediction, losses)
        return {"total": losses.total, **{name: values[-1].detach() for name, values in losses.terms.items()}}

    def problem(self) -> str:
        """Which terms are not finite, of which pictures (the whole batch where predictions do not tell)."""
        assert self.seen is not None
        prediction, losses = self.seen
        terms = [name for name, values in losses.terms.items() if not bool(torch.isfinite(values).all())]
        names = [
            name
            for name, good in zip(self.batch.image_ids, prediction.finite().tolist(), strict=True)
            if not good
        ]
        return f"{', '.join(terms) or 'the total'} of {', '.join(names or self.batch.image_ids)}"


class LossModule(nn.Module):
    """A model whose forward pass hands it to a function.

    The engine wraps this module (gradients of several processes, mixed precision), so it sees neither the
    frozen dataclasses that go into the model and the criterion nor those that come out: it would take them
    apart.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, measure: Callable[[nn.Module], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What `measure` says about the model."""
        return measure(self.model)


class NormStatistics:
    """The running statistics of batch norms, to bring back after a step that must not count."""

    def __init__(self, model: nn.Module) -> None:
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self._buffers: list[Tensor] = [buffer for norm in norms for buffer in norm.buffers()]
        self._kept = [buffer.clone() for buffer in self._buffers]

    def keep(self) -> None:
        """Remembers them as they are now."""
        for kept, buffer in zip(self._kept, self._buffers, strict=True):
            kept.copy_(buffer)

    def bring_back(self) -> None:
        """Makes them what they were when they were kept."""
        for kept, buffer in zip(self._kept, self._buffers, strict=True):
            buffer.copy_(kept)


def count_targets(batches: Sequence[Batch]) -> int:
    """Segments to find in all the batches."""
    return sum(len(target) for batch in batches for target in batch.targets)
