"""EoMT: the names of its original release (tue-mps/eomt) and of transformers, and those of timm's backbones.

Models from DINOv3 have other names than those from DINOv2 in both. The files of the original hold differences
to Meta's weights of DINOv3, which may not be passed on: `with_base` adds them.

Source: the keys of their state dicts.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from unimask.checkpoints.tensors import check_numbers
from unimask.config.images import Experiment
from unimask.config.models import EomtConfig, VisionTransformerConfig
from unimask.conversion.architecture import Stated, count_keys
from unimask.conversion.checkpoint_format import CheckpointFormat, class_weights
from unimask.conversion.layers import modules
from unimask.conversion.rules import Rule, to_ours
from unimask.errors import WeightsError
from unimask.presets.eomt import Weights, published_model

HEAD_CHANNELS = 64  # of every published model; no tensor shows it
CHANCES = ("network.attn_mask_probs", "attn_mask_probs")  # of a query to keep its mask, per block
DIFFERENCES = r"network\.encoder\.backbone\.patch_embed\.cls_token"
"""Signature of a file of the original that holds differences to DINOv3."""

_ORIGINAL = "network.encoder.backbone"
_BLOCK = "backbone.blocks.{block}"
_SPLIT = ("q", "k", "v")


def _block(
    theirs: str, output: str, expand: str | tuple[str, ...], contract: str, scales: tuple[str, str]
) -> tuple[Rule, ...]:
    """Return all of a block but the projections to queries, keys and values.

    `expand` are the projections to gates and to values where they lie apart.
    """
    parts = (expand,) if isinstance(expand, str) else expand
    return (
        Rule(
            f"{_BLOCK}.feedforward.expand.{{parameter}}",
            tuple(f"{theirs}.{part}.{{parameter}}" for part in parts),
        ),
        *modules(
            _BLOCK,
            theirs,
            {
                "attention_residual.norm": "norm1",
                "attention.output": output,
                "feedforward_residual.norm": "norm2",
                "feedforward.contract": contract,
            },
        ),
        Rule(f"{_BLOCK}.attention_residual.scale", f"{theirs}.{scales[0]}"),
        Rule(f"{_BLOCK}.feedforward_residual.scale", f"{theirs}.{scales[1]}"),
    )


def _timm_body(prefix: str, scales: tuple[str, str]) -> tuple[Rule, ...]:
    theirs = f"{prefix}blocks.{{block}}"
    return (
        Rule("backbone.patches.{parameter}", f"{prefix}patch_embed.proj.{{parameter}}"),
        Rule("backbone.norm.{parameter}", f"{prefix}norm.{{parameter}}"),
        Rule("backbone.class_token", f"{prefix}cls_token"),
        Rule("backbone.registers", f"{prefix}reg_token"),
        *_block(theirs, "attn.proj", "mlp.fc1", "mlp.fc2", scales),
    )


def _timm_dinov2(prefix: str) -> tuple[Rule, ...]:
    theirs = f"{prefix}blocks.{{block}}"
    return (
        *_timm_body(prefix, ("ls1.gamma", "ls2.gamma")),
        Rule("backbone.positions.embedding", f"{prefix}pos_embed"),
        Rule(f"{_BLOCK}.attention.inputs.{{parameter}}", f"{theirs}.attn.qkv.{{parameter}}"),
    )


TIMM_DINOV2 = _timm_dinov2("")
TIMM_DINOV3 = (
    *_timm_body("", ("gamma_1", "gamma_2")),
    Rule(  # S+
        f"{_BLOCK}.feedforward.expand.{{parameter}}",
        ("blocks.{block}.mlp.fc1_g.{parameter}", "blocks.{block}.mlp.fc1_x.{parameter}"),
    ),
    Rule(f"{_BLOCK}.attention.inputs.weight", "blocks.{block}.attn.qkv.weight"),
    Rule(f"{_BLOCK}.attention.inputs.query_bias", "blocks.{block}.attn.q_bias"),
    Rule(f"{_BLOCK}.attention.inputs.value_bias", "blocks.{block}.attn.v_bias"),
)


_GATED = ("mlp.gate_proj", "mlp.up_proj")
_SCALES = ("layer_scale1.lambda1", "layer_scale2.lambda1")


def _transformers_dinov3(blocks: str, embeddings: str, norm: str) -> tuple[Rule, ...]:
    """Return the backbone of DINOv3 as transformers names it, which the original takes over."""
    theirs = f"{blocks}.{{block}}"
    return (
        Rule("backbone.class_token", f"{embeddings}.cls_token"),
        Rule("backbone.registers", f"{embeddings}.register_tokens"),
        Rule("backbone.patches.{parameter}", f"{embeddings}.patch_embeddings.{{parameter}}"),
        Rule("backbone.norm.{parameter}", f"{norm}.{{parameter}}"),
        Rule(
            f"{_BLOCK}.attention.inputs.weight",
            tuple(f"{theirs}.attention.{part}_proj.weight" for part in _SPLIT),
        ),
        Rule(f"{_BLOCK}.attention.inputs.query_bias", f"{theirs}.attention.q_proj.bias"),
        Rule(f"{_BLOCK}.attention.inputs.value_bias", f"{theirs}.attention.v_proj.bias"),
        *_block(
            theirs,
            "attention.o_proj",
            "mlp.up_proj",
            "mlp.down_proj",
            _SCALES,
        ),
    )


_ORIGINAL_HEADS = (
    Rule("queries.weight", "network.q.weight"),
    Rule("heads.classes.{parameter}", "network.class_head.{parameter}"),
    *modules(
        "heads.mask_embedding.layers", "network.mask_head", {str(layer): str(2 * layer) for layer in range(3)}
    ),
    *modules(
        "upscaling.{step}", "network.upscale.{step}", {"expand": "conv1", "mix": "conv2", "norm": "norm"}
    ),
)
_TRANSFORMERS_HEADS = (
    Rule("queries.weight", "query.weight"),
    Rule("heads.classes.{parameter}", "class_predictor.{parameter}"),
    *modules(
        "heads.mask_embedding.layers", "mask_head", {str(layer): f"fc{layer + 1}" for layer in range(3)}
    ),
    *modules(
        "upscaling.{step}",
        "upscale_block.block.{step}",
        {"expand": "conv1", "mix": "conv2", "norm": "layernorm2d"},
    ),
)
_TRANSFORMERS_DINOV2 = (
    Rule("backbone.class_token", "embeddings.cls_token"),
    Rule("backbone.registers", "embeddings.register_tokens"),
    Rule("backbone.positions.embedding", "embeddings.position_embeddings.weight", ours_batched=True),
    Rule("backbone.patches.{parameter}", "embeddings.patch_embeddings.projection.{parameter}"),
    Rule("backbone.norm.{parameter}", "layernorm.{parameter}"),
    *(
        Rule(
            f"{_BLOCK}.attention.inputs.{name}",
            tuple(f"layers.{{block}}.attention.{part}_proj.{name}" for part in _SPLIT),
        )
        for name in ("weight", "bias")
    ),
)


def with_chances(stated: Stated, tensors: Mapping[str, Tensor]) -> Stated:
    """Return what is stated with the chances of masks that a file holds, if it does."""
    chances = next((tensors[key] for key in CHANCES if key in tensors), None)
    if chances is None:
        return stated
    return replace(stated, mask_chances=tuple(float(chance) for chance in chances.flatten()))


def infer_eomt(tensors: Mapping[str, Tensor], stated: Stated, path: Path) -> tuple[EomtConfig, int]:
    """Return the settings of the EoMT of these tensors, under our names, and its number of classes.

    The chances of masks show how many blocks have queries, and whether predictions are masked; files without
    them are of a published model.

    Raises:
        WeightsError: masks are kept with a chance that is neither 0 nor 1, or heads do not divide the width.
        KeyError: a tensor that shows the architecture is missing.
    """
    kind: Weights = "dinov3" if "backbone.blocks.0.attention.inputs.query_bias" in tensors else "dinov2"
    channels, _, patch, _ = tensors["backbone.patches.weight"].shape
    blocks = count_keys(tensors, r"backbone\.blocks\.(\d+)\.attention\.inputs\.weight")
    size = stated.size or 640
    if kind == "dinov2":
        size = patch * round(tensors["backbone.positions.embedding"].shape[1] ** 0.5)
    chances = stated.mask_chances or (0.0,) * (3 if blocks < 24 else 4 if blocks < 40 else 5)
    if set(chances) not in ({0.0}, {1.0}):
        reason = "was saved in the middle of mask annealing, with chances that are neither 0 nor 1"
        raise WeightsError(path, f"{reason}: {', '.join(map(str, chances))}")
    heads = stated.heads or channels // HEAD_CHANNELS
    if not heads or channels % heads:
        raise WeightsError(path, f"has {channels} channels, which {heads} attention heads do not divide")
    hidden = tensors["backbone.blocks.0.feedforward.contract.weight"].shape[1]
    backbone = VisionTransformerConfig(
        name=_timm_name(kind, channels),
        kind=kind,
        channels=channels,
        blocks=blocks,
        heads=heads,
        feedforward_channels=hidden,
        gated=len(tensors["backbone.blocks.0.feedforward.expand.weight"]) == 2 * hidden,
        patch=patch,
        registers=tensors["backbone.registers"].shape[1],
        size=size,
        image_mean=stated.image_mean,
        image_std=stated.image_std,
    )
    model = EomtConfig(
        backbone=backbone,
        queries=len(tensors["queries.weight"]),
        query_blocks=len(chances),
        attention="masked" if chances[0] else "annealed",
    )
    return model, len(tensors["heads.classes.weight"]) - 1


def _timm_name(kind: Weights, channels: int) -> str:
    """Return timm's name of the weights that a training of a model of this width starts from."""
    names = ("small", "base", "large", "giant") if kind == "dinov2" else ("small", "base", "large")
    known = (published_model(name, 640, kind).backbone for name in names)
    return next((one.name for one in known if one.channels == channels), "unknown")


def _chances(experiment: Experiment) -> Tensor:
    model = experiment.model
    assert isinstance(model, EomtConfig)
    return torch.full((model.query_blocks,), float(model.attention == "masked"))


def _original_constants(tensors: Mapping[str, Tensor], experiment: Experiment) -> dict[str, Tensor]:
    backbone = experiment.model.backbone
    pixels = {"mean": backbone.image_mean, "std": backbone.image_std}
    return {
        "network.attn_mask_probs": _chances(experiment),
        **{
            f"network.encoder.pixel_{name}": torch.tensor(values).view(1, 3, 1, 1) / 255
            for name, values in pixels.items()
        },
        **class_weights(tensors["network.class_head.bias"], experiment.losses.no_object_weight),
    }


def _transformers_constants(tensors: Mapping[str, Tensor], experiment: Experiment) -> dict[str, Tensor]:
    weights = class_weights(tensors["class_predictor.bias"], experiment.losses.no_object_weight)
    return {"attn_mask_probs": _chances(experiment), **weights}


ORIGINAL_DINOV2 = CheckpointFormat(
    title="the original release",
    model="EoMT",
    rules=(*_timm_dinov2(f"{_ORIGINAL}."), *_ORIGINAL_HEADS),
    aliases=((r"^(network\.)_orig_mod\.", r"\1"),),  # saved from a compiled model
    not_weights=r"network\.attn_mask_probs|network\.encoder\.pixel_(mean|std)|criterion\.empty_weight",
    infer=infer_eomt,
    constants=_original_constants,
    usual=EomtConfig(),
    fixed=(),
    versions={},
)
ORIGINAL_DINOV3 = replace(
    ORIGINAL_DINOV2,
    model="EoMT from DINOv3",
    rules=(
        *_transformers_dinov3(f"{_ORIGINAL}.blocks", f"{_ORIGINAL}.patch_embed", f"{_ORIGINAL}.norm"),
        *_ORIGINAL_HEADS,
    ),
    not_weights=(
        rf"{ORIGINAL_DINOV2.not_weights}|{re.escape(_ORIGINAL)}\.(patch_embed\.mask_token|rope_embeddings\..*)"
    ),
)
"""Of models whose backbone is complete: `with_base` makes it so."""

TRANSFORMERS_DINOV2 = CheckpointFormat(
    title="Hugging Face transformers",
    model="EoMT",
    rules=(
        *_TRANSFORMERS_DINOV2,
        *_block("layers.{block}", "attention.out_proj", "mlp.fc1", "mlp.fc2", _SCALES),
        *_TRANSFORMERS_HEADS,
    ),
    aliases=(),
    not_weights=r"attn_mask_probs|criterion\.empty_weight",
    infer=infer_eomt,
    constants=_transformers_constants,
    usual=EomtConfig(),
    fixed=(),
    versions={},
)
TRANSFORMERS_DINOV3 = replace(
    TRANSFORMERS_DINOV2,
    model="EoMT from DINOv3",
    rules=(*_transformers_dinov3("layers", "embeddings", "layernorm"), *_TRANSFORMERS_HEADS),
    not_weights=rf"{TRANSFORMERS_DINOV2.not_weights}|embeddings\.mask_token",
    fixed=("backbone.gated",),  # where it has gates, the activations of its heads are others, too
)

TRANSFORMERS_DINOV2_GATED = replace(
    TRANSFORMERS_DINOV2,
    rules=(
        *_TRANSFORMERS_DINOV2,
        *_block("layers.{block}", "attention.out_proj", _GATED, "mlp.down_proj", _SCALES),
        *_TRANSFORMERS_HEADS,
    ),
)
_PACKED_GATES = (
    Rule(
        tuple(f"layers.{{block}}.{part}.{{parameter}}" for part in _GATED),
        "layers.{block}.mlp.weights_in.{parameter}",
    ),
    Rule("layers.{block}.mlp.down_proj.{parameter}", "layers.{block}.mlp.weights_out.{parameter}"),
)
"""Names of today -> those of files that earlier versions of transformers wrote."""


def with_gates_apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file of transformers under the names of today."""
    renamed = to_ours(tensors, _PACKED_GATES)
    return {key: tensors[key] for key in renamed.unknown} | renamed.tensors


_BASE_NAMES = (
    (r"^layer\.", f"{_ORIGINAL}.blocks."),
    (r"^model\.layer\.", f"{_ORIGINAL}.blocks."),
    (r"^norm\.", f"{_ORIGINAL}.norm."),
    (r"^embeddings\.", f"{_ORIGINAL}.patch_embed."),
)
"""Names of DINOv3 in transformers -> those of the same tensors in a file of the original."""


def with_base(
    tensors: Mapping[str, Tensor], base: Mapping[str, Tensor], base_path: Path
) -> dict[str, Tensor]:
    """Return the tensors of a file of the original with the backbone that its differences are to.

    Raises:
        WeightsError: a tensor is missing in the base, or has another shape: it is another backbone; or its
            numbers are no floats or not finite.
    """
    named: dict[str, Tensor] = {}
    for key, tensor in base.items():
        for expression, replacement in _BASE_NAMES:
            key = re.sub(expression, replacement, key)
        named[key] = tensor
    differing = [key for key in tensors if key.startswith(f"{_ORIGINAL}.")]
    missing = tuple(key for key in differing if key not in named)
    mismatched = tuple(key for key in differing if key in named and named[key].shape != tensors[key].shape)
    if missing or mismatched:
        raise WeightsError(
            base_path,
            "is not the DINOv3 that the differences are to; take that of its size, from transformers",
            missing=missing,
            mismatched=mismatched,
        )
    check_numbers({key: tensors[key] for key in differing}, named, base_path)
    complete = {key: named[key].to(tensors[key].dtype) + tensors[key] for key in differing}
    return {**tensors, **complete}
