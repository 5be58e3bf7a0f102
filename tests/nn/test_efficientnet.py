"""EfficientNet-Lite is timm's, to the last bit."""

import pytest
import timm
import torch
from timm.layers import AvgPool2dSame, Conv2dSame

from unimask.config.models import BackboneConfig
from unimask.models.backbones import EFFICIENTNETS, NetworkBackbone, build_backbone
from unimask.nn.same import SameAveragePool, SameConvolution


@pytest.mark.parametrize("name", EFFICIENTNETS)
def test_every_variant_has_the_parameters_of_timm(name: str) -> None:
    with torch.device("meta"):
        ours = build_backbone(BackboneConfig(name=name, freeze_norm=False))
        theirs = timm.create_model(name, features_only=True)
    assert isinstance(ours, NetworkBackbone)
    assert {k: v.shape for k, v in ours.network.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    assert list(ours.channels.values()) == theirs.feature_info.channels()[1:]


@pytest.mark.parametrize("train", [False, True])
def test_maps_are_those_of_timm(train: bool) -> None:
    name, rate = "tf_efficientnet_lite1", 0.5
    ours = build_backbone(BackboneConfig(name=name, freeze_norm=False, drop_path_rate=rate)).train(train)
    theirs = timm.create_model(name, features_only=True, drop_path_rate=rate).train(train)
    assert isinstance(ours, NetworkBackbone)
    ours.network.load_state_dict(theirs.state_dict())
    pixels = torch.randn(2, 3, 97, 131)
    torch.manual_seed(1)  # which branches are dropped
    maps = ours(pixels)
    torch.manual_seed(1)
    for one, other in zip(maps.values(), theirs(pixels)[1:], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(3, 2, 1), (5, 2, 1), (3, 1, 2), (7, 4, 1), (1, 2, 1)]
)
@pytest.mark.parametrize("size", [(32, 64), (33, 47), (1, 5)])
def test_same_padding_is_timms(kernel: int, stride: int, dilation: int, size: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, *size)
    ours = SameConvolution(3, 5, kernel, stride, dilation=dilation)
    theirs = Conv2dSame(3, 5, kernel, stride, dilation=dilation)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(maps), theirs(maps))
    pool = SameAveragePool(kernel, stride, ceil_mode=True, count_include_pad=False)
    their_pool = AvgPool2dSame(kernel, stride, ceil_mode=True, count_include_pad=False)
    assert torch.equal(pool(maps), their_pool(maps))
