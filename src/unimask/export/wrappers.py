"""Modules around a model that make it exportable; the model itself has no branch for it."""

import copy

import torch
from jaxtyping import Bool, Float
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional

from unimask.exported import final_tensors
from unimask.models.detr import Detr
from unimask.models.detr_masks import DetrWithMasks
from unimask.structures import BoxMaskPrediction, BoxPrediction

CANVAS_STEP = 32  # heights and widths that exported models take are multiples of it, as canvases are


class FinalMasks(nn.Module):
    """The final prediction of a mask classification model as plain tensors, as `exported.MASKS` names them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, pixels: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Tensor, ...]:
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


class AllMasksAtOnce(nn.Module):
    """A detector with a mask head that refines the masks of all pictures and queries in one step.

    The model does so for a few at a time, to save memory; how often would depend on the batch.
    """

    def __init__(self, model: DetrWithMasks) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, pixels: Float[Tensor, "batch 3 height width"], valid: Bool[Tensor, "batch height width"]
    ) -> BoxMaskPrediction:
        """As the model itself."""
        seen = self.model.detr.look(pixels, valid)
        attention = self.model.attention(seen.queries[-1], seen.memory, seen.valid)
        return BoxMaskPrediction(
            class_logits=seen.class_logits[-1:],
            boxes=seen.boxes[-1:],
            mask_logits=self.model.pyramid(seen.projected, attention, self.model.finer_maps(seen)),
        )


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


def exportable(model: nn.Module) -> FinalMasks | FinalBoxes:
    """A copy of the model, on the CPU and in eval mode, that `torch.export` can follow for every canvas."""
    wrapped = _final(copy.deepcopy(model)).cpu().float().eval()
    wrapped = wrapped.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    _fix_padding(wrapped)
    for parameter in wrapped.parameters():
        parameter.requires_grad_(False)
    return wrapped


def _final(model: nn.Module) -> FinalMasks | FinalBoxes:
    if isinstance(model, DetrWithMasks):
        return FinalBoxes(AllMasksAtOnce(model))
    return FinalBoxes(model) if isinstance(model, Detr) else FinalMasks(model)


def _fix_padding(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, Conv2dSame):
            setattr(module, name, FixedPadding(child))
        else:
            _fix_padding(child)
