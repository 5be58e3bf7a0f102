"""Names of Hugging Face transformers (`Mask2FormerForUniversalSegmentation`): rules in both directions.

They are the names of the files, which older versions of transformers had in memory as well; the names that
newer versions have in memory are understood too.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from unimask.conversion.rules import Rule, substitute

_BACKBONE = "model.pixel_level_module.encoder"
_PIXEL = "model.pixel_level_module.decoder"
_DECODER = "model.transformer_module"
_OUR_BLOCK = "backbone.stages.{stage}.blocks.{block}"
_OUR_ENCODER = "pixel_decoder.encoder.layers.{layer}"
_ENCODER = _PIXEL + ".encoder.layers.{layer}"
_OUR_LAYER = "query_decoder.layers.{layer}"
_LAYER = _DECODER + ".decoder.layers.{layer}"

_RESNET = [
    Rule("backbone.network.conv1.weight", f"{_BACKBONE}.embedder.embedder.convolution.weight"),
    Rule("backbone.network.bn1.{parameter}", f"{_BACKBONE}.embedder.embedder.normalization.{{parameter}}"),
]
for _stage in range(1, 5):
    _ours = f"backbone.network.layer{_stage}.{{block}}"
    _theirs = f"{_BACKBONE}.encoder.stages.{_stage - 1}.layers.{{block}}"
    _RESNET += [
        Rule(f"{_ours}.downsample.0.weight", f"{_theirs}.shortcut.convolution.weight"),
        Rule(f"{_ours}.downsample.1.{{parameter}}", f"{_theirs}.shortcut.normalization.{{parameter}}"),
    ]
    for _number in (1, 2, 3):
        _layer = f"{_theirs}.layer.{_number - 1}"
        _RESNET += [
            Rule(f"{_ours}.conv{_number}.weight", f"{_layer}.convolution.weight"),
            Rule(f"{_ours}.bn{_number}.{{parameter}}", f"{_layer}.normalization.{{parameter}}"),
        ]


def swin_rules(body: str, norms: Sequence[str]) -> list[Rule]:
    """A Swin whose parts are below `body`; `norms` names the norm of each stage."""
    block = body + ".encoder.layers.{stage}.blocks.{block}"
    return [
        Rule(
            "backbone.patch_embedding.projection.{parameter}",
            body + ".embeddings.patch_embeddings.projection.{parameter}",
        ),
        Rule("backbone.patch_embedding.norm.{parameter}", body + ".embeddings.norm.{parameter}"),
        *(
            Rule(f"{_OUR_BLOCK}.{ours}", f"{block}.{theirs}")
            for ours, theirs in (
                ("attention_norm.{parameter}", "layernorm_before.{parameter}"),
                ("feedforward_norm.{parameter}", "layernorm_after.{parameter}"),
                ("attention.position_bias", "attention.self.relative_position_bias_table"),
                ("attention.projection.{parameter}", "attention.output.dense.{parameter}"),
                ("feedforward.expand.{parameter}", "intermediate.dense.{parameter}"),
                ("feedforward.contract.{parameter}", "output.dense.{parameter}"),
            )
        ),
        Rule(
            _OUR_BLOCK + ".attention.query_key_value.{parameter}",
            tuple(block + f".attention.self.{part}.{{parameter}}" for part in ("query", "key", "value")),
        ),
        *(
            Rule(
                f"backbone.merges.{{stage}}.{module}.{{parameter}}",
                f"{body}.encoder.layers.{{stage}}.downsample.{module}.{{parameter}}",
            )
            for module in ("norm", "reduction")
        ),
        *(
            Rule(f"backbone.output_norms.{stage}.{{parameter}}", f"{norm}.{{parameter}}")
            for stage, norm in enumerate(norms)
        ),
    ]


_PIXEL_DECODER = [
    *(
        Rule(
            f"pixel_decoder.projections.{stride}.{ours}.{{parameter}}",
            f"{_PIXEL}.input_projections.{level}.{theirs}.{{parameter}}",
        )
        for level, stride in enumerate((32, 16, 8))
        for theirs, ours in enumerate(("convolution", "norm"))
    ),
    Rule("pixel_decoder.encoder.level_embedding", f"{_PIXEL}.level_embed"),
    *(
        Rule(f"{_OUR_ENCODER}.{ours}.{{parameter}}", f"{_ENCODER}.{theirs}.{{parameter}}")
        for ours, theirs in (
            ("attention.offsets", "self_attn.sampling_offsets"),
            ("attention.weights", "self_attn.attention_weights"),
            ("attention.values", "self_attn.value_proj"),
            ("attention.output", "self_attn.output_proj"),
            ("attention_residual.norm", "self_attn_layer_norm"),
            ("feedforward.expand", "fc1"),
            ("feedforward.contract", "fc2"),
            ("feedforward_residual.norm", "final_layer_norm"),
        )
    ),
    *(
        Rule(f"pixel_decoder.{ours}.4.{module}.{{parameter}}", f"{_PIXEL}.{theirs}.{number}.{{parameter}}")
        for ours, theirs in (("laterals", "adapter_1"), ("fusions", "layer_1"))
        for number, module in enumerate(("convolution", "norm"))
    ),
    Rule("pixel_decoder.mask_features.{parameter}", f"{_PIXEL}.mask_projection.{{parameter}}"),
]

_QUERY_DECODER = [
    *(
        Rule(f"{_OUR_LAYER}.cross.attention.input_{name}", f"{_LAYER}.cross_attn.in_proj_{name}")
        for name in ("weight", "bias")
    ),
    *(
        Rule(
            f"{_OUR_LAYER}.self.attention.input_{name}",
            tuple(f"{_LAYER}.self_attn.{part}_proj.{name}" for part in "qkv"),
        )
        for name in ("weight", "bias")
    ),
    *(
        Rule(f"{_OUR_LAYER}.{ours}.{{parameter}}", f"{_LAYER}.{theirs}.{{parameter}}")
        for ours, theirs in (
            ("cross.attention.output", "cross_attn.out_proj"),
            ("cross.residual.norm", "cross_attn_layer_norm"),
            ("self.attention.output", "self_attn.out_proj"),
            ("self.residual.norm", "self_attn_layer_norm"),
            ("feedforward.update.expand", "fc1"),
            ("feedforward.update.contract", "fc2"),
            ("feedforward.residual.norm", "final_layer_norm"),
        )
    ),
    *(
        Rule(
            f"query_decoder.projections.{stride}.{{parameter}}",
            f"{_DECODER}.input_projections.{level}.{{parameter}}",
        )
        for level, stride in enumerate((32, 16, 8))
    ),
    Rule("query_decoder.norm.{parameter}", f"{_DECODER}.decoder.layernorm.{{parameter}}"),
    Rule("query_decoder.query_features.weight", f"{_DECODER}.queries_features.weight"),
    Rule("query_decoder.query_positions.weight", f"{_DECODER}.queries_embedder.weight"),
    Rule("query_decoder.level_embedding.weight", f"{_DECODER}.level_embed.weight"),
    Rule("query_decoder.heads.classes.{parameter}", "class_predictor.{parameter}"),
    Rule(
        "query_decoder.heads.mask_embedding.layers.{number}.{parameter}",
        _DECODER + ".decoder.mask_predictor.mask_embedder.{number}.0.{parameter}",
    ),
]

RESNET: tuple[Rule, ...] = tuple(_RESNET)

RULES: tuple[Rule, ...] = (
    *RESNET,
    *swin_rules(_BACKBONE, [f"{_BACKBONE}.hidden_states_norms.stage{stage}" for stage in (1, 2, 3, 4)]),
    *_PIXEL_DECODER,
    *_QUERY_DECODER,
)

ALIASES = (
    (r"^(model\.pixel_level_module\.encoder)\.swin\.(encoder|embeddings)\.", r"\1.\2."),
    (r"(\.blocks\.\d+\.attention)\.q_proj\.", r"\1.self.query."),
    (r"(\.blocks\.\d+\.attention)\.k_proj\.", r"\1.self.key."),
    (r"(\.blocks\.\d+\.attention)\.v_proj\.", r"\1.self.value."),
    (r"(\.blocks\.\d+\.attention)\.o_proj\.", r"\1.output.dense."),
    (r"(\.blocks\.\d+\.attention)\.relative_position_bias\.", r"\1.self."),
    (r"(\.blocks\.\d+)\.mlp\.fc1\.", r"\1.intermediate.dense."),
    (r"(\.blocks\.\d+)\.mlp\.fc2\.", r"\1.output.dense."),
)
"""Names in the memory of newer versions -> names in files."""

NOT_WEIGHTS = (
    r"criterion\.empty_weight",
    r".*\.attention\.self\.relative_position_index",
    r"model\.pixel_level_module\.encoder\.(swin\.)?layernorm\.(weight|bias)",  # no output uses it
)
"""Keys that have no influence on a prediction (regular expressions)."""


def with_current_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of files.

    Raises:
        ValueError: two keys mean the same tensor.
    """
    return {name: tensors[key] for key, name in substitute(list(tensors), ALIASES).items()}


def constants(tensors: Mapping[str, Tensor], no_object_weight: float) -> dict[str, Tensor]:
    """What a file holds besides weights: given the exported weights, the tensors to add."""
    added = shared_constants(tensors, no_object_weight)
    last = f"{_BACKBONE}.hidden_states_norms.stage4."
    for name, fill in (("weight", torch.ones_like), ("bias", torch.zeros_like)):
        if f"{last}{name}" in tensors:
            added[f"{_BACKBONE}.swin.layernorm.{name}"] = fill(tensors[f"{last}{name}"])
    return added


def shared_constants(tensors: Mapping[str, Tensor], no_object_weight: float) -> dict[str, Tensor]:
    """The weights of the classes in the loss, and the counters of batch norms."""
    classes = tensors["class_predictor.bias"]
    class_weights = torch.ones_like(classes)
    class_weights[-1] = no_object_weight
    added = {"criterion.empty_weight": class_weights}
    for key, tensor in tensors.items():
        if key.endswith(".normalization.running_var"):
            counter = f"{key.removesuffix('running_var')}num_batches_tracked"
            if counter not in tensors:  # our frozen norms do not count
                added[counter] = torch.zeros((), dtype=torch.int64, device=tensor.device)
    return added
