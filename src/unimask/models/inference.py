"""A trained model, made ready to predict: the same numbers to rounding, in fewer steps."""

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn

from unimask.models.backbones import FrozenBatchNorm

TOLERANCE = 1e-4  # of the largest value: what rounding may change, and no mistake stays below


def prepare_for_inference(model: nn.Module) -> nn.Module:
    """A copy of the model in eval mode whose batch norms are part of the convolutions before them.

    Which norm belongs to which convolution is guessed from the order in which a module lists them, and then
    tried on a picture of noise: a backbone whose maps change stays as it is. Convolutions get the order
    channels_last. The copy is for prediction only: it has other parameters than the model.
    """
    ready = copy.deepcopy(model).eval()
    backbone = ready.get_submodule("backbone")
    folded = copy.deepcopy(backbone)
    _fold(folded)
    if _same_maps(backbone, folded):
        _fold(backbone)
    result: nn.Module = ready.requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return result


def _fold(module: nn.Module) -> None:
    for (_, child), (name, second) in pairwise(list(module.named_children())):
        first = child[-1] if isinstance(child, nn.Sequential) and len(child) else child
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d | FrozenBatchNorm):
            if _width(second) != first.out_channels:
                continue
            _fold_pair(first, second)
            activation = getattr(second, "activation", None) or getattr(second, "act", None)
            setattr(module, name, activation or nn.Identity())
    for child in module.children():
        _fold(child)


def _width(norm: nn.BatchNorm2d | FrozenBatchNorm) -> int:
    statistics = norm.running_mean
    return 0 if statistics is None else len(statistics)


def _fold_pair(convolution: nn.Conv2d, norm: nn.BatchNorm2d | FrozenBatchNorm) -> None:
    """Both are linear: the norm scales the convolution's weights and shifts its bias."""
    mean, variance = norm.running_mean, norm.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    scale = norm.weight.double() * (variance.double() + norm.eps).rsqrt()
    before = 0 if convolution.bias is None else convolution.bias.double()
    bias = norm.bias.double() + (before - mean.double()) * scale
    weight = convolution.weight.double() * scale[:, None, None, None]
    convolution.weight = nn.Parameter(weight.to(convolution.weight.dtype))
    convolution.bias = nn.Parameter(bias.to(convolution.weight.dtype))


@torch.no_grad()
def _same_maps(backbone: nn.Module, folded: nn.Module) -> bool:
    """Whether both make the same maps of a picture of noise."""
    parameter = next(backbone.parameters())
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, 64, 96, generator=generator).to(parameter)
    maps, others = backbone(pixels), folded(pixels)
    return all(
        bool((maps[stride] - others[stride]).abs().max() <= TOLERANCE * maps[stride].abs().max())
        for stride in maps
    )
