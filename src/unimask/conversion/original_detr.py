"""Names of DETR's original release: rules in both directions.

Our backbone has the names of torchvision's ResNet, as the release has. The panoptic models have the detector
under `detr.`, on both sides.

Source: `state_dict` keys of facebookresearch/detr.
"""

from collections.abc import Mapping

from torch import Tensor

from unimask.conversion.rules import Rule, prefixed, substitute

_BLOCK = "layer{stage}.{block}"

BACKBONE: tuple[tuple[str, str], ...] = tuple(
    (f"backbone.network.{name}", name)
    for name in (
        "conv1.weight",
        "bn1.{parameter}",
        f"{_BLOCK}.conv{{number}}.weight",
        f"{_BLOCK}.bn{{number}}.{{parameter}}",
        f"{_BLOCK}.downsample.0.weight",
        f"{_BLOCK}.downsample.1.{{parameter}}",
    )
)
"""Our names -> torchvision's."""

_ENCODER = "transformer.encoder.layers.{layer}"
_DECODER = "transformer.decoder.layers.{layer}"


def _attention(ours: str, theirs: str) -> list[Rule]:
    return [
        Rule(f"{ours}.input_weight", f"{theirs}.in_proj_weight"),
        Rule(f"{ours}.input_bias", f"{theirs}.in_proj_bias"),
        Rule(f"{ours}.output.{{parameter}}", f"{theirs}.out_proj.{{parameter}}"),
    ]


def _layer(ours: str, theirs: str, modules: Mapping[str, str]) -> list[Rule]:
    return [Rule(f"{ours}.{a}.{{parameter}}", f"{theirs}.{b}.{{parameter}}") for a, b in modules.items()]


_DETECTOR = (
    *(Rule(ours, f"backbone.0.body.{theirs}") for ours, theirs in BACKBONE),
    Rule("projection.{parameter}", "input_proj.{parameter}"),
    *_attention("encoder.layers.{layer}.attention.attention", f"{_ENCODER}.self_attn"),
    *_layer(
        "encoder.layers.{layer}",
        _ENCODER,
        {
            "attention_residual.norm": "norm1",
            "feedforward.expand": "linear1",
            "feedforward.contract": "linear2",
            "feedforward_residual.norm": "norm2",
        },
    ),
    *_attention("query_decoder.layers.{layer}.self.attention", f"{_DECODER}.self_attn"),
    *_attention("query_decoder.layers.{layer}.cross.attention", f"{_DECODER}.multihead_attn"),
    *_layer(
        "query_decoder.layers.{layer}",
        _DECODER,
        {
            "self.residual.norm": "norm1",
            "cross.residual.norm": "norm2",
            "feedforward.update.expand": "linear1",
            "feedforward.update.contract": "linear2",
            "feedforward.residual.norm": "norm3",
        },
    ),
    Rule("query_decoder.norm.{parameter}", "transformer.decoder.norm.{parameter}"),
    Rule("query_decoder.query_positions.weight", "query_embed.weight"),
    Rule("query_decoder.heads.classes.{parameter}", "class_embed.{parameter}"),
    Rule("query_decoder.heads.boxes.layers.{number}.{parameter}", "bbox_embed.layers.{number}.{parameter}"),
)

MASK_HEAD = (
    Rule("attention.query.{parameter}", "bbox_attention.q_linear.{parameter}"),
    Rule("attention.key.{parameter}", "bbox_attention.k_linear.{parameter}"),
    *(
        Rule(f"pyramid.{ours}.{index}.{{parameter}}", f"mask_head.{theirs}{index + 1}.{{parameter}}")
        for ours, theirs, count in (
            ("convolutions", "lay", 5),
            ("norms", "gn", 5),
            ("adapters", "adapter", 3),
        )
        for index in range(count)
    ),
    Rule("pyramid.mask.{parameter}", "mask_head.out_lay.{parameter}"),
)
"""Of the panoptic models; files of transformers have these names too."""

RULES: tuple[Rule, ...] = (*_DETECTOR, *prefixed(_DETECTOR, "detr."), *MASK_HEAD)

NOT_WEIGHTS = (r"(detr\.)?backbone\.0\.body\..*\.num_batches_tracked",)
"""Keys that hold no learned number (regular expressions)."""


def with_current_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the prefix of a model that was saved wrapped for several devices.

    Raises:
        ValueError: two keys of the file mean the same tensor.
    """
    return {name: tensors[key] for key, name in substitute(list(tensors), [(r"^module\.", "")]).items()}


def constants(tensors: Mapping[str, Tensor], no_object_weight: float) -> dict[str, Tensor]:
    """Nothing: the files hold weights only."""
    return {}
