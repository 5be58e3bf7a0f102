"""Backbones of timm: a thin wrapper around its feature extractors."""

import difflib
from collections.abc import Sequence
from typing import cast

import timm
import torch
from timm.layers import AvgPool2dSame, Conv2dSame
from timm.models import FeatureInfo
from torch import Tensor, nn

from unimask.config.models import BackboneConfig
from unimask.errors import ConfigError
from unimask.models.backbones import DEEPLAB, NAME, STRIDES, NetworkBackbone, freeze_norms
from unimask.nn.same import SameAveragePool, SameConvolution

PROBE = (64, 96)  # height and width of the image on which a new network is checked

MULTI_GRID = (1, 2, 4)


def set_multi_grid(blocks: nn.Sequential) -> None:
    """Set the dilations of the 3x3 convolutions in the blocks of a ResNet's last stage to `MULTI_GRID`."""
    for block, dilation in zip(blocks, MULTI_GRID, strict=True):
        convolution = block.get_submodule("conv2")
        assert isinstance(convolution, nn.Conv2d)
        convolution.dilation = convolution.padding = (dilation, dilation)


def _create(config: BackboneConfig, others: Sequence[str]) -> nn.Module:
    """Return timm's feature extractor with random weights; nothing is downloaded."""
    name = DEEPLAB.get(config.name, config.name)
    if ":" in config.name or not timm.is_model(name):
        known = [*others, *DEEPLAB, *timm.list_models()]
        close = difflib.get_close_matches(config.name.split(".")[0], known, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "`timm.list_models()` names what there is"
        raise ConfigError(NAME, f"no backbone is called {config.name!r}; {hint}")
    drop_path_rate = config.drop_path_rate or None  # timm drops None; some networks do not support it
    output_stride = STRIDES[-1] // 2 if config.dilated else None
    try:
        network = timm.create_model(
            name, features_only=True, drop_path_rate=drop_path_rate, output_stride=output_stride
        )
    except TypeError as error:
        settings = {"drop_path_rate": drop_path_rate, "dilated": output_stride, "name": True}
        path = "model.backbone." + next(name for name, given in settings.items() if given)
        raise ConfigError(path, f"timm cannot build {config.name!r} with this setting: {error}") from None
    except (RuntimeError, ValueError, AssertionError, AttributeError) as error:
        raise ConfigError(NAME, f"{config.name!r} gives no feature maps: {error}") from None
    return network


def build_timm(config: BackboneConfig, others: Sequence[str]) -> NetworkBackbone:
    """Return a backbone of timm with random weights; `others` are the names of other backbones, for messages.

    Raises:
        ConfigError: see `build_backbone`.
    """
    network = _create(config, others)
    _take_our_padding(network)
    info = cast(FeatureInfo, network.feature_info)
    strides, widths = list(info.reduction()), info.channels()
    if config.dilated:
        strides[-1] *= 2  # its nominal stride: it replaces the map of stride 32
    if not set(STRIDES) <= set(strides):
        found = ", ".join(map(str, sorted(set(strides))))
        raise ConfigError(NAME, f"{config.name!r} has maps of stride {found}; 4, 8, 16 and 32 are needed")
    if config.name in DEEPLAB:
        if config.dilated:
            reason = f"{config.name!r} has dilations of its own; take false"
            raise ConfigError("model.backbone.dilated", reason)
        set_multi_grid(cast(nn.Sequential, network.get_submodule("layer4")))
    if config.freeze_norm:
        freeze_norms(network)
    outputs = {stride: index for index, stride in enumerate(strides) if stride in STRIDES}
    channels = {stride: widths[outputs[stride]] for stride in STRIDES}
    maps = _probe(network, config.name)
    height, width = (side // STRIDES[0] for side in PROBE)
    channels_last = tuple(maps[outputs[STRIDES[0]]].shape) == (1, height, width, channels[STRIDES[0]])
    backbone = NetworkBackbone(network, channels=channels, outputs=outputs, channels_last=channels_last)
    for stride, index in outputs.items():
        true_stride = stride // 2 if config.dilated and stride == STRIDES[-1] else stride
        expected = (1, channels[stride], PROBE[0] // true_stride, PROBE[1] // true_stride)
        shape = tuple(maps[index].permute(backbone.axes).shape)
        if shape != expected:
            raise ConfigError(NAME, f"{config.name!r}: its map of stride {stride} has shape {shape}")
    return backbone


def _probe(network: nn.Module, name: str) -> list[Tensor]:
    """Return the maps of a small image.

    Raises:
        ConfigError: the network does not take an image of this size; some take images of one size only.
    """
    try:
        with torch.no_grad():
            maps: list[Tensor] = network.eval()(torch.zeros(1, 3, *PROBE))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        way_out = "; take swin_tiny, swin_small, swin_base or swin_large" if "swin" in name else ""
        raise ConfigError(NAME, f"{name!r} does not take images of every size ({error}){way_out}") from None
    network.train()
    return maps


def _take_our_padding(module: nn.Module) -> None:
    """Replace timm's layers with "same" padding with those of `nn/same.py`, in place; parameters are kept."""
    for name, child in module.named_children():
        if isinstance(child, Conv2dSame | AvgPool2dSame):
            ours = SameConvolution if isinstance(child, Conv2dSame) else SameAveragePool
            copied = ours.__new__(ours)
            copied.__dict__.update(child.__dict__)
            setattr(module, name, copied)
        else:
            _take_our_padding(child)
