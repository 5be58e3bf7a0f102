"""A trained model, made ready to predict: the same numbers to rounding, in fewer steps."""

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import TypeGuard

import torch
from timm.layers import Conv2dSame
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torch.nn import functional

from unimask.models.backbones import FrozenBatchNorm
from unimask.nn.attention import Attention
from unimask.nn.fused import FusedAttention, FusedConvolution, FusedLinear, FusedResidual
from unimask.nn.layers import NormedConvolution
from unimask.nn.transformer import FeedForward
from unimask.ops.cpu.fused import Activation

TOLERANCE = 1e-4  # of the largest value: what rounding may change, and no mistake stays below

PICTURE = (64, 96)  # of noise, on which changes are tried

PRECISE_STRIDE = 2
"""Layers of the backbone up to this stride, and those that see the pixels, stay in float32.

A grey level of an 8-bit picture is as small as the rounding of bfloat16 where pixels are far from the mean,
and what these layers lose nothing brings back. They are a small part of the work."""


def prepare_for_inference(
    model: nn.Module, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> nn.Module:
    """A copy of the model in eval mode, for `device`, in fewer steps; to be run under autocast to `dtype`.

    Batch norms become part of the convolutions before them, activations and sums of theirs. What belongs
    together in the backbone is guessed from the order in which a module lists its parts, and tried on a
    picture of noise: a backbone whose maps change stays as it is. Weights of matrix products and convolutions
    get the `dtype`, once and not at each call, but for the first layers of the backbone (`PRECISE_STRIDE`),
    and on the CPU the order in which they are fastest. The copy is for prediction only: it has other
    parameters than the model.
    """
    ready = copy.deepcopy(model).to(device).eval().requires_grad_(False)
    ready = ready.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for change in (_fold, _fuse):
        _try(ready, change)
    for name, part in ready.named_children():
        if name != "backbone":
            _fuse_known(part)
    if dtype != torch.float32:
        _reduce(ready, dtype)
    for module in ready.modules():
        if isinstance(module, FusedLinear):
            module.pack()
        # those of the backbone would gain little: their maps are small, and their kernels large
        elif isinstance(module, NormedConvolution) and isinstance(module.convolution, FusedConvolution):
            module.convolution.transform()
    return ready.eval()  # the new parts, too


def _try(model: nn.Module, change: Callable[[nn.Module], None]) -> None:
    """Changes the backbone, if its maps stay the same."""
    backbone = model.get_submodule("backbone")
    changed = copy.deepcopy(backbone)
    change(changed)
    if _same_maps(backbone, changed):
        model.set_submodule("backbone", changed)


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
    convolution.weight = nn.Parameter(weight.to(convolution.weight.dtype), requires_grad=False)
    convolution.bias = nn.Parameter(bias.to(convolution.weight.dtype), requires_grad=False)


def _fuse(module: nn.Module) -> None:
    """Activations and sums become part of the convolutions before them."""
    before = None  # the layer that nothing has followed yet
    for name, child in list(module.named_children()):
        activation = _activation(child)
        if isinstance(child, Bottleneck | BasicBlock) and _is_plain(child):
            setattr(module, name, _fused_block(child))
        elif _is_fusible(child) or type(child) is nn.Linear:
            before = _fused(child)
            setattr(module, name, before)
            continue
        elif activation != "none" and before is not None:
            before.activation = activation
            setattr(module, name, nn.Identity())
        elif isinstance(child, nn.Identity):
            continue
        else:
            _fuse(child)
        before = None


def _fused(layer: nn.Conv2d | nn.Linear) -> FusedConvolution | FusedLinear:
    if isinstance(layer, nn.Linear):
        return FusedLinear(layer.weight, layer.bias)
    return FusedConvolution(layer)


def _fuse_known(module: nn.Module) -> None:
    """The same for our own layers, which are put together in few ways."""
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear:
            setattr(module, name, _fused(child))
        elif type(child) is Attention:
            setattr(module, name, FusedAttention(child))
        elif isinstance(child, NormedConvolution) and type(child.convolution) is nn.Conv2d:
            child.convolution = FusedConvolution(child.convolution)
        else:
            _fuse_known(child)
    if isinstance(module, FeedForward) and module.activation in _FUNCTIONS:
        assert isinstance(module.expand, FusedLinear)
        module.expand.activation, module.activation = _FUNCTIONS[module.activation], _nothing


_FUNCTIONS: dict[Callable[[Tensor], Tensor], Activation] = {torch.relu_: "relu", functional.gelu: "gelu"}


def _nothing(tokens: Tensor) -> Tensor:
    return tokens


def _is_fusible(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    if type(module) is Conv2dSame:
        return True
    return (
        type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    )


def _activation(module: nn.Module) -> Activation:
    if isinstance(module, nn.ReLU6):
        return "relu6"
    if isinstance(module, nn.GELU) and module.approximate == "none":
        return "gelu"
    return "relu" if isinstance(module, nn.ReLU) else "none"


def _is_plain(block: Bottleneck | BasicBlock) -> bool:
    """Whether the block has nothing but convolutions and ReLUs, and maybe a convolution in its shortcut."""
    allowed = (nn.Identity, nn.ReLU, nn.Conv2d)
    own = all(type(child) in allowed for name, child in block.named_children() if name != "downsample")
    return own and all(isinstance(c, nn.ReLU) for n, c in block.named_children() if n.startswith("act"))


def _fused_block(block: Bottleneck | BasicBlock) -> FusedResidual:
    convolutions = [c for n, c in block.named_children() if n != "downsample" and isinstance(c, nn.Conv2d)]
    shortcut = nn.Identity() if block.downsample is None else block.downsample
    _fuse(shortcut)
    return FusedResidual([FusedConvolution(one, "relu") for one in convolutions], shortcut)


def _reduce(model: nn.Module, dtype: torch.dtype) -> None:
    precise = _precise_layers(model.get_submodule("backbone"))
    for module in model.modules():
        if module in precise:
            continue
        if type(module) in (nn.Linear, nn.Conv2d, FusedLinear, FusedConvolution, Attention):
            for name, weight in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(weight.to(dtype), requires_grad=False))


@torch.no_grad()
def _precise_layers(backbone: nn.Module) -> set[nn.Module]:
    """Its convolutions that see the pixels, or give maps of a small stride."""
    convolutions = [module for module in backbone.modules() if isinstance(module, FusedConvolution)]
    found = {one for one in convolutions if one.weight.shape[1] == 3 and one.steps[3] == 1}
    seen: list[tuple[nn.Module, int]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], result: Tensor) -> None:
        seen.append((module, result.shape[-2]))

    hooks = [one.register_forward_hook(note) for one in convolutions]
    backbone(_noise(backbone))
    for hook in hooks:
        hook.remove()
    return found | {module for module, height in seen if height * PRECISE_STRIDE >= PICTURE[0]}


def _noise(backbone: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, *PICTURE, generator=generator)
    return pixels.to(next(backbone.parameters())).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def _same_maps(backbone: nn.Module, changed: nn.Module) -> bool:
    """Whether both make the same maps of a picture of noise."""
    pixels = _noise(backbone)
    maps, others = backbone(pixels), changed(pixels)
    return all(
        bool((maps[stride] - others[stride]).abs().max() <= TOLERANCE * maps[stride].abs().max())
        for stride in maps
    )
