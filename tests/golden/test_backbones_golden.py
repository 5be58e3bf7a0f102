"""Swin and ResNet against maps of the original implementations, through the importer's rename rules."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import Module

from unimask.config.models import BackboneConfig
from unimask.conversion import original
from unimask.conversion.rules import to_ours
from unimask.models.backbones import STRIDES, NetworkBackbone, build_backbone, freeze_norms
from unimask.nn.swin import Swin


def read(golden: Path, name: str) -> tuple[dict[str, Tensor], dict]:
    tensors = load_file(golden / f"{name}.safetensors")
    return tensors, json.loads((golden / f"{name}.json").read_text())["hyper_parameters"]


def load_original(backbone: Module, tensors: dict[str, Tensor]) -> None:
    prefix = "state_dict."
    state = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    renamed = to_ours(state, original.MASK2FORMER.rules)
    assert all(key.endswith("relative_position_index") for key in renamed.unknown)
    backbone.load_state_dict(
        {key.removeprefix("backbone."): tensor for key, tensor in renamed.tensors.items()}
    )


@torch.no_grad()
def assert_equal_maps(
    backbone: Module, tensors: dict[str, Tensor], *, absolute: float, relative: float
) -> None:
    maps = backbone.eval()(tensors["input.image"])
    for stage, stride in enumerate(STRIDES, start=2):
        expected = tensors[f"output.res{stage}"]
        tolerance = absolute + relative * float(expected.abs().max())
        torch.testing.assert_close(maps[stride], expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", ["swin_tiny_small", "swin_window4_small"])
def test_swin(golden, name):
    tensors, sizes = read(golden, name)
    backbone = Swin(
        embed_channels=sizes["embed_dim"],
        depths=tuple(sizes["depths"]),
        heads=tuple(sizes["num_heads"]),
        window=sizes["window_size"],
    )
    load_original(backbone, tensors)
    for stage in backbone.stages:
        for block in stage.blocks:
            key = "state_dict.backbone.layers.0.blocks.0.attn.relative_position_index"
            assert torch.equal(block.attention.relative_positions, tensors[key])
    assert_equal_maps(backbone, tensors, absolute=2e-5, relative=0)


def narrow_resnet() -> NetworkBackbone:
    """timm's ResNet-50 an eighth as wide. timm fixes the width of the stem at 64, so that is put in after."""
    network = timm.create_model("resnet50", features_only=True, channels=(8, 16, 32, 64))
    network.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
    network.bn1 = nn.BatchNorm2d(8)
    first = network.layer1[0]
    first.conv1 = nn.Conv2d(8, 8, 1, bias=False)
    first.downsample[0] = nn.Conv2d(8, 32, 1, bias=False)
    freeze_norms(network)
    channels = {stride: 8 * stride for stride in STRIDES}
    outputs = {stride: index for index, stride in enumerate(STRIDES, start=1)}
    return NetworkBackbone(network, channels=channels, outputs=outputs, channels_last=False)


def test_resnet(golden):
    tensors, _ = read(golden, "resnet50_small")
    backbone = narrow_resnet()
    load_original(backbone, tensors)
    assert_equal_maps(backbone, tensors, absolute=0, relative=1e-5)


@pytest.mark.parametrize(
    ("name", "manifest"),
    [
        ("resnet50", "R50"),
        ("resnet101", "R101"),
        ("swin_tiny", "SwinT"),
        ("swin_small", "SwinS"),
        ("swin_base", "SwinB"),
        ("swin_large", "SwinL"),
    ],
)
def test_full_size_shapes(golden, name, manifest):
    content = json.loads((golden / f"key_manifests/mask2former_{manifest}_coco_panoptic.json").read_text())
    with torch.device("meta"):
        ours = build_backbone(BackboneConfig(name=name)).state_dict()
        theirs = {key: torch.zeros(shape) for key, shape in content["shapes"].items()}
    body = {key: tensor for key, tensor in theirs.items() if key.startswith("backbone.")}
    renamed = to_ours(body, original.MASK2FORMER.rules)
    assert all(key.endswith("relative_position_index") for key in renamed.unknown)
    shapes = {key.removeprefix("backbone."): tensor.shape for key, tensor in renamed.tensors.items()}
    assert shapes == {key: tensor.shape for key, tensor in ours.items()}
