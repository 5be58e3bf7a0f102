"""Tiny random EoMT models of transformers, and ours of the same weights."""

import re
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import (
    EomtConfig as TheirConfig,
)
from transformers import (
    EomtDinov3Config,
    EomtDinov3ForUniversalSegmentation,
    EomtForUniversalSegmentation,
)

from unimask.config.models import EomtConfig, VisionTransformerConfig

CLASSES = 6
SIZE = 96
Kind = Literal["dinov2", "dinov3"]


def our_config(
    kind: Kind, attention: str = "masked", queries: int = 11, *, gated: bool = False
) -> EomtConfig:
    backbone = VisionTransformerConfig(
        kind=kind,
        channels=48,
        blocks=5,
        heads=4,
        feedforward_channels=128 if gated else 192,
        gated=gated,
        size=SIZE,
    )
    return EomtConfig(backbone=backbone, queries=queries, query_blocks=3, attention=attention)


def their_model(
    kind: Kind, seed: int, probability: float, queries: int = 11, *, gated: bool = False
) -> nn.Module:
    """In eval mode, with noise in every parameter; `probability` is that of every mask."""
    shared = {
        "hidden_size": 48,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "num_blocks": 3,
        "num_queries": queries,
        "num_labels": CLASSES,
        "pos_embed_rescale": None,
    }
    if kind == "dinov3":
        assert not gated, "where it has gates, transformers gives the heads another activation, too"
        config = EomtDinov3Config(**shared, intermediate_size=192, layer_norm_eps=1e-5)
        model = EomtDinov3ForUniversalSegmentation(config)
    else:
        shared.pop("pos_embed_rescale")
        model = EomtForUniversalSegmentation(TheirConfig(**shared, use_swiglu_ffn=gated))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            centre = 1.0 if parameter.ndim == 1 and not name.endswith("bias") else 0.0
            scale = 0.3 if parameter.ndim == 1 else 1 / parameter[0].numel() ** 0.5
            parameter.copy_(centre + scale * noise)
        model.query.weight.mul_(model.query.weight.shape[1] ** 0.5)
        model.attn_mask_probs.fill_(probability)
    return model.eval()


NAMES = [
    ("embeddings.cls_token", "backbone.class_token"),
    ("embeddings.register_tokens", "backbone.registers"),
    (r"embeddings.patch_embeddings(\.projection)?\.", "backbone.patches."),
    ("embeddings.position_embeddings.weight", "backbone.positions.embedding"),
    (r"layers\.(\d+)\.norm1", r"backbone.blocks.\1.attention_residual.norm"),
    (r"layers\.(\d+)\.layer_scale1.lambda1", r"backbone.blocks.\1.attention_residual.scale"),
    (r"layers\.(\d+)\.norm2", r"backbone.blocks.\1.feedforward_residual.norm"),
    (r"layers\.(\d+)\.layer_scale2.lambda1", r"backbone.blocks.\1.feedforward_residual.scale"),
    (r"layers\.(\d+)\.attention\.(out|o)_proj", r"backbone.blocks.\1.attention.output"),
    (r"layers\.(\d+)\.mlp\.(fc1|up_proj)", r"backbone.blocks.\1.feedforward.expand"),
    (r"layers\.(\d+)\.mlp\.(fc2|down_proj)", r"backbone.blocks.\1.feedforward.contract"),
    ("layernorm", "backbone.norm"),
    ("query.weight", "queries.weight"),
    ("class_predictor", "heads.classes"),
    (r"mask_head\.fc1", "heads.mask_embedding.layers.0"),
    (r"mask_head\.fc2", "heads.mask_embedding.layers.1"),
    (r"mask_head\.fc3", "heads.mask_embedding.layers.2"),
    (r"upscale_block\.block\.(\d)\.conv1", r"upscaling.\1.expand"),
    (r"upscale_block\.block\.(\d)\.conv2", r"upscaling.\1.mix"),
    (r"upscale_block\.block\.(\d)\.layernorm2d", r"upscaling.\1.norm"),
]


def our_names(theirs: dict[str, Tensor], kind: Kind) -> dict[str, Tensor]:
    """A state dict of transformers under our names, written down apart from the importer."""
    found: dict[str, Tensor] = {}
    for key, tensor in theirs.items():
        if "_proj" in key and key.split(".")[-2][0] in "kv":
            continue
        if key in ("attn_mask_probs", "criterion.empty_weight"):
            continue
        if "q_proj" in key:
            parts = {part: theirs.get(key.replace("q_proj", f"{part}_proj")) for part in "qkv"}
            block = f"backbone.blocks.{key.split('.')[1]}.attention.inputs"
            if key.endswith("weight") or kind == "dinov2":
                found[f"{block}.{key.split('.')[-1]}"] = torch.cat(list(parts.values()))
            else:
                found[f"{block}.query_bias"], found[f"{block}.value_bias"] = parts["q"], parts["v"]
            continue
        for pattern, name in NAMES:
            key = re.sub(f"^{pattern}", name, key)
        found[key] = tensor[None] if key == "backbone.positions.embedding" else tensor
    return found
