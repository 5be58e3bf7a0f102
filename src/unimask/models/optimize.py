"""Prepares a trained model for inference: the same predictions up to rounding, in fewer steps."""

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from unimask.models.backbones import FrozenBatchNorm, activation_of
from unimask.models.detr_masks import DetrWithMasks, MaskPyramid
from unimask.models.eomt import Upscaling
from unimask.models.memory import spare_memory
from unimask.models.pixel_decoders import (
    DeformableEncoder,
    DeformablePixelDecoder,
    PyramidPixelDecoder,
)
from unimask.nn.attention import Attention, DeformableAttention
from unimask.nn.fused import FusedConvolution, FusedLinear, FusedResidual
from unimask.nn.layers import NormedConvolution
from unimask.nn.overwriting import (
    OverwritingEncoderLayer,
    OverwritingGroupNorm,
    OverwritingUpscaling,
    fastest,
)
from unimask.nn.same import SameConvolution
from unimask.nn.swin import WindowAttention
from unimask.nn.transformer import EncoderLayer, FeedForward
from unimask.nn.vit import Block, KeylessBias, VisionTransformer, kept
from unimask.ops.cpu.fused import Activation
from unimask.ops.parts import token_by_token, window_by_window

TOLERANCE = 1e-4  # of the largest value: above the effects of rounding, and below those of a mistake

NOISE = (64, 96)  # height and width of the noise image on which changes are checked

PRECISE_STRIDE = 2
"""Layers of the backbone up to this stride, and those that take the pixels, stay in float32.

Where pixels are far from the mean, the rounding error of bfloat16 is as large as a grey level of an 8-bit
image, and later layers cannot recover what is lost. These layers are a small part of the computation."""

QUERIES_AT_ONCE = 25
"""How many queries the mask head of DETR computes masks for at a time; this bounds the memory."""


def prepare_for_inference(
    model: nn.Module, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> nn.Module:
    """Return a copy of the model for inference on `device`; run it under autocast to `dtype`.

    Batch norms are folded into the convolutions before them, and activations and sums are fused with
    convolutions and linear layers. In the backbone, the layers that belong together are inferred from the
    order of a module's children, and the result is checked on a noise image: a backbone whose maps change is
    left as it is. Weights of linear layers and convolutions are converted to `dtype` once instead of at each
    call, except in the first layers of the backbone (`PRECISE_STRIDE`). On the CPU, weights get oneDNN's
    memory layout, and layers overwrite maps that are not needed any more and work on a few tokens at a time.

    The copy is not differentiable, and its parameters differ from those of the model.
    """
    ready = copy.deepcopy(model).to(device).eval().requires_grad_(False)
    ready = ready.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    owner = ready.detr if isinstance(ready, DetrWithMasks) else ready
    backbone = dict(owner.named_children()).get("backbone")
    precise: set[nn.Module] = set()
    if isinstance(backbone, VisionTransformer):  # fused by `_fuse_known`
        backbone.run = kept
        precise, backbone = {backbone.patches}, None
    if backbone is not None:
        for change in (_fold, _fuse):
            backbone = _tried(change, backbone)
        owner.set_submodule("backbone", backbone)
        precise = _precise_layers(backbone)
    _fuse_known(ready, backbone)
    if dtype != torch.float32:
        _reduce(ready, dtype, precise)
    for module in ready.modules():
        if isinstance(module, MaskPyramid):
            module.forward = partial(_few_masks_at_a_time, module.forward)  # type: ignore[method-assign]
    if torch.device(device).type == "cpu":
        _prepare_for_cpu(ready)
    return ready.eval()  # again, for the new layers


def _tried(change: Callable[[nn.Module], None], backbone: nn.Module) -> nn.Module:
    """Return a changed copy of the backbone, or the backbone itself if its maps would change."""
    changed = copy.deepcopy(backbone)
    change(changed)
    return changed if _same_maps(backbone, changed) else backbone


def _fold(module: nn.Module) -> None:
    """Fold batch norms into the convolutions that come directly before them, in place."""
    for (_, child), (name, second) in pairwise(list(module.named_children())):
        first = child[-1] if isinstance(child, nn.Sequential) and len(child) else child
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d | FrozenBatchNorm):
            if _width(second) != first.out_channels:
                continue
            _fold_pair(first, second)
            setattr(module, name, _activation_behind(second))
    for child in module.children():
        _fold(child)


def _width(norm: nn.BatchNorm2d | FrozenBatchNorm) -> int:
    statistics = norm.running_mean
    return 0 if statistics is None else len(statistics)


def _activation_behind(norm: nn.BatchNorm2d | FrozenBatchNorm) -> nn.Module:
    if isinstance(norm, FrozenBatchNorm):
        return norm.activation
    return activation_of(norm)


def _fold_pair(convolution: nn.Conv2d, norm: nn.BatchNorm2d | FrozenBatchNorm) -> None:
    """Fold a norm into a convolution: it scales the weights and shifts the bias."""
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
    """Fuse activations and residual sums with the convolutions and linear layers before them, in place."""
    before = None  # the fused layer, if it is directly before the child
    for name, child in list(module.named_children()):
        activation = _activation(child)
        if _is_residual(child) and _is_plain(child):
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
    if isinstance(module, FeedForward):
        _fuse_activation(module)


def _fused(layer: nn.Conv2d | nn.Linear) -> FusedConvolution | FusedLinear:
    if isinstance(layer, nn.Linear):
        return FusedLinear(layer.weight, layer.bias)
    return FusedConvolution(layer)


def _fuse_known(module: nn.Module, backbone: nn.Module | None) -> None:
    """Fuse the layers of this library outside of the backbone, whose structure is known, in place."""
    for name, child in list(module.named_children()):
        if child is backbone:
            continue
        if type(child) is nn.Linear:
            setattr(module, name, _fused(child))
        elif isinstance(child, KeylessBias):
            setattr(module, name, FusedLinear(child.weight, child.bias))
        elif isinstance(child, NormedConvolution) and type(child.convolution) is nn.Conv2d:
            child.convolution = FusedConvolution(child.convolution)  # type: ignore[assignment]
        else:
            _fuse_known(child, backbone)
    if isinstance(module, FeedForward):
        _fuse_activation(module)


def _fuse_activation(feedforward: FeedForward) -> None:
    expand: nn.Module = feedforward.expand
    if feedforward.activation in _FUNCTIONS and isinstance(expand, FusedLinear):
        expand.activation, feedforward.activation = _FUNCTIONS[feedforward.activation], _nothing


_FUNCTIONS: dict[Callable[[Tensor], Tensor], Activation] = {torch.relu_: "relu", functional.gelu: "gelu"}


def _nothing(tokens: Tensor) -> Tensor:
    return tokens


def _is_fusible(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    if type(module) is SameConvolution:
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


_RESIDUAL = ("timm.models.resnet.Bottleneck", "timm.models.resnet.BasicBlock")  # timm may not be imported


def _is_residual(module: nn.Module) -> bool:
    return f"{type(module).__module__}.{type(module).__qualname__}" in _RESIDUAL


def _is_plain(block: nn.Module) -> bool:
    """Return whether the residual block consists of convolutions and ReLUs only, apart from its shortcut."""
    allowed = (nn.Identity, nn.ReLU, nn.Conv2d)
    own = all(type(child) in allowed for name, child in block.named_children() if name != "downsample")
    return own and all(isinstance(c, nn.ReLU) for n, c in block.named_children() if n.startswith("act"))


def _fused_block(block: nn.Module) -> FusedResidual:
    convolutions = [c for n, c in block.named_children() if n != "downsample" and isinstance(c, nn.Conv2d)]
    shortcut = dict(block.named_children()).get("downsample", nn.Identity())
    _fuse(shortcut)
    return FusedResidual([FusedConvolution(one, "relu") for one in convolutions], shortcut)


_REDUCED = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, FusedLinear, FusedConvolution, Attention)


def _reduce(model: nn.Module, dtype: torch.dtype, precise: set[nn.Module]) -> None:
    """Convert the weights of linear layers and convolutions that are not `precise`, in place."""
    for module in model.modules():
        if module in precise:
            continue
        if type(module) in _REDUCED:
            for name, weight in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(weight.to(dtype), requires_grad=False))


def _few_masks_at_a_time(
    refine: Callable[[Tensor, Tensor, tuple[Tensor, ...]], Tensor],
    projected: Tensor,
    attention: Tensor,
    maps: tuple[Tensor, ...],
) -> Tensor:
    """Return the masks of a `MaskPyramid`, computed for `QUERIES_AT_ONCE` queries of an image at a time."""
    masks = []
    for image in range(len(attention)):
        one = slice(image, image + 1)
        finer = tuple(level[one] for level in maps)
        groups = attention[one].split(QUERIES_AT_ONCE, dim=1)
        masks.append(torch.cat([refine(projected[one], some, finer) for some in groups], dim=1))
    return torch.cat(masks)


def _prepare_for_cpu(model: nn.Module) -> None:
    """Let layers work on a few tokens at a time, and overwrite maps that are not needed any more."""
    spare_memory(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, FusedLinear):
            module.pack()
        elif isinstance(module, Block):
            feedforward = module.feedforward
            feedforward.forward = partial(token_by_token, feedforward.forward)  # type: ignore[method-assign]
        elif isinstance(module, Upscaling):
            faster = OverwritingUpscaling(module.expand, module.mix, module.norm)
            model.set_submodule(name, faster)
        elif isinstance(module, WindowAttention):
            module.forward = partial(window_by_window, module.forward)  # type: ignore[method-assign]
        elif isinstance(module, DeformablePixelDecoder | PyramidPixelDecoder):
            _let_overwrite(module)
        elif isinstance(module, DeformableEncoder):
            for number, layer in module.layers.named_children():
                if isinstance(layer, EncoderLayer) and isinstance(layer.attention, DeformableAttention):
                    setattr(module.layers, number, OverwritingEncoderLayer(layer, layer.attention))
    for module in model.modules():
        if isinstance(module, NormedConvolution):
            _speed_up(module, overwrite=False)


def _let_overwrite(decoder: DeformablePixelDecoder | PyramidPixelDecoder) -> None:
    """Let the feature pyramid overwrite the backbone's maps and its own."""
    if not isinstance(decoder.mask_features, nn.Conv2d):
        return  # it has been prepared before
    for convolution in [*decoder.laterals.values(), *decoder.fusions.values()]:
        assert isinstance(convolution, NormedConvolution)
        _speed_up(convolution, overwrite=True)
    fused = FusedConvolution(decoder.mask_features)
    decoder.mask_features = fastest(fused, overwrite=True)  # type: ignore[assignment]
    decoder.forward = partial(_forgetting, decoder.forward)  # type: ignore[method-assign]


def _speed_up(normed: NormedConvolution, *, overwrite: bool) -> None:
    convolution, norm = cast(nn.Module, normed.convolution), cast(nn.Module, normed.norm)
    if isinstance(convolution, FusedConvolution):
        normed.convolution = fastest(convolution, overwrite=overwrite)  # type: ignore[assignment]
    if isinstance(norm, nn.GroupNorm):
        normed.norm = OverwritingGroupNorm(norm)  # type: ignore[assignment]


Pyramid = tuple[dict[int, Tensor], Tensor]
"""The result of a pixel decoder: stride -> map of the memory, and mask features."""


class _ReadOnce(Mapping[int, Tensor]):
    """Maps by stride, each removed when it is read, to free its memory; iteration yields nothing."""

    def __init__(self, maps: dict[int, Tensor]) -> None:
        self.maps = maps

    def __getitem__(self, stride: int) -> Tensor:
        return self.maps.pop(stride)

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _forgetting(decode: Callable[[Mapping[int, Tensor]], Pyramid], features: dict[int, Tensor]) -> Pyramid:
    """Return `decode(features)`, removing each map from `features` when it is read."""
    return decode(_ReadOnce(features))


@torch.no_grad()
def _precise_layers(backbone: nn.Module) -> set[nn.Module]:
    """Return the convolutions that take the pixels, or whose results have a stride up to `PRECISE_STRIDE`."""
    convolutions = [module for module in backbone.modules() if isinstance(module, FusedConvolution)]
    found = {one for one in convolutions if one.weight.shape[1] == 3 and one.steps[3] == 1}
    seen: list[tuple[nn.Module, int]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], result: Tensor) -> None:
        seen.append((module, result.shape[-2]))

    hooks = [one.register_forward_hook(note) for one in convolutions]
    backbone(_noise(backbone))
    for hook in hooks:
        hook.remove()
    return found | {module for module, height in seen if height * PRECISE_STRIDE >= NOISE[0]}


def _noise(backbone: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, *NOISE, generator=generator)
    return pixels.to(next(backbone.parameters())).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def _same_maps(backbone: nn.Module, changed: nn.Module) -> bool:
    """Return whether both compute the same maps of a noise image, up to `TOLERANCE`."""
    pixels = _noise(backbone)
    maps, others = backbone(pixels), changed(pixels)
    return all(
        bool((maps[stride] - others[stride]).abs().max() <= TOLERANCE * maps[stride].abs().max())
        for stride in maps
    )
