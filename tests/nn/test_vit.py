"""The Vision Transformer beside timm's, of the same weights; positions; attention that is restricted."""

import re

import pytest
import timm
import torch
from torch import Tensor, nn

from unimask.config.models import VisionTransformerConfig
from unimask.models.build_eomt import build_vision_transformer
from unimask.nn.vit import RotaryPositions, VisionTransformer, unrotated

TINY = {"channels": 48, "blocks": 3, "heads": 4, "feedforward_channels": 192}


def renamed(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of timm under our names."""
    names = [
        ("patch_embed.proj", "patches"),
        ("cls_token", "class_token"),
        ("reg_token", "registers"),
        ("pos_embed", "positions.embedding"),
        (r"(blocks\.\d+)\.norm1", r"\1.attention_residual.norm"),
        (r"(blocks\.\d+)\.attn\.qkv", r"\1.attention.inputs"),
        (r"(blocks\.\d+)\.attn\.q_bias", r"\1.attention.inputs.query_bias"),
        (r"(blocks\.\d+)\.attn\.v_bias", r"\1.attention.inputs.value_bias"),
        (r"(blocks\.\d+)\.attn\.proj", r"\1.attention.output"),
        (r"(blocks\.\d+)\.(ls1\.gamma|gamma_1)", r"\1.attention_residual.scale"),
        (r"(blocks\.\d+)\.norm2", r"\1.feedforward_residual.norm"),
        (r"(blocks\.\d+)\.mlp\.fc1\.", r"\1.feedforward.expand."),
        (r"(blocks\.\d+)\.mlp\.fc2", r"\1.feedforward.contract"),
        (r"(blocks\.\d+)\.(ls2\.gamma|gamma_2)", r"\1.feedforward_residual.scale"),
    ]
    found = {}
    for key, tensor in theirs.items():
        if ".fc1_x." in key:
            continue
        if ".fc1_g." in key:
            tensor = torch.cat((tensor, theirs[key.replace("fc1_g", "fc1_x")]))
            key = key.replace("fc1_g", "fc1")
        for pattern, name in names:
            key = re.sub(f"^{pattern}", name, key)
        found[key] = tensor
    return found


def perturbed(model: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            centre = 1.0 if parameter.ndim == 1 and not name.endswith("bias") else 0.0
            scale = 0.3 if parameter.ndim == 1 else 1 / parameter[0].numel() ** 0.5
            parameter.copy_(centre + scale * noise)
    return model.eval()


def dinov2() -> tuple[nn.Module, VisionTransformer]:
    theirs = timm.create_model(
        "vit_small_patch14_reg4_dinov2",
        img_size=96,
        patch_size=16,
        embed_dim=48,
        depth=3,
        num_heads=4,
        num_classes=0,
    )
    return theirs, build_vision_transformer(VisionTransformerConfig(**TINY, size=96))


def dinov3() -> tuple[nn.Module, VisionTransformer]:
    theirs = timm.create_model(
        "vit_tiny_patch16_dinov3_qkvb",
        embed_dim=48,
        depth=3,
        num_heads=4,
        num_classes=0,
        dynamic_img_size=True,
    )
    return theirs, build_vision_transformer(VisionTransformerConfig(**TINY, kind="dinov3"))


def giant() -> tuple[nn.Module, VisionTransformer]:
    """DINOv2 g, whose feed-forwards have gates; they are hidden in one layer with the values."""
    theirs = timm.create_model(
        "vit_giant_patch14_reg4_dinov2",
        img_size=96,
        patch_size=16,
        embed_dim=48,
        depth=3,
        num_heads=4,
        num_classes=0,
    )
    hidden = theirs.blocks[0].mlp.fc2.in_features
    gated = {**TINY, "feedforward_channels": hidden, "gated": True}
    return theirs, build_vision_transformer(VisionTransformerConfig(**gated, size=96))


def small_plus() -> tuple[nn.Module, VisionTransformer]:
    """DINOv3 S+, whose gates and values lie apart; its queries and values have a bias in our model, of 0."""
    theirs = timm.create_model(
        "vit_small_plus_patch16_dinov3_qkvb",
        embed_dim=48,
        depth=3,
        num_heads=4,
        num_classes=0,
        dynamic_img_size=True,
    )
    hidden = theirs.blocks[0].mlp.fc2.in_features
    gated = {**TINY, "feedforward_channels": hidden, "gated": True}
    return theirs, build_vision_transformer(VisionTransformerConfig(**gated, kind="dinov3"))


@pytest.mark.parametrize(
    ("models", "size"),
    [(dinov2, (96, 96)), (dinov3, (96, 96)), (dinov3, (64, 112)), (giant, (96, 96)), (small_plus, (96, 96))],
    ids=["dinov2", "dinov3", "dinov3-wide", "giant", "small plus"],
)
def test_the_trunk_is_that_of_timm(models, size: tuple[int, int]) -> None:
    theirs, ours = models()
    perturbed(theirs, 1)
    ours.load_state_dict(renamed(theirs.state_dict()))
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected, found = theirs.forward_features(pixels), ours.eval()(pixels)
    assert found.shape == (2, 5 + size[0] * size[1] // 256, 48)
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_recomputing_changes_neither_values_nor_gradients() -> None:
    config = VisionTransformerConfig(**TINY, kind="dinov3")
    plain = perturbed(build_vision_transformer(config), 3)
    other = build_vision_transformer(VisionTransformerConfig(**TINY, kind="dinov3", recompute=True))
    other.load_state_dict(plain.state_dict())
    tokens = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(4))
    visible = torch.rand(2, 3, 9, generator=torch.Generator().manual_seed(5)) > 0.5
    visible[..., 0] = True
    gradients = []
    for model in (plain, other):
        model.zero_grad()
        given = tokens.clone().requires_grad_()
        result = model.run(model.blocks[0], given, unrotated, visible)
        result.square().sum().backward()
        gradients.append((result.detach(), given.grad, model.blocks[0].attention.inputs.weight.grad))
    for one, two in zip(*gradients, strict=True):
        assert torch.equal(one, two)


def test_restricted_tokens_attend_to_what_is_visible_and_others_to_all() -> None:
    attention = perturbed(build_vision_transformer(VisionTransformerConfig(**TINY)), 6).blocks[0].attention
    tokens = torch.randn(1, 7, 48, generator=torch.Generator().manual_seed(7))
    visible = torch.tensor([[[1, 1, 0, 0, 1, 0, 0], [0, 1, 1, 1, 1, 1, 1]]], dtype=torch.bool)
    found = attention(tokens, unrotated, visible)
    assert torch.allclose(found[:, 2:], attention(tokens, unrotated, None)[:, 2:], atol=1e-6)
    changed = tokens.clone()
    changed[:, [2, 3, 5, 6]] += 1.0
    again = attention(changed, unrotated, visible)
    assert torch.allclose(again[:, 0], found[:, 0], atol=1e-6)
    assert not torch.allclose(again[:, 1], found[:, 1], atol=1e-2)


def test_images_of_other_sizes_are_refused() -> None:
    model = build_vision_transformer(VisionTransformerConfig(**TINY, size=96))
    with pytest.raises(ValueError, match=r"learned for \(6, 6\) patches .* not \(6, 7\)"):
        model(torch.zeros(1, 3, 96, 112))
    with pytest.raises(ValueError, match="multiples of 16, not 96 x 100"):
        model(torch.zeros(1, 3, 96, 100))


def test_a_scale_multiplies_the_angles_of_rotary_positions() -> None:
    positions = RotaryPositions(16)
    patches = torch.zeros(1, 12, 32)
    _, once = positions(patches, (3, 4))
    _, twice = positions(patches, (3, 4), torch.tensor([2.0]))
    torch.testing.assert_close(twice.cos, 2 * once.cos**2 - 1, atol=1e-5, rtol=0)
    torch.testing.assert_close(twice.sin, 2 * once.sin * once.cos, atol=1e-5, rtol=0)
