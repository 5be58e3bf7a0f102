"""Names of Hugging Face transformers (`DetrForObjectDetection`, `DetrForSegmentation`): rules both ways.

They are the names of the files, where the backbone is timm's; the names that newer versions have in memory
are understood too.
"""

from collections.abc import Mapping

from torch import Tensor

from unimask.weights.original_detr import BACKBONE, MASK_HEAD
from unimask.weights.rules import Rule, prefixed, substitute

_BACKBONE = "model.backbone.conv_encoder.model"
_ENCODER = "model.encoder.layers.{layer}"
_DECODER = "model.decoder.layers.{layer}"


def _attention(ours: str, theirs: str) -> list[Rule]:
    joined = [
        Rule(f"{ours}.input_{name}", tuple(f"{theirs}.{part}_proj.{name}" for part in "qkv"))
        for name in ("weight", "bias")
    ]
    return [*joined, Rule(f"{ours}.output.{{parameter}}", f"{theirs}.out_proj.{{parameter}}")]


def _layer(ours: str, theirs: str, modules: Mapping[str, str]) -> list[Rule]:
    return [Rule(f"{ours}.{a}.{{parameter}}", f"{theirs}.{b}.{{parameter}}") for a, b in modules.items()]


_DETECTOR = (
    *(Rule(ours, f"{_BACKBONE}.{theirs}") for ours, theirs in BACKBONE),
    Rule("projection.{parameter}", "model.input_projection.{parameter}"),
    *_attention("encoder.layers.{layer}.attention.attention", f"{_ENCODER}.self_attn"),
    *_layer(
        "encoder.layers.{layer}",
        _ENCODER,
        {
            "attention_residual.norm": "self_attn_layer_norm",
            "feedforward.expand": "fc1",
            "feedforward.contract": "fc2",
            "feedforward_residual.norm": "final_layer_norm",
        },
    ),
    *_attention("query_decoder.layers.{layer}.self.attention", f"{_DECODER}.self_attn"),
    *_attention("query_decoder.layers.{layer}.cross.attention", f"{_DECODER}.encoder_attn"),
    *_layer(
        "query_decoder.layers.{layer}",
        _DECODER,
        {
            "self.residual.norm": "self_attn_layer_norm",
            "cross.residual.norm": "encoder_attn_layer_norm",
            "feedforward.update.expand": "fc1",
            "feedforward.update.contract": "fc2",
            "feedforward.residual.norm": "final_layer_norm",
        },
    ),
    Rule("query_decoder.norm.{parameter}", "model.decoder.layernorm.{parameter}"),
    Rule("query_decoder.query_positions.weight", "model.query_position_embeddings.weight"),
    Rule("query_decoder.heads.classes.{parameter}", "class_labels_classifier.{parameter}"),
    Rule(
        "query_decoder.heads.boxes.layers.{number}.{parameter}",
        "bbox_predictor.layers.{number}.{parameter}",
    ),
)

RULES: tuple[Rule, ...] = (*_DETECTOR, *prefixed(_DETECTOR, "detr."), *MASK_HEAD)

_STAGE_OF_MEMORY = {"lay": "conv", "gn": "norm"}

ALIASES = (
    (r"^((detr\.)?model\.backbone)\.model\.", r"\1.conv_encoder.model."),
    (r"^((detr\.)?model\.(encoder|decoder)\.layers\.\d+\.\w+)\.o_proj\.", r"\1.out_proj."),
    (r"^((detr\.)?model\.(encoder|decoder)\.layers\.\d+)\.mlp\.", r"\1."),
    (r"^bbox_attention\.([qk])_proj\.", r"bbox_attention.\1_linear."),
    *(
        (rf"^mask_head\.{place}\.{theirs}\.", f"mask_head.{ours}{number}.")
        for number, place in enumerate(
            ("conv1", "conv2", r"fpn_stages\.0\.refine", r"fpn_stages\.1\.refine", r"fpn_stages\.2\.refine"),
            start=1,
        )
        for ours, theirs in _STAGE_OF_MEMORY.items()
    ),
    *(
        (rf"^mask_head\.fpn_stages\.{index}\.fpn_adapter\.", f"mask_head.adapter{index + 1}.")
        for index in range(3)
    ),
    (r"^mask_head\.output_conv\.", "mask_head.out_lay."),
)
"""Names in the memory of newer versions -> names in files."""

NOT_WEIGHTS = (r"(detr\.)?model\.backbone\.conv_encoder\.model\..*\.num_batches_tracked",)
"""Keys that hold no learned number (regular expressions)."""


def with_current_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of files.

    Raises:
        ValueError: two keys mean the same tensor.
    """
    return {name: tensors[key] for key, name in substitute(list(tensors), ALIASES).items()}


def constants(tensors: Mapping[str, Tensor], no_object_weight: float) -> dict[str, Tensor]:
    """Nothing: the files hold weights only."""
    return {}
