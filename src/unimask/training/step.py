"""What every training step needs: seeds, batches on the device, the module that the engine wraps."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from unimask.structures import ImageBatch, Losses, Prediction, Uniform, map_tensors

BatchType = TypeVar("BatchType")


def random_seed(*numbers: int) -> int:
    """Return a seed for PyTorch, well mixed from the numbers alone, for the randomness of a step."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def uniform_source(seed: int, device: torch.device) -> Uniform:
    """Return a function that draws uniform numbers on `device` from a generator of its own."""
    generator = torch.Generator(device=device).manual_seed(seed)

    def uniform(shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=generator, device=device, dtype=torch.float32)

    return uniform


def to_device(batch: BatchType, device: torch.device) -> BatchType:
    """Return the batch with its tensors on `device`."""
    if device.type == "cpu":
        return batch
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


Forward = Callable[[nn.Module, ImageBatch], Prediction]
"""Calls the model on images."""


def as_predicted(model: nn.Module, images: ImageBatch) -> Prediction:
    """Call the model as a prediction does."""
    prediction: Prediction = model(images.pixels, images.valid)
    return prediction


def to_report(losses: Losses) -> dict[str, Tensor]:
    """Return `total`, which is differentiated, and each term of the final prediction, not weighted."""
    return {"total": losses.total, **{name: values[-1].detach() for name, values in losses.terms.items()}}


class LossModule(nn.Module):
    """A model whose forward pass hands it to a function.

    The engine wraps this module (gradients of several processes, mixed precision), so it handles neither the
    frozen dataclasses that go into the model and the criterion nor those that come out: it would take them
    apart.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, measure: Callable[[nn.Module], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return what `measure` returns for the model."""
        return measure(self.model)


class NormStatistics:
    """The running statistics of batch norms, to be restored after a step that is skipped."""

    def __init__(self, model: nn.Module) -> None:
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self._buffers: list[Tensor] = [buffer for norm in norms for buffer in norm.buffers()]
        self._kept = [buffer.clone() for buffer in self._buffers]

    def keep(self) -> None:
        """Copy the statistics as they are now."""
        for kept, buffer in zip(self._kept, self._buffers, strict=True):
            kept.copy_(buffer)

    def bring_back(self) -> None:
        """Restore the statistics of the last `keep`."""
        for kept, buffer in zip(self._kept, self._buffers, strict=True):
            buffer.copy_(kept)
