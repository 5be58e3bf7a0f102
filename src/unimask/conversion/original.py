"""The original releases (facebookresearch/Mask2Former, MaskFormer and detr): their names, in both directions.

Source: the keys of their state dicts.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from unimask.config.images import Experiment
from unimask.config.models import AnyModelConfig, DetrConfig, EomtConfig, ModelConfig
from unimask.conversion import eomt
from unimask.conversion.architecture import (
    DEEPLABS,
    DETR_WITHOUT_TRACE,
    HEADS,
    MASKS_WITHOUT_TRACE,
    Stated,
    infer_detr,
    infer_mask2former,
    infer_maskformer,
)
from unimask.conversion.checkpoint_format import (
    CheckpointFormat,
    class_weights,
    no_constants,
    relative_positions,
)
from unimask.conversion.layers import (
    DEFORMABLE_ATTENTION,
    LEVELS,
    TORCH_ENCODER,
    modules,
    packed_attention,
    torch_decoder_layer,
    torch_encoder_layer,
)
from unimask.conversion.rules import Rule, prefixed
from unimask.errors import WeightsError
from unimask.presets.maskformer import maskformer_model

TITLE = "the original release"
_PIXEL = "sem_seg_head.pixel_decoder"
_PREDICTOR = "sem_seg_head.predictor"
_LAYER = "query_decoder.layers.{layer}"

# backbones of detectron2

_STEM = (
    Rule("backbone.network.conv1.weight", "backbone.stem.conv1.weight"),
    Rule("backbone.network.bn1.{parameter}", "backbone.stem.conv1.norm.{parameter}"),
)
_DEEP_STEM = tuple(  # of three convolutions; the last norm has our name of the only norm of the other stem
    rule
    for number, (convolution, norm) in enumerate((("0", "conv1.1"), ("3", "conv1.4"), ("6", "bn1")), start=1)
    for rule in (
        Rule(f"backbone.network.conv1.{convolution}.weight", f"backbone.stem.conv{number}.weight"),
        Rule(f"backbone.network.{norm}.{{parameter}}", f"backbone.stem.conv{number}.norm.{{parameter}}"),
    )
)
_RESNET = tuple(  # without its stem
    Rule(f"backbone.network.layer{stage}.{{block}}.{ours}", f"backbone.res{stage + 1}.{{block}}.{theirs}")
    for stage in range(1, 5)
    for ours, theirs in (
        ("conv{number}.weight", "conv{number}.weight"),
        ("bn{number}.{parameter}", "conv{number}.norm.{parameter}"),
        ("downsample.0.weight", "shortcut.weight"),
        ("downsample.1.{parameter}", "shortcut.norm.{parameter}"),
    )
)
_OUR_BLOCK, _BLOCK = "backbone.stages.{stage}.blocks.{block}", "backbone.layers.{stage}.blocks.{block}"
SWIN = (
    *modules("backbone.patch_embedding", "backbone.patch_embed", {"projection": "proj", "norm": "norm"}),
    *modules(
        _OUR_BLOCK,
        _BLOCK,
        {
            "attention_norm": "norm1",
            "feedforward_norm": "norm2",
            "attention.query_key_value": "attn.qkv",
            "attention.projection": "attn.proj",
            "feedforward.expand": "mlp.fc1",
            "feedforward.contract": "mlp.fc2",
        },
    ),
    Rule(f"{_OUR_BLOCK}.attention.position_bias", f"{_BLOCK}.attn.relative_position_bias_table"),
    *modules(
        "backbone.merges.{stage}",
        "backbone.layers.{stage}.downsample",
        {"norm": "norm", "reduction": "reduction"},
    ),
    Rule("backbone.output_norms.{stage}.{parameter}", "backbone.norm{stage}.{parameter}"),
)
_BODIES = (*_RESNET, *SWIN)

# pixel and query decoders of detectron2


def _convolution(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Return rules for a convolution without a bias, and its norm."""
    return (
        Rule(f"pixel_decoder.{ours}.convolution.weight", f"{_PIXEL}.{theirs}.weight"),
        *modules(f"pixel_decoder.{ours}", f"{_PIXEL}.{theirs}", {"norm": "norm"}),
    )


_HEADS = (
    *modules("pixel_decoder", _PIXEL, {"mask_features": "mask_features"}),
    Rule("query_decoder.query_positions.weight", f"{_PREDICTOR}.query_embed.weight"),
    *modules(
        "query_decoder.heads",
        _PREDICTOR,
        {"classes": "class_embed", "mask_embedding.layers.{number}": "mask_embed.layers.{number}"},
    ),
)
_MASK2FORMER_DECODERS = (
    *modules(
        "pixel_decoder.projections",
        f"{_PIXEL}.input_proj",
        {
            f"{stride}.{ours}": f"{level}.{theirs}"
            for stride, level in LEVELS.items()
            for theirs, ours in enumerate(("convolution", "norm"))
        },
    ),
    Rule("pixel_decoder.encoder.level_embedding", f"{_PIXEL}.transformer.level_embed"),
    *modules(
        "pixel_decoder.encoder.layers.{layer}",
        f"{_PIXEL}.transformer.encoder.layers.{{layer}}",
        DEFORMABLE_ATTENTION | TORCH_ENCODER,
    ),
    *_convolution("laterals.4", "adapter_1"),
    *_convolution("fusions.4", "layer_1"),
    *(
        rule
        for ours, theirs, module in (
            ("cross", "transformer_cross_attention_layers", "multihead_attn"),
            ("self", "transformer_self_attention_layers", "self_attn"),
        )
        for rule in (
            *packed_attention(f"{_LAYER}.{ours}.attention", f"{_PREDICTOR}.{theirs}.{{layer}}.{module}"),
            *modules(f"{_LAYER}.{ours}", f"{_PREDICTOR}.{theirs}.{{layer}}", {"residual.norm": "norm"}),
        )
    ),
    *modules(
        f"{_LAYER}.feedforward",
        f"{_PREDICTOR}.transformer_ffn_layers.{{layer}}",
        {"update.expand": "linear1", "update.contract": "linear2", "residual.norm": "norm"},
    ),
    *modules(
        "query_decoder",
        _PREDICTOR,
        {
            "norm": "decoder_norm",
            **{f"projections.{stride}": f"input_proj.{level}" for stride, level in LEVELS.items()},
        },
    ),
    Rule("query_decoder.query_features.weight", f"{_PREDICTOR}.query_feat.weight"),
    Rule("query_decoder.level_embedding.weight", f"{_PREDICTOR}.level_embed.weight"),
    *_HEADS,
)
_MASKFORMER_DECODERS = (
    *modules("pixel_decoder.encoder", _PIXEL, {"projection": "input_proj"}),
    *torch_encoder_layer(
        "pixel_decoder.encoder.encoder.layers.{layer}", f"{_PIXEL}.transformer.encoder.layers.{{layer}}"
    ),
    *_convolution("entry", "layer_4"),
    *(
        rule
        for stride, level in ((16, 3), (8, 2), (4, 1))
        for ours, theirs in (("laterals", "adapter"), ("fusions", "layer"))
        for rule in _convolution(f"{ours}.{stride}", f"{theirs}_{level}")
    ),
    *torch_decoder_layer(_LAYER, f"{_PREDICTOR}.transformer.decoder.layers.{{layer}}"),
    *modules(
        "query_decoder",
        _PREDICTOR,
        {"projections.32": "input_proj", "norm": "transformer.decoder.norm"},
    ),
    *_HEADS,
)

# DETR


def torchvision_resnet(theirs: str) -> tuple[Rule, ...]:
    """Return rules for DETR's ResNet, which has torchvision's names below `theirs`, as ours has."""
    block = "layer{stage}.{block}"
    names = (
        "conv1",
        "bn1",
        f"{block}.conv{{number}}",
        f"{block}.bn{{number}}",
        f"{block}.downsample.{{part}}",
    )
    return modules("backbone.network", theirs, {name: name for name in names})


DETR_MASK_HEAD = (
    *modules("attention", "bbox_attention", {"query": "q_linear", "key": "k_linear"}),
    *modules(
        "pyramid",
        "mask_head",
        {
            "mask": "out_lay",
            **{
                f"{ours}.{index}": f"{theirs}{index + 1}"
                for ours, theirs, count in (
                    ("convolutions", "lay", 5),
                    ("norms", "gn", 5),
                    ("adapters", "adapter", 3),
                )
                for index in range(count)
            },
        },
    ),
)
"""Of the panoptic models; files of transformers have these names too."""

_DETECTOR = (
    *torchvision_resnet("backbone.0.body"),
    Rule("projection.{parameter}", "input_proj.{parameter}"),
    *torch_encoder_layer("encoder.layers.{layer}", "transformer.encoder.layers.{layer}"),
    *torch_decoder_layer(_LAYER, "transformer.decoder.layers.{layer}"),
    Rule("query_decoder.norm.{parameter}", "transformer.decoder.norm.{parameter}"),
    Rule("query_decoder.query_positions.weight", "query_embed.weight"),
    Rule("query_decoder.heads.classes.{parameter}", "class_embed.{parameter}"),
    Rule("query_decoder.heads.boxes.layers.{number}.{parameter}", "bbox_embed.layers.{number}.{parameter}"),
)


def _constants(tensors: Mapping[str, Tensor], experiment: Experiment) -> dict[str, Tensor]:
    classes = tensors[f"{_PREDICTOR}.class_embed.bias"]
    return class_weights(classes, experiment.losses.no_object_weight) | relative_positions(tensors)


_DETR_FIXED: Mapping[str, object] = {"pre_norm": False, "position_embedding": "sine"}


def stated_by_detr(arguments: Mapping[str, object], path: Path) -> Stated:
    """Return the settings in the arguments of a training checkpoint of DETR.

    Raises:
        WeightsError: they ask for what our DETR does not have.
    """
    for key, value in _DETR_FIXED.items():
        if arguments.get(key, value) not in (value, {"sine": "v2"}.get(str(value))):
            raise WeightsError(path, f"args.{key} is {arguments[key]!r}; only {value!r} can be converted")
    heads, dropout = arguments.get("nheads", HEADS), arguments.get("dropout", Stated().dropout)
    if type(heads) is not int or heads < 1:
        raise WeightsError(path, f"args.nheads is {heads!r}; it must be a number of attention heads")
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise WeightsError(path, f"args.dropout is {dropout!r}; it must be from 0 to below 1")
    return Stated(heads=heads, dropout=float(dropout), dilated=bool(arguments.get("dilation")))


def old_name(key: str) -> str:
    """Return the key before the second version of the head, as files without versions have it."""
    return key.replace(f"{_PIXEL}.", "sem_seg_head.").replace(".query_feat.", ".static_query.")


MASK2FORMER = CheckpointFormat(
    title=TITLE,
    model="Mask2Former",
    rules=(*_STEM, *_BODIES, *_MASK2FORMER_DECODERS),
    aliases=(
        (r"^module\.", ""),  # saved from a model wrapped for several devices
        (r"\.static_query\.", ".query_feat."),  # before the first release
        # before the second version of the head
        (r"^sem_seg_head\.(?!predictor\.|pixel_decoder\.)", f"{_PIXEL}."),
    ),
    not_weights=(
        r"criterion\.empty_weight|pixel_mean|pixel_std"
        r"|backbone\.layers\.\d+\.blocks\.\d+\.attn\.relative_position_index"
    ),
    infer=infer_mask2former,
    constants=_constants,
    usual=ModelConfig(),
    fixed=MASKS_WITHOUT_TRACE,
    versions={"sem_seg_head": {"version": 2}, "sem_seg_head.predictor": {"version": 2}},
)
MASKFORMER = replace(
    MASK2FORMER,
    model="MaskFormer",
    rules=(*_STEM, *_BODIES, *_MASKFORMER_DECODERS),
    infer=infer_maskformer,
    usual=maskformer_model("resnet50", encoder_layers=0),
    fixed=(*MASKS_WITHOUT_TRACE, "query_decoder.heads"),
)
MASKFORMER_DEEP_STEM = replace(
    MASKFORMER,
    rules=(*_DEEP_STEM, *_BODIES, *_MASKFORMER_DECODERS),
)
DETR = CheckpointFormat(
    title=TITLE,
    model="DETR",
    rules=(*_DETECTOR, *prefixed(_DETECTOR, "detr."), *DETR_MASK_HEAD),
    aliases=((r"^module\.", ""),),
    not_weights=r"(detr\.)?backbone\.0\.body\..*\.num_batches_tracked",
    infer=infer_detr,
    constants=no_constants,
    usual=DetrConfig(),
    fixed=DETR_WITHOUT_TRACE,
    versions={},
)
_FORMATS: Mapping[str, CheckpointFormat] = {
    eomt.DIFFERENCES: eomt.ORIGINAL_DINOV3,
    r"network\.encoder\.backbone\..*": eomt.ORIGINAL_DINOV2,
    r"(.*\.)?bbox_embed\.layers\.0\.weight": DETR,
    r"backbone\.stem\.conv3\.weight": MASKFORMER_DEEP_STEM,
    r"sem_seg_head\.predictor\.transformer\..*": MASKFORMER,
}
"""Signature (a regular expression) -> format; it matches a key that files of later formats do not have."""


def format_of(keys: Iterable[str]) -> CheckpointFormat:
    """Return the format whose signature is among the keys of a file; Mask2Former's where there is none."""
    names = [re.sub(r"^module\.", "", key) for key in keys]
    known = (
        found for signature, found in _FORMATS.items() if any(re.fullmatch(signature, name) for name in names)
    )
    return next(known, MASK2FORMER)


def format_for(model: AnyModelConfig) -> CheckpointFormat:
    """Return the format of a model in its original release.

    Raises:
        WeightsError: there is no release of this kind.
    """
    if isinstance(model, EomtConfig):
        if model.backbone.kind == "dinov3":
            reason = "the original release keeps differences to Meta's DINOv3 only; take --to transformers"
            raise WeightsError(model.backbone.name, reason)
        return eomt.ORIGINAL_DINOV2
    if isinstance(model, DetrConfig):
        return DETR
    if model.pixel_decoder.kind == "deformable":
        return MASK2FORMER
    return MASKFORMER_DEEP_STEM if model.backbone.name in DEEPLABS.values() else MASKFORMER
