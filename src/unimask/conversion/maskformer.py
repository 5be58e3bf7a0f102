"""Names of MaskFormer: those of its release, and those of Hugging Face transformers.

Source: `state_dict` keys of facebookresearch/MaskFormer (detectron2), and of
`MaskFormerForInstanceSegmentation`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from unimask.conversion import hugging_face, original
from unimask.conversion.rules import Rule, substitute

_LAYER = "query_decoder.layers.{layer}"
_LEVELS = ((16, 3), (8, 2), (4, 1))  # stride, number of the level in the release

# the release

_PIXEL = "sem_seg_head.pixel_decoder"
_PREDICTOR = "sem_seg_head.predictor"
_THEIR_LAYER = _PREDICTOR + ".transformer.decoder.layers.{layer}"
_OUR_ENCODER = "pixel_decoder.encoder.encoder.layers.{layer}"
_ENCODER = _PIXEL + ".transformer.encoder.layers.{layer}"


def _attention(ours: str, theirs: str) -> list[Rule]:
    return [
        Rule(f"{ours}.input_weight", f"{theirs}.in_proj_weight"),
        Rule(f"{ours}.input_bias", f"{theirs}.in_proj_bias"),
        Rule(f"{ours}.output.{{parameter}}", f"{theirs}.out_proj.{{parameter}}"),
    ]


def _convolution(ours: str, theirs: str) -> list[Rule]:
    return [
        Rule(f"{ours}.convolution.weight", f"{theirs}.weight"),
        Rule(f"{ours}.norm.{{parameter}}", f"{theirs}.norm.{{parameter}}"),
    ]


_HEAD = [
    Rule("pixel_decoder.encoder.projection.{parameter}", f"{_PIXEL}.input_proj.{{parameter}}"),
    *_attention(f"{_OUR_ENCODER}.attention.attention", f"{_ENCODER}.self_attn"),
    *(
        Rule(f"{_OUR_ENCODER}.{ours}.{{parameter}}", f"{_ENCODER}.{theirs}.{{parameter}}")
        for ours, theirs in (
            ("attention_residual.norm", "norm1"),
            ("feedforward.expand", "linear1"),
            ("feedforward.contract", "linear2"),
            ("feedforward_residual.norm", "norm2"),
        )
    ),
    *_convolution("pixel_decoder.entry", f"{_PIXEL}.layer_4"),
    *(
        rule
        for stride, level in _LEVELS
        for ours, theirs in (("laterals", "adapter"), ("fusions", "layer"))
        for rule in _convolution(f"pixel_decoder.{ours}.{stride}", f"{_PIXEL}.{theirs}_{level}")
    ),
    Rule("pixel_decoder.mask_features.{parameter}", f"{_PIXEL}.mask_features.{{parameter}}"),
    *_attention(f"{_LAYER}.self.attention", f"{_THEIR_LAYER}.self_attn"),
    *_attention(f"{_LAYER}.cross.attention", f"{_THEIR_LAYER}.multihead_attn"),
    *(
        Rule(f"{_LAYER}.{ours}.{{parameter}}", f"{_THEIR_LAYER}.{theirs}.{{parameter}}")
        for ours, theirs in (
            ("self.residual.norm", "norm1"),
            ("cross.residual.norm", "norm2"),
            ("feedforward.update.expand", "linear1"),
            ("feedforward.update.contract", "linear2"),
            ("feedforward.residual.norm", "norm3"),
        )
    ),
    Rule("query_decoder.projections.32.{parameter}", f"{_PREDICTOR}.input_proj.{{parameter}}"),
    Rule("query_decoder.norm.{parameter}", f"{_PREDICTOR}.transformer.decoder.norm.{{parameter}}"),
    Rule("query_decoder.query_positions.weight", f"{_PREDICTOR}.query_embed.weight"),
    *original.HEADS,
]

ORIGINAL_SIGN = r"sem_seg_head\.predictor\.transformer\..*"
"""A key that only a file of the release has."""

ORIGINAL_RULES: tuple[Rule, ...] = (*original.STEM, *original.BODIES, *_HEAD)

DEEP_STEM_SIGN = r"backbone\.stem\.conv3\.weight"
"""A key that only a ResNet with a stem of three convolutions has."""

DEEP_STEM_RULES: tuple[Rule, ...] = (*original.DEEP_STEM, *original.BODIES, *_HEAD)

# transformers

_BACKBONE = "model.pixel_level_module.encoder"
_FPN = "model.pixel_level_module.decoder.fpn"
_DECODER = "model.transformer_module"
_HUGGING_LAYER = _DECODER + ".decoder.layers.{layer}"


def _block(ours: str, theirs: str) -> list[Rule]:
    return [
        Rule(f"pixel_decoder.{ours}.convolution.weight", f"{_FPN}.{theirs}.0.weight"),
        Rule(f"pixel_decoder.{ours}.norm.{{parameter}}", f"{_FPN}.{theirs}.1.{{parameter}}"),
    ]


TRANSFORMERS_SIGN = r"model\.pixel_level_module\.decoder\.fpn\..*"
"""A key that only a MaskFormer of transformers has."""

TRANSFORMERS_RULES: tuple[Rule, ...] = (
    *hugging_face.RESNET,
    *hugging_face.swin_rules(
        f"{_BACKBONE}.model", [f"{_BACKBONE}.hidden_states_norms.{stage}" for stage in range(4)]
    ),
    *_block("entry", "stem"),
    *(
        rule
        for number, (stride, _) in enumerate(_LEVELS)
        for ours, theirs in (("laterals", "proj"), ("fusions", "block"))
        for rule in _block(f"{ours}.{stride}", f"layers.{number}.{theirs}")
    ),
    Rule(
        "pixel_decoder.mask_features.{parameter}",
        "model.pixel_level_module.decoder.mask_projection.{parameter}",
    ),
    *(
        Rule(
            f"{_LAYER}.{ours}.attention.input_{name}",
            tuple(f"{_HUGGING_LAYER}.{theirs}.{part}_proj.{name}" for part in "qkv"),
        )
        for ours, theirs in (("self", "self_attn"), ("cross", "encoder_attn"))
        for name in ("weight", "bias")
    ),
    *(
        Rule(f"{_LAYER}.{ours}.{{parameter}}", f"{_HUGGING_LAYER}.{theirs}.{{parameter}}")
        for ours, theirs in (
            ("self.attention.output", "self_attn.out_proj"),
            ("self.residual.norm", "self_attn_layer_norm"),
            ("cross.attention.output", "encoder_attn.out_proj"),
            ("cross.residual.norm", "encoder_attn_layer_norm"),
            ("feedforward.update.expand", "fc1"),
            ("feedforward.update.contract", "fc2"),
            ("feedforward.residual.norm", "final_layer_norm"),
        )
    ),
    Rule("query_decoder.projections.32.{parameter}", f"{_DECODER}.input_projection.{{parameter}}"),
    Rule("query_decoder.norm.{parameter}", f"{_DECODER}.decoder.layernorm.{{parameter}}"),
    Rule("query_decoder.query_positions.weight", f"{_DECODER}.queries_embedder.weight"),
    Rule("query_decoder.heads.classes.{parameter}", "class_predictor.{parameter}"),
    Rule(
        "query_decoder.heads.mask_embedding.layers.{number}.{parameter}",
        "mask_embedder.{number}.0.{parameter}",
    ),
)

_ALIASES = (
    (r"^(model\.transformer_module\.decoder\.layers\.\d+\.\w+_attn)\.o_proj\.", r"\1.out_proj."),
    (r"^(model\.transformer_module\.decoder\.layers\.\d+)\.mlp\.(fc\d)\.", r"\1.\2."),
)
"""Names in the memory of newer versions -> names in files."""

NOT_WEIGHTS = (
    r"criterion\.empty_weight",
    r".*\.attention\.self\.relative_position_index",
    r"model\.pixel_level_module\.encoder\.model\.layernorm\.(weight|bias)",  # no output uses it
)
"""Keys that have no influence on a prediction (regular expressions), in files of transformers."""


def with_current_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of transformers under the names of files.

    Raises:
        ValueError: two keys mean the same tensor.
    """
    return {name: tensors[key] for key, name in substitute(list(tensors), _ALIASES).items()}


def constants(tensors: Mapping[str, Tensor], no_object_weight: float) -> dict[str, Tensor]:
    """What a file of transformers holds besides weights: given the exported weights, the tensors to add."""
    added = hugging_face.shared_constants(tensors, no_object_weight)
    last = f"{_BACKBONE}.hidden_states_norms.3."
    for name, fill in (("weight", torch.ones_like), ("bias", torch.zeros_like)):
        if f"{last}{name}" in tensors:
            added[f"{_BACKBONE}.model.layernorm.{name}"] = fill(tensors[f"{last}{name}"])
    table = ".relative_position_bias_table"
    for key, tensor in tensors.items():
        if key.endswith(table):
            index = original.relative_position_index(tensor.shape[0]).to(tensor.device)
            added[f"{key.removesuffix(table)}.relative_position_index"] = index
    return added
