"""Rules for layers that several releases name alike: the names of torch, and those of transformers."""

from collections.abc import Mapping

from unimask.conversion.rules import Rule

TORCH_ENCODER = {
    "attention_residual.norm": "norm1",
    "feedforward.expand": "linear1",
    "feedforward.contract": "linear2",
    "feedforward_residual.norm": "norm2",
}
"""Our names -> those of `torch.nn.TransformerEncoderLayer`, without the attention."""

TRANSFORMERS_ENCODER = {
    "attention_residual.norm": "self_attn_layer_norm",
    "feedforward.expand": "fc1",
    "feedforward.contract": "fc2",
    "feedforward_residual.norm": "final_layer_norm",
}
"""Our names -> those of transformers, without the attention."""

DEFORMABLE_ATTENTION = {
    "attention.offsets": "self_attn.sampling_offsets",
    "attention.weights": "self_attn.attention_weights",
    "attention.values": "self_attn.value_proj",
    "attention.output": "self_attn.output_proj",
}
"""Our names -> those of Mask2Former's original and of transformers."""

LEVELS = {32: 0, 16: 1, 8: 2}
"""Our stride -> the index of the level on their side, in Mask2Former."""

_TORCH_DECODER = {
    "self.residual.norm": "norm1",
    "cross.residual.norm": "norm2",
    "feedforward.update.expand": "linear1",
    "feedforward.update.contract": "linear2",
    "feedforward.residual.norm": "norm3",
}
_TRANSFORMERS_DECODER = {
    "self.residual.norm": "self_attn_layer_norm",
    "cross.residual.norm": "encoder_attn_layer_norm",
    "feedforward.update.expand": "fc1",
    "feedforward.update.contract": "fc2",
    "feedforward.residual.norm": "final_layer_norm",
}


def modules(ours: str, theirs: str, names: Mapping[str, str]) -> tuple[Rule, ...]:
    """Return one rule per module for its weight, bias and statistics; `names` maps our names to theirs."""
    return tuple(
        Rule(f"{ours}.{our}.{{parameter}}", f"{theirs}.{their}.{{parameter}}") for our, their in names.items()
    )


def packed_attention(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Return rules for attention whose query, key and value share one tensor on both sides, as in torch."""
    return (
        *(Rule(f"{ours}.input_{name}", f"{theirs}.in_proj_{name}") for name in ("weight", "bias")),
        *modules(ours, theirs, {"output": "out_proj"}),
    )


def split_attention(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Return rules for attention whose query, key and value are three tensors in transformers."""
    return (
        *(
            Rule(f"{ours}.input_{name}", tuple(f"{theirs}.{part}_proj.{name}" for part in "qkv"))
            for name in ("weight", "bias")
        ),
        *modules(ours, theirs, {"output": "out_proj"}),
    )


def torch_encoder_layer(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Return rules for an encoder layer under torch's names."""
    return (
        *packed_attention(f"{ours}.attention.attention", f"{theirs}.self_attn"),
        *modules(ours, theirs, TORCH_ENCODER),
    )


def torch_decoder_layer(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Return rules for a decoder layer under torch's names."""
    return (
        *packed_attention(f"{ours}.self.attention", f"{theirs}.self_attn"),
        *packed_attention(f"{ours}.cross.attention", f"{theirs}.multihead_attn"),
        *modules(ours, theirs, _TORCH_DECODER),
    )


def transformers_encoder_layer(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Return rules for an encoder layer under the names of transformers (DETR, Marian)."""
    return (
        *split_attention(f"{ours}.attention.attention", f"{theirs}.self_attn"),
        *modules(ours, theirs, TRANSFORMERS_ENCODER),
    )


def transformers_decoder_layer(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Return rules for a decoder layer under the names of transformers (DETR, MaskFormer, Marian)."""
    return (
        *split_attention(f"{ours}.self.attention", f"{theirs}.self_attn"),
        *split_attention(f"{ours}.cross.attention", f"{theirs}.encoder_attn"),
        *modules(ours, theirs, _TRANSFORMERS_DECODER),
    )
