"""Backbones by name: channels, sizes, frozen norms, and one clear message for what cannot be built."""

import pytest
import torch
from torch import nn

from unimask.config.models import BackboneConfig
from unimask.errors import ConfigError
from unimask.models.backbones import FrozenBatchNorm, build_backbone
from unimask.nn.swin import Swin

RESNET = {4: 256, 8: 512, 16: 1024, 32: 2048}


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet50", RESNET),
        ("resnet101", RESNET),
        ("tf_efficientnet_lite0", {4: 24, 8: 40, 16: 112, 32: 320}),
        ("convnext_atto", {4: 40, 8: 80, 16: 160, 32: 320}),
        ("mobilenetv3_small_050", {4: 8, 8: 16, 16: 24, 32: 288}),
        ("mambaout_femto", {4: 48, 8: 96, 16: 192, 32: 288}),  # gives maps with the channels last
    ],
)
def test_channels_are_what_the_maps_have(name, channels):
    backbone = build_backbone(BackboneConfig(name=name)).eval()
    assert backbone.channels == channels
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 64, 96))
    assert {stride: tuple(features.shape) for stride, features in maps.items()} == {
        stride: (1, width, 64 // stride, 96 // stride) for stride, width in channels.items()
    }


@pytest.mark.parametrize("name", ["resnet50", "tf_efficientnet_lite0"])
@pytest.mark.parametrize("size", [(1, 1), (37, 101), (33, 66)])
def test_odd_sizes_round_up(name, size):
    backbone = build_backbone(BackboneConfig(name=name)).eval()
    with torch.no_grad():
        maps = backbone(torch.randn(2, 3, *size))
    for stride, features in maps.items():
        assert features.shape[2:] == tuple(-(-pixels // stride) for pixels in size)


def test_same_padding_of_tensorflow_is_asymmetric():
    """At stride 2 an even size gets its padding at the end only: the first output sees no padding."""
    network = build_backbone(BackboneConfig(name="tf_efficientnet_lite0")).network
    stem = network.conv_stem
    pixels = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = (pixels[0, :, :3, :3] * stem.weight).sum((1, 2, 3))
        torch.testing.assert_close(stem(pixels)[0, :, 0, 0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "width", "window"),
    [("swin_tiny", 96, 7), ("swin_small", 96, 7), ("swin_base", 128, 12), ("swin_large", 192, 12)],
)
def test_swins_are_ours(name, width, window):
    with torch.device("meta"):
        backbone = build_backbone(BackboneConfig(name=name, drop_path_rate=0.3))
        assert isinstance(backbone, Swin)
        assert backbone.channels == {4: width, 8: 2 * width, 16: 4 * width, 32: 8 * width}
        assert {stage.window for stage in backbone.stages} == {window}
        assert [len(stage.blocks) for stage in backbone.stages] == [2, 2, 6 if name == "swin_tiny" else 18, 2]
        assert [stage.blocks[0].attention.heads for stage in backbone.stages] == [
            width // 32 * factor for factor in (1, 2, 4, 8)
        ]
        assert backbone(torch.zeros(1, 3, 97, 131))[32].shape == (1, 8 * width, 4, 5)


@pytest.mark.parametrize("name", ["resnet50", "tf_efficientnet_lite0"])
def test_frozen_norms_do_not_move(name):
    backbone = build_backbone(BackboneConfig(name=name, freeze_norm=True)).train()
    norms = {path: module for path, module in backbone.named_modules() if isinstance(module, FrozenBatchNorm)}
    assert norms
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    assert not any(path.rpartition(".")[0] in norms for path, _ in backbone.named_parameters())
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    maps = backbone(3 + torch.randn(2, 3, 64, 64))
    sum(features.square().mean() for features in maps.values()).backward()
    for path, norm in norms.items():
        for key, tensor in norm.state_dict().items():
            assert torch.equal(tensor, before[f"{path}.{key}"])
    # the norms start as the identity, so no branch is dead: every remaining parameter learns
    assert [path for path, parameter in backbone.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.any() for parameter in backbone.parameters())


def test_norms_that_are_not_frozen_learn():
    backbone = build_backbone(BackboneConfig(name="tf_efficientnet_lite0", freeze_norm=False)).train()
    before = backbone.network.bn1.running_mean.clone()
    backbone(1 + torch.randn(2, 3, 32, 32))
    assert not torch.equal(before, backbone.network.bn1.running_mean)
    assert backbone.network.bn1.weight.requires_grad


def test_frozen_norm_equals_batch_norm_in_evaluation():
    torch.manual_seed(0)
    batch_norm = nn.BatchNorm2d(7, eps=1e-3).eval()
    for tensor in (batch_norm.weight, batch_norm.bias, batch_norm.running_mean, batch_norm.running_var):
        tensor.data.uniform_(0.2, 1.7)
    frozen = FrozenBatchNorm(7, 1e-3, nn.ReLU6())
    frozen.load_state_dict({key: value for key, value in batch_norm.state_dict().items() if value.ndim})
    features = torch.randn(2, 7, 3, 5)
    expected = nn.functional.relu6(batch_norm(features))
    torch.testing.assert_close(frozen(features), expected, atol=1e-6, rtol=1e-5)
    assert frozen(features.bfloat16()).dtype == torch.bfloat16


def test_fresh_frozen_norm_is_the_identity():
    features = torch.randn(2, 5, 3, 3)
    torch.testing.assert_close(FrozenBatchNorm(5, 1e-5, nn.Identity())(features), features)


@pytest.mark.parametrize("name", ["resnet50", "convnext_atto", "tf_efficientnet_lite0"])
def test_drop_path_reaches_the_network(name):
    def rates(config: BackboneConfig) -> list[float]:
        modules = build_backbone(config).modules()
        return [module.drop_prob for module in modules if type(module).__name__ == "DropPath"]

    assert max(rates(BackboneConfig(name=name, drop_path_rate=0.3))) > 0.2
    assert max(rates(BackboneConfig(name=name)), default=0.0) == 0.0


def test_only_layers_that_are_used_are_held():
    names = " ".join(build_backbone(BackboneConfig(name="tf_efficientnet_lite0")).state_dict())
    assert "classifier" not in names
    assert "conv_head" not in names
    assert "fc." not in " ".join(build_backbone(BackboneConfig(name="resnet50")).state_dict())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BackboneConfig(name="reznet50"), "no backbone is called 'reznet50'; did you mean resnet50"),
        (BackboneConfig(name="swin_tinny"), "did you mean swin_tiny"),
        (BackboneConfig(name=""), "no backbone is called ''"),
        (BackboneConfig(name="hf-hub:someone/resnet50"), "no backbone is called"),
        (BackboneConfig(name="resnet50.nothing"), "gives no feature maps: Invalid pretrained tag"),
        (BackboneConfig(name="vit_tiny_patch16_224"), "has maps of stride 16; 4, 8, 16 and 32 are needed"),
        (BackboneConfig(name="swinv2_cr_tiny_ns_224"), "images of every size .* take swin_tiny"),
        (BackboneConfig(name="ghostnet_100", drop_path_rate=0.2), "timm cannot build .* 'drop_path_rate'"),
        (BackboneConfig(name="swin_tiny", drop_path_rate=1.0), "less than 1; got 1.0"),
    ],
)
def test_what_cannot_be_built_is_said(config, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build_backbone(config)
    assert caught.value.path.startswith("model.backbone.")
