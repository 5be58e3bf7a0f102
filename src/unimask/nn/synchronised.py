"""Synchronised batch norms: their statistics are those of the images of all processes.

So a training step does not depend on the number of processes.
"""

import torch
from jaxtyping import Float
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn

from unimask.processes import count_of_all, sum_of_all_with_gradient


class SynchronisedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """A batch norm over the images of all processes, followed by an activation, on any device.

    Every process must hold the same number of values per channel. The common mean is computed first and then
    the variance around it, which avoids cancellation. Parameters and buffers have the names of `BatchNorm2d`.

    `torch.nn.SyncBatchNorm` does the same, but does not run on the CPU.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self._parameters, self._buffers = norm._parameters, norm._buffers
        self.activation = norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity()

    def forward(
        self, features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the normalised, activated features; in evaluation mode the running statistics are used."""
        if self.training:
            mean, variance = self._common_statistics(features.float())
        else:
            assert self.running_mean is not None
            assert self.running_var is not None
            mean, variance = self.running_mean, self.running_var
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        scale, shift = (values[None, :, None, None] for values in (scale, shift))
        result: Tensor = self.activation(torch.addcmul(shift, features.float(), scale).to(features.dtype))
        return result

    def _common_statistics(self, features: Tensor) -> tuple[Tensor, Tensor]:
        count = features[:, 0].numel() * count_of_all()
        mean = sum_of_all_with_gradient(features.sum(dim=(0, 2, 3))) / count
        around = features - mean[None, :, None, None]
        variance = sum_of_all_with_gradient(around.square().sum(dim=(0, 2, 3))) / count
        self._follow(mean.detach(), variance.detach() * count / max(1, count - 1))
        return mean, variance

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)


def synchronise_norms(module: nn.Module, device: torch.device) -> None:
    """Replace every batch norm inside the module with a synchronised one, in place."""
    if device.type != "cpu":
        convert_sync_batchnorm(module)
        return
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, SynchronisedBatchNorm(child))
        else:
            synchronise_norms(child, device)
