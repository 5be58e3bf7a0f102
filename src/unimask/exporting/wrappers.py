"""Modules around a model that make it exportable; the model itself has no branch for it."""

import copy

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from unimask.checkpoints.onnx import final_tensors
from unimask.models.detr import Detr
from unimask.models.detr_masks import DetrWithMasks
from unimask.models.eomt import Eomt
from unimask.nn.same import SameAveragePool, SameConvolution, pair_of
from unimask.nn.vit import LearnedPositions
from unimask.structures import BoxMaskPrediction, BoxPrediction, Size

CANVAS_STEP = 32  # heights and widths that exported models take are multiples of it, as canvases are


class FinalMasks(nn.Module):
    """The final prediction of a mask classifier as plain tensors, as `exported.MASKS` names them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> tuple[Tensor, ...]:
        """Class logits, mask embeddings and mask features."""
        return final_tensors(self.model(pixels))


class FinalBoxes(nn.Module):
    """The final prediction of a model of boxes as plain tensors, as `exported.BOXES` names them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, pixels: Float[Tensor, "batch 3 height width"], valid: Bool[Tensor, "batch height width"]
    ) -> tuple[Tensor, ...]:
        """Class logits and boxes, and the mask logits of a model that has them."""
        prediction: BoxPrediction | BoxMaskPrediction = self.model(pixels, valid)
        return final_tensors(prediction)


class FixedPadding(nn.Module):
    """A layer with TensorFlow's "same" padding, for inputs whose size is a multiple of its stride.

    How much is padded depends on the size; for those inputs it is always the same, `kernel - stride`, the
    smaller half first. Written out, the size's arithmetic would grow with every layer of an exported model.
    """

    def __init__(self, layer: nn.Conv2d | nn.AvgPool2d, dilation: tuple[int, int]) -> None:
        super().__init__()
        self.layer = layer
        self.padding = fixed_padding(pair_of(layer.kernel_size), pair_of(layer.stride), dilation)

    def forward(
        self, maps: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        """As the layer itself."""
        result: Tensor = self.layer(functional.pad(maps, self.padding))
        return result


def fixed_padding(
    kernel_size: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Left, right, top, bottom."""
    vertical, horizontal = (
        max((kernel - 1) * step + 1 - apart, 0)
        for kernel, apart, step in zip(kernel_size, stride, dilation, strict=True)
    )
    left, top = horizontal // 2, vertical // 2
    return left, horizontal - left, top, vertical - top


def fixed_convolution(layer: SameConvolution) -> FixedPadding:
    """Return the convolution with fixed padding."""
    plain = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        pair_of(layer.kernel_size),
        stride=pair_of(layer.stride),
        dilation=pair_of(layer.dilation),
        groups=layer.groups,
        bias=layer.bias is not None,
    )
    plain.weight, plain.bias = layer.weight, layer.bias
    return FixedPadding(plain, pair_of(layer.dilation))


def fixed_pool(layer: SameAveragePool) -> FixedPadding:
    """Return the pool with fixed padding, which counts as zeros."""
    plain = nn.AvgPool2d(layer.kernel_size, layer.stride, ceil_mode=layer.ceil_mode)
    return FixedPadding(plain, (1, 1))


def exportable(model: nn.Module) -> FinalMasks | FinalBoxes:
    """Return a copy of the model, on the CPU and in eval mode, that `torch.export` can trace."""
    wrapped = _final(copy.deepcopy(model)).cpu().float().eval()
    wrapped = wrapped.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    _fix_padding(wrapped)
    for parameter in wrapped.parameters():
        parameter.requires_grad_(False)
    return wrapped


def smallest_step(model: nn.Module) -> int:
    """Heights and widths of canvases that the exported model takes are multiples of this: 1 to 32 pixels.

    Models of masks need 32, an EoMT the side of its patches. Models of boxes take any size, if no layer
    treats some sizes apart: by padding that depends on the size, or by a pool that rounds up. Otherwise it is
    the stride of the map that they work on: up to there such sizes divide without remainder.
    """
    if isinstance(model, Eomt):
        return model.backbone.patch
    if not isinstance(model, Detr | DetrWithMasks):
        return CANVAS_STEP
    bound = any(
        isinstance(module, SameConvolution) or (isinstance(module, nn.AvgPool2d) and module.ceil_mode)
        for module in model.modules()
    )
    detr = model.detr if isinstance(model, DetrWithMasks) else model
    return detr.stride if bound else 1


def only_size(model: nn.Module) -> Size | None:
    """Return the (height, width) of the only canvas that a model takes; None where it takes many."""
    if isinstance(model, Eomt) and isinstance(model.backbone.positions, LearnedPositions):
        rows, columns = model.backbone.positions.grid
        return rows * model.backbone.patch, columns * model.backbone.patch
    return None


def _final(model: nn.Module) -> FinalMasks | FinalBoxes:
    return FinalBoxes(model) if isinstance(model, Detr | DetrWithMasks) else FinalMasks(model)


def _fix_padding(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, SameConvolution):
            setattr(module, name, fixed_convolution(child))
        elif isinstance(child, SameAveragePool):
            setattr(module, name, fixed_pool(child))
        else:
            _fix_padding(child)
