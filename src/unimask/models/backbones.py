"""Backbones: networks that compute feature maps of strides 4, 8, 16 and 32 from pixels.

Swin and EfficientNet-Lite are implemented in this library, all others in timm, which is slow to import and
therefore imported only where it is needed.
"""

import re
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unimask.config.models import BackboneConfig
from unimask.errors import ConfigError
from unimask.nn.efficientnet import EfficientNetLite
from unimask.nn.swin import Swin

STRIDES = (4, 8, 16, 32)
NAME = "model.backbone.name"


class FrozenBatchNorm(nn.Module):
    """A batch norm whose statistics and weights are constant buffers, in training as well.

    It is initialised as the identity (weight 1, variance 1 - eps): some networks initialise the last norm of
    a block with zeros, which would stay zero here. The result has the type of the input (bfloat16 stays
    bfloat16). The buffers have the names of `nn.BatchNorm2d`, without `num_batches_tracked`.

    Source: detectron2's FrozenBatchNorm2d.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float, activation: nn.Module) -> None:
        super().__init__()
        self.eps = eps
        self.activation = activation
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.full((channels,), 1.0 - eps))

    def forward(
        self, features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return activation((features - mean) / sqrt(variance + eps) * weight + bias)."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        shift = self.bias - self.running_mean * scale
        scale, shift = (values.to(features.dtype)[None, :, None, None] for values in (scale, shift))
        result: Tensor = self.activation(torch.addcmul(shift, features, scale))
        return result


def activation_of(norm: nn.BatchNorm2d) -> nn.Module:
    """Return the activation that a batch norm of this library or of timm applies; else the identity."""
    activation = getattr(norm, "act", None)
    return activation if isinstance(activation, nn.Module) else nn.Identity()


def freeze_norms(module: nn.Module) -> None:
    """Replace every batch norm inside the module with a newly initialised `FrozenBatchNorm`, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm(child.num_features, child.eps, activation_of(child)))
        else:
            freeze_norms(child)


class NetworkBackbone(nn.Module):
    """A backbone around a network that returns a list of maps, as timm's feature extractors do.

    `outputs` is stride -> index of the network's map. `channels_last`: the network's maps are
    (batch, height, width, channels).
    """

    def __init__(
        self, network: nn.Module, *, channels: dict[int, int], outputs: dict[int, int], channels_last: bool
    ) -> None:
        super().__init__()
        self.network = network
        self.channels = channels
        self.outputs = outputs
        self.axes = (0, 3, 1, 2) if channels_last else (0, 1, 2, 3)

    def forward(
        self, pixels: Float[Tensor, "batch 3 height width"]
    ) -> dict[int, Float[Tensor, "batch _channels _height _width"]]:
        """Return the maps of strides 4, 8, 16 and 32 from normalised pixels.

        How sizes are rounded that are not multiples of the stride depends on the network.
        """
        maps = self.network(pixels)
        return {stride: maps[index].permute(self.axes) for stride, index in self.outputs.items()}


DEEPLAB = {"resnet50_deeplab": "resnet50s", "resnet101_deeplab": "resnet101s"}
"""Name of a ResNet with multi-grid dilations -> timm's name of the same network without them.

The first convolution is replaced with three (64, 64, 128 channels). MaskFormer's R101c is such a network.

Source: DeepLab v3 (1706.05587), Sec. 3.1; detectron2's `build_resnet_deeplab_backbone`."""


@dataclass(frozen=True, kw_only=True)
class SwinShape:
    """The sizes of a Swin: channels of the first stage, blocks and heads of each stage, side of a window."""

    channels: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int

    @property
    def name(self) -> str:
        """The name that `swin_shape` parses, such as `swin_c96_d2-2-6-2_h3-6-12-24_w7`."""
        depths, heads = ("-".join(map(str, numbers)) for numbers in (self.depths, self.heads))
        return f"swin_c{self.channels}_d{depths}_h{heads}_w{self.window}"


SWINS: dict[str, SwinShape] = {
    "swin_tiny": SwinShape(channels=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), window=7),
    "swin_small": SwinShape(channels=96, depths=(2, 2, 18, 2), heads=(3, 6, 12, 24), window=7),
    "swin_base": SwinShape(channels=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32), window=12),
    "swin_large": SwinShape(channels=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48), window=12),
}
_ANY_SWIN = r"swin_c(\d{1,4})_d(\d{1,3}(?:-\d{1,3}){3})_h(\d{1,3}(?:-\d{1,3}){3})_w(\d{1,2})"


def swin_shape(name: str) -> SwinShape | None:
    """Return the sizes of the Swin of this name: one of `SWINS`, or as in `SwinShape.name`; None for others.

    Raises:
        ConfigError: a size is 0, or heads do not divide the channels of their stage.
    """
    found = re.fullmatch(_ANY_SWIN, name)
    if found is None:
        return SWINS.get(name)
    depths, heads = (tuple(map(int, found[group].split("-"))) for group in (2, 3))
    channels, window = int(found[1]), int(found[4])
    if not channels or not window or 0 in (*depths, *heads):
        raise ConfigError(NAME, f"{name!r} has a size of 0")
    if any(channels * 2**stage % count for stage, count in enumerate(heads)):
        raise ConfigError(NAME, f"{name!r}: heads must divide the channels of their stage")
    return SwinShape(channels=channels, depths=depths, heads=heads, window=window)


EFFICIENTNETS = {
    "tf_efficientnet_lite0": (1.0, 1.0),
    "tf_efficientnet_lite1": (1.0, 1.1),
    "tf_efficientnet_lite2": (1.1, 1.2),
    "tf_efficientnet_lite3": (1.2, 1.4),
    "tf_efficientnet_lite4": (1.4, 1.8),
}
"""timm's name of an EfficientNet-Lite -> multipliers of channels and blocks, relative to the smallest."""


def _efficientnet(config: BackboneConfig) -> NetworkBackbone:
    width, depth = EFFICIENTNETS[config.name]
    network = EfficientNetLite(width=width, depth=depth, drop_path_rate=config.drop_path_rate)
    if config.freeze_norm:
        freeze_norms(network)
    outputs = {stride: index for index, stride in enumerate(STRIDES)}
    return NetworkBackbone(network, channels=network.channels, outputs=outputs, channels_last=False)


def build_backbone(config: BackboneConfig) -> nn.Module:
    """Return a backbone with random weights, which maps pixels to {stride: map}.

    Its attribute `channels` is stride -> channels. The name decides on the network:

    - `swin_tiny`, `swin_small`, `swin_base`, `swin_large`, and other sizes such as
      `swin_c16_d2-1-3-1_h1-2-4-2_w4` (channels, depths, heads, window): `nn.swin.Swin`;
    - `tf_efficientnet_lite0` to `tf_efficientnet_lite4`: `nn.efficientnet.EfficientNetLite`;
    - `resnet50_deeplab` and `resnet101_deeplab`: timm's networks with multi-grid dilations (`DEEPLAB`);
    - any other name: timm's network of this name.

    With `freeze_norm` the batch norms are frozen; layer norms never are. With `dilated` the map of stride 32
    has the size of the map of stride 16 (DETR's "DC5").

    Raises:
        ConfigError: the name is unknown, the network has no maps of strides 4, 8, 16 and 32 or takes images
            of one size only, or it does not support a setting (`drop_path_rate`, which must be in [0, 1), or
            `dilated`).
    """
    if not 0 <= config.drop_path_rate < 1:
        reason = f"must be at least 0 and less than 1; got {config.drop_path_rate}"
        raise ConfigError("model.backbone.drop_path_rate", reason)
    swin = swin_shape(config.name)
    if swin is not None:
        if config.dilated:
            raise ConfigError("model.backbone.dilated", f"{config.name!r} has no dilated form; take a ResNet")
        return Swin(
            embed_channels=swin.channels,
            depths=swin.depths,
            heads=swin.heads,
            window=swin.window,
            drop_path_rate=config.drop_path_rate,
        )
    if config.name in EFFICIENTNETS:
        if config.dilated:
            raise ConfigError("model.backbone.dilated", f"{config.name!r} has no dilated form; take a ResNet")
        return _efficientnet(config)
    from unimask.models.timm_backbone import build_timm

    return build_timm(config, (*SWINS, *EFFICIENTNETS))
