"""Names of the original release (detectron2): rules in both directions, and what its files hold besides.

Source: `state_dict` keys of facebookresearch/Mask2Former.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from unimask.conversion.rules import Rule, substitute

_PIXEL = "sem_seg_head.pixel_decoder"
_PREDICTOR = "sem_seg_head.predictor"
_OUR_ENCODER = "pixel_decoder.encoder.layers.{layer}"
_ENCODER = _PIXEL + ".transformer.encoder.layers.{layer}"
_OUR_BLOCK = "backbone.stages.{stage}.blocks.{block}"
_BLOCK = "backbone.layers.{stage}.blocks.{block}"

STEM = (
    Rule("backbone.network.conv1.weight", "backbone.stem.conv1.weight"),
    Rule("backbone.network.bn1.{parameter}", "backbone.stem.conv1.norm.{parameter}"),
)
"""A ResNet that starts with one convolution."""

DEEP_STEM = tuple(
    rule
    for number, (convolution, norm) in enumerate((("0", "conv1.1"), ("3", "conv1.4"), ("6", "bn1")), start=1)
    for rule in (
        Rule(f"backbone.network.conv1.{convolution}.weight", f"backbone.stem.conv{number}.weight"),
        Rule(f"backbone.network.{norm}.{{parameter}}", f"backbone.stem.conv{number}.norm.{{parameter}}"),
    )
)
"""A ResNet that starts with three; its last norm has the name that the only norm of the other has with us."""

_RESNET: list[Rule] = []
for _stage in range(1, 5):
    _ours, _theirs = f"backbone.network.layer{_stage}.{{block}}", f"backbone.res{_stage + 1}.{{block}}"
    _RESNET += [
        Rule(_ours + ".conv{number}.weight", _theirs + ".conv{number}.weight"),
        Rule(_ours + ".bn{number}.{parameter}", _theirs + ".conv{number}.norm.{parameter}"),
        Rule(_ours + ".downsample.0.weight", _theirs + ".shortcut.weight"),
        Rule(_ours + ".downsample.1.{parameter}", _theirs + ".shortcut.norm.{parameter}"),
    ]

_SWIN = [
    Rule("backbone.patch_embedding.projection.{parameter}", "backbone.patch_embed.proj.{parameter}"),
    Rule("backbone.patch_embedding.norm.{parameter}", "backbone.patch_embed.norm.{parameter}"),
    Rule(_OUR_BLOCK + ".attention_norm.{parameter}", _BLOCK + ".norm1.{parameter}"),
    Rule(_OUR_BLOCK + ".feedforward_norm.{parameter}", _BLOCK + ".norm2.{parameter}"),
    Rule(_OUR_BLOCK + ".attention.position_bias", _BLOCK + ".attn.relative_position_bias_table"),
    Rule(_OUR_BLOCK + ".attention.query_key_value.{parameter}", _BLOCK + ".attn.qkv.{parameter}"),
    Rule(_OUR_BLOCK + ".attention.projection.{parameter}", _BLOCK + ".attn.proj.{parameter}"),
    Rule(_OUR_BLOCK + ".feedforward.expand.{parameter}", _BLOCK + ".mlp.fc1.{parameter}"),
    Rule(_OUR_BLOCK + ".feedforward.contract.{parameter}", _BLOCK + ".mlp.fc2.{parameter}"),
    Rule("backbone.merges.{stage}.norm.{parameter}", "backbone.layers.{stage}.downsample.norm.{parameter}"),
    Rule("backbone.merges.{stage}.reduction.weight", "backbone.layers.{stage}.downsample.reduction.weight"),
    Rule("backbone.output_norms.{stage}.{parameter}", "backbone.norm{stage}.{parameter}"),
]

_PIXEL_DECODER = [
    *(
        Rule(
            f"pixel_decoder.projections.{stride}.{ours}.{{parameter}}",
            f"{_PIXEL}.input_proj.{level}.{theirs}.{{parameter}}",
        )
        for level, stride in enumerate((32, 16, 8))
        for theirs, ours in enumerate(("convolution", "norm"))
    ),
    Rule("pixel_decoder.encoder.level_embedding", f"{_PIXEL}.transformer.level_embed"),
    Rule(
        _OUR_ENCODER + ".attention.offsets.{parameter}", _ENCODER + ".self_attn.sampling_offsets.{parameter}"
    ),
    Rule(
        _OUR_ENCODER + ".attention.weights.{parameter}", _ENCODER + ".self_attn.attention_weights.{parameter}"
    ),
    Rule(_OUR_ENCODER + ".attention.values.{parameter}", _ENCODER + ".self_attn.value_proj.{parameter}"),
    Rule(_OUR_ENCODER + ".attention.output.{parameter}", _ENCODER + ".self_attn.output_proj.{parameter}"),
    Rule(_OUR_ENCODER + ".attention_residual.norm.{parameter}", _ENCODER + ".norm1.{parameter}"),
    Rule(_OUR_ENCODER + ".feedforward.expand.{parameter}", _ENCODER + ".linear1.{parameter}"),
    Rule(_OUR_ENCODER + ".feedforward.contract.{parameter}", _ENCODER + ".linear2.{parameter}"),
    Rule(_OUR_ENCODER + ".feedforward_residual.norm.{parameter}", _ENCODER + ".norm2.{parameter}"),
    Rule("pixel_decoder.laterals.4.convolution.weight", f"{_PIXEL}.adapter_1.weight"),
    Rule("pixel_decoder.laterals.4.norm.{parameter}", f"{_PIXEL}.adapter_1.norm.{{parameter}}"),
    Rule("pixel_decoder.fusions.4.convolution.weight", f"{_PIXEL}.layer_1.weight"),
    Rule("pixel_decoder.fusions.4.norm.{parameter}", f"{_PIXEL}.layer_1.norm.{{parameter}}"),
    Rule("pixel_decoder.mask_features.{parameter}", f"{_PIXEL}.mask_features.{{parameter}}"),
]


def _attention(ours: str, theirs: str, module: str) -> list[Rule]:
    our, their = f"query_decoder.layers.{{layer}}.{ours}", f"{_PREDICTOR}.{theirs}.{{layer}}"
    return [
        Rule(f"{our}.attention.input_weight", f"{their}.{module}.in_proj_weight"),
        Rule(f"{our}.attention.input_bias", f"{their}.{module}.in_proj_bias"),
        Rule(f"{our}.attention.output.{{parameter}}", f"{their}.{module}.out_proj.{{parameter}}"),
        Rule(f"{our}.residual.norm.{{parameter}}", f"{their}.norm.{{parameter}}"),
    ]


_OUR_FEEDFORWARD = "query_decoder.layers.{layer}.feedforward"
_FEEDFORWARD = _PREDICTOR + ".transformer_ffn_layers.{layer}"

HEADS = (
    Rule("query_decoder.heads.classes.{parameter}", f"{_PREDICTOR}.class_embed.{{parameter}}"),
    Rule(
        "query_decoder.heads.mask_embedding.layers.{number}.{parameter}",
        _PREDICTOR + ".mask_embed.layers.{number}.{parameter}",
    ),
)

_QUERY_DECODER = [
    *_attention("cross", "transformer_cross_attention_layers", "multihead_attn"),
    *_attention("self", "transformer_self_attention_layers", "self_attn"),
    Rule(_OUR_FEEDFORWARD + ".update.expand.{parameter}", _FEEDFORWARD + ".linear1.{parameter}"),
    Rule(_OUR_FEEDFORWARD + ".update.contract.{parameter}", _FEEDFORWARD + ".linear2.{parameter}"),
    Rule(_OUR_FEEDFORWARD + ".residual.norm.{parameter}", _FEEDFORWARD + ".norm.{parameter}"),
    *(
        Rule(
            f"query_decoder.projections.{stride}.{{parameter}}",
            f"{_PREDICTOR}.input_proj.{level}.{{parameter}}",
        )
        for level, stride in enumerate((32, 16, 8))
    ),
    Rule("query_decoder.norm.{parameter}", f"{_PREDICTOR}.decoder_norm.{{parameter}}"),
    Rule("query_decoder.query_features.weight", f"{_PREDICTOR}.query_feat.weight"),
    Rule("query_decoder.query_positions.weight", f"{_PREDICTOR}.query_embed.weight"),
    Rule("query_decoder.level_embedding.weight", f"{_PREDICTOR}.level_embed.weight"),
    *HEADS,
]

BODIES: tuple[Rule, ...] = (*_RESNET, *_SWIN)
"""Backbones, a ResNet without its stem."""

RULES: tuple[Rule, ...] = (*STEM, *BODIES, *_PIXEL_DECODER, *_QUERY_DECODER)

ALIASES = (
    (r"^module\.", ""),  # a file saved from a model wrapped for several devices
    (r"\.static_query\.", ".query_feat."),  # before the first release
    (
        r"^sem_seg_head\.(?!predictor\.|pixel_decoder\.)",
        f"{_PIXEL}.",
    ),  # before the second version of the head
)
"""Older names -> the names of today. Names of today stay, whether the file has versions or not."""

VERSIONS = {
    "sem_seg_head": {"version": 2},
    "sem_seg_head.predictor": {"version": 2},
}
"""What a state dict says so that the original does not rename its keys."""

NOT_WEIGHTS = (
    r"criterion\.empty_weight",
    r"backbone\.layers\.\d+\.blocks\.\d+\.attn\.relative_position_index",
    r"pixel_mean|pixel_std",
)
"""Keys that hold no learned number (regular expressions)."""


def old_name(key: str) -> str:
    """The key as it was before, which the original renames when it loads a file without versions."""
    return key.replace(f"{_PIXEL}.", "sem_seg_head.").replace(".query_feat.", ".static_query.")


def with_current_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of today.

    Raises:
        ValueError: two keys of the file mean the same tensor.
    """
    return {name: tensors[key] for key, name in substitute(list(tensors), ALIASES).items()}


def constants(tensors: Mapping[str, Tensor], no_object_weight: float) -> dict[str, Tensor]:
    """What a file of the original holds besides weights: given the exported weights, the tensors to add."""
    classes = tensors[f"{_PREDICTOR}.class_embed.bias"]
    class_weights = torch.ones_like(classes)
    class_weights[-1] = no_object_weight
    added = {"criterion.empty_weight": class_weights}
    table = ".relative_position_bias_table"
    for key, tensor in tensors.items():
        if key.endswith(table):
            index = relative_position_index(tensor.shape[0]).to(tensor.device)
            added[f"{key.removesuffix(table)}.relative_position_index"] = index
    return added


def relative_position_index(rows: int) -> Tensor:
    """For each pair of tokens of a Swin window the row of its bias table, which has (2 window - 1)^2."""
    window = (round(rows**0.5) + 1) // 2
    places = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    steps = places[:, None] - places[None] + window - 1
    return steps[..., 0] * (2 * window - 1) + steps[..., 1]
