"""Modules around a model that make it exportable; the model itself has no branch for it."""

import copy

import torch
from jaxtyping import Float
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional

from unimask.structures import MaskPrediction

CANVAS_STEP = 32  # heights and widths that exported models take are multiples of it, as canvases are


class FinalMasks(nn.Module):
    """The final prediction of a mask classification model as plain tensors, as `MASK_OUTPUTS` names them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, pixels: Float[Tensor, "batch 3 height width"]
    ) -> tuple[
        Float[Tensor, "batch queries classes_and_none"],
        Float[Tensor, "batch queries channels"],
        Float[Tensor, "batch channels map_height map_width"],
    ]:
        """Class logits, mask embeddings and mask features."""
        prediction: MaskPrediction = self.model(pixels)
        return prediction.class_logits[-1], prediction.mask_embeddings[-1], prediction.mask_features


class FixedPadding(nn.Module):
    """A convolution with TensorFlow's "same" padding, for inputs whose size is a multiple of the stride.

    How much is padded depends on the size; for those inputs it is always the same, `kernel - stride`, the
    smaller half first. Written out, the size's arithmetic would grow with every layer of an exported model.
    """

    def __init__(self, convolution: Conv2dSame) -> None:
        super().__init__()
        self.convolution = convolution
        vertical, horizontal = (
            max((kernel - 1) * dilation + 1 - stride, 0)
            for kernel, stride, dilation in zip(
                convolution.kernel_size, convolution.stride, convolution.dilation, strict=True
            )
        )
        left, top = horizontal // 2, vertical // 2
        self.padding = (left, horizontal - left, top, vertical - top)

    def forward(
        self, maps: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        """As the convolution itself."""
        own = self.convolution
        padded = functional.pad(maps, self.padding)
        return functional.conv2d(padded, own.weight, own.bias, own.stride, 0, own.dilation, own.groups)


def exportable(model: nn.Module) -> FinalMasks:
    """A copy of the model, on the CPU and in eval mode, that `torch.export` can follow for every canvas."""
    wrapped = FinalMasks(copy.deepcopy(model).cpu().float()).eval()
    wrapped = wrapped.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    _fix_padding(wrapped)
    for parameter in wrapped.parameters():
        parameter.requires_grad_(False)
    return wrapped


def _fix_padding(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, Conv2dSame):
            setattr(module, name, FixedPadding(child))
        else:
            _fix_padding(child)
