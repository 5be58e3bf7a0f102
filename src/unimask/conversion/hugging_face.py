"""Hugging Face transformers (Mask2Former, MaskFormer, DETR): its names, in both directions.

They are the names of the files, which older versions of transformers had in memory as well; the names that
newer versions have in memory are aliases.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from unimask.config.images import Experiment
from unimask.config.models import DetrConfig, ModelConfig
from unimask.conversion.architecture import (
    DETR_WITHOUT_TRACE,
    MASKS_WITHOUT_TRACE,
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
    TRANSFORMERS_ENCODER,
    modules,
    packed_attention,
    split_attention,
    transformers_decoder_layer,
    transformers_encoder_layer,
)
from unimask.conversion.original import DETR_MASK_HEAD, torchvision_resnet
from unimask.conversion.rules import Rule, prefixed
from unimask.presets.maskformer import maskformer_model

_TITLE = "Hugging Face transformers"
_BACKBONE = "model.pixel_level_module.encoder"
_PIXEL = "model.pixel_level_module.decoder"
_DECODER = "model.transformer_module"
_LAYER = "query_decoder.layers.{layer}"
_THEIR_LAYER = f"{_DECODER}.decoder.layers.{{layer}}"

# backbones of Mask2Former and MaskFormer


def _resnet() -> tuple[Rule, ...]:
    names = {"conv1": "embedder.embedder.convolution", "bn1": "embedder.embedder.normalization"}
    for stage in range(1, 5):
        ours, theirs = f"layer{stage}.{{block}}", f"encoder.stages.{stage - 1}.layers.{{block}}"
        names |= {
            f"{ours}.downsample.0": f"{theirs}.shortcut.convolution",
            f"{ours}.downsample.1": f"{theirs}.shortcut.normalization",
        }
        for number in (1, 2, 3):
            layer = f"{theirs}.layer.{number - 1}"
            names |= {
                f"{ours}.conv{number}": f"{layer}.convolution",
                f"{ours}.bn{number}": f"{layer}.normalization",
            }
    return modules("backbone.network", _BACKBONE, names)


def _swin(body: str, norms: Sequence[str]) -> tuple[Rule, ...]:
    """Return rules for a Swin whose parts are below `body`; `norms` names the norm of each stage."""
    our_block, block = (
        "backbone.stages.{stage}.blocks.{block}",
        f"{body}.encoder.layers.{{stage}}.blocks.{{block}}",
    )
    parts = ("query", "key", "value")
    return (
        *modules(
            "backbone.patch_embedding",
            f"{body}.embeddings",
            {"projection": "patch_embeddings.projection", "norm": "norm"},
        ),
        *modules(
            our_block,
            block,
            {
                "attention_norm": "layernorm_before",
                "feedforward_norm": "layernorm_after",
                "attention.projection": "attention.output.dense",
                "feedforward.expand": "intermediate.dense",
                "feedforward.contract": "output.dense",
            },
        ),
        Rule(f"{our_block}.attention.position_bias", f"{block}.attention.self.relative_position_bias_table"),
        Rule(
            f"{our_block}.attention.query_key_value.{{parameter}}",
            tuple(f"{block}.attention.self.{part}.{{parameter}}" for part in parts),
        ),
        *modules(
            "backbone.merges.{stage}",
            f"{body}.encoder.layers.{{stage}}.downsample",
            {"norm": "norm", "reduction": "reduction"},
        ),
        *modules(
            "backbone.output_norms",
            f"{_BACKBONE}.hidden_states_norms",
            {str(i): n for i, n in enumerate(norms)},
        ),
    )


# pixel and query decoders

_HEADS = (
    *modules("pixel_decoder", _PIXEL, {"mask_features": "mask_projection"}),
    *modules("query_decoder", _DECODER, {"norm": "decoder.layernorm"}),
    Rule("query_decoder.query_positions.weight", f"{_DECODER}.queries_embedder.weight"),
    Rule("query_decoder.heads.classes.{parameter}", "class_predictor.{parameter}"),
)
_MASK2FORMER_DECODERS = (
    *modules(
        "pixel_decoder.projections",
        f"{_PIXEL}.input_projections",
        {
            f"{stride}.{ours}": f"{level}.{theirs}"
            for stride, level in LEVELS.items()
            for theirs, ours in enumerate(("convolution", "norm"))
        },
    ),
    Rule("pixel_decoder.encoder.level_embedding", f"{_PIXEL}.level_embed"),
    *modules(
        "pixel_decoder.encoder.layers.{layer}",
        f"{_PIXEL}.encoder.layers.{{layer}}",
        DEFORMABLE_ATTENTION | TRANSFORMERS_ENCODER,
    ),
    *modules(
        "pixel_decoder",
        _PIXEL,
        {
            f"{ours}.4.{module}": f"{theirs}.{number}"
            for ours, theirs in (("laterals", "adapter_1"), ("fusions", "layer_1"))
            for number, module in enumerate(("convolution", "norm"))
        },
    ),
    *packed_attention(f"{_LAYER}.cross.attention", f"{_THEIR_LAYER}.cross_attn"),
    *split_attention(f"{_LAYER}.self.attention", f"{_THEIR_LAYER}.self_attn"),
    *modules(
        _LAYER,
        _THEIR_LAYER,
        {
            "cross.residual.norm": "cross_attn_layer_norm",
            "self.residual.norm": "self_attn_layer_norm",
            "feedforward.update.expand": "fc1",
            "feedforward.update.contract": "fc2",
            "feedforward.residual.norm": "final_layer_norm",
        },
    ),
    *modules(
        "query_decoder.projections",
        f"{_DECODER}.input_projections",
        {str(stride): str(level) for stride, level in LEVELS.items()},
    ),
    Rule("query_decoder.query_features.weight", f"{_DECODER}.queries_features.weight"),
    Rule("query_decoder.level_embedding.weight", f"{_DECODER}.level_embed.weight"),
    *modules(
        "query_decoder.heads.mask_embedding.layers",
        f"{_DECODER}.decoder.mask_predictor.mask_embedder",
        {"{number}": "{number}.0"},
    ),
    *_HEADS,
)
_MASKFORMER_DECODERS = (
    *modules(
        "pixel_decoder",
        f"{_PIXEL}.fpn",
        {
            f"{ours}.{module}": f"{theirs}.{number}"
            for ours, theirs in (
                ("entry", "stem"),
                *(
                    (f"{ours}.{stride}", f"layers.{level}.{theirs}")
                    for level, stride in enumerate((16, 8, 4))
                    for ours, theirs in (("laterals", "proj"), ("fusions", "block"))
                ),
            )
            for number, module in enumerate(("convolution", "norm"))
        },
    ),
    *transformers_decoder_layer(_LAYER, _THEIR_LAYER),
    *modules("query_decoder", _DECODER, {"projections.32": "input_projection"}),
    *modules("query_decoder.heads.mask_embedding.layers", "mask_embedder", {"{number}": "{number}.0"}),
    *_HEADS,
)

# DETR

_DETECTOR = (
    *torchvision_resnet("model.backbone.conv_encoder.model"),
    Rule("projection.{parameter}", "model.input_projection.{parameter}"),
    *transformers_encoder_layer("encoder.layers.{layer}", "model.encoder.layers.{layer}"),
    *transformers_decoder_layer(_LAYER, "model.decoder.layers.{layer}"),
    Rule("query_decoder.norm.{parameter}", "model.decoder.layernorm.{parameter}"),
    Rule("query_decoder.query_positions.weight", "model.query_position_embeddings.weight"),
    Rule("query_decoder.heads.classes.{parameter}", "class_labels_classifier.{parameter}"),
    Rule(
        "query_decoder.heads.boxes.layers.{number}.{parameter}",
        "bbox_predictor.layers.{number}.{parameter}",
    ),
)


# what files hold besides weights


def _mask2former_constants(tensors: Mapping[str, Tensor], experiment: Experiment) -> dict[str, Tensor]:
    return _shared_constants(tensors, experiment) | _unused_norm(tensors, "stage4", "swin")


def _maskformer_constants(tensors: Mapping[str, Tensor], experiment: Experiment) -> dict[str, Tensor]:
    return (
        _shared_constants(tensors, experiment)
        | _unused_norm(tensors, "3", "model")
        | relative_positions(tensors)
    )


def _shared_constants(tensors: Mapping[str, Tensor], experiment: Experiment) -> dict[str, Tensor]:
    """Return the class weights of the loss, and the counters of batch norms, which our frozen norms lack."""
    counters = {
        f"{key.removesuffix('running_var')}num_batches_tracked": tensor.new_zeros((), dtype=torch.int64)
        for key, tensor in tensors.items()
        if key.endswith(".normalization.running_var")
    }
    uncounted = {key: counter for key, counter in counters.items() if key not in tensors}
    return class_weights(tensors["class_predictor.bias"], experiment.losses.no_object_weight) | uncounted


def _unused_norm(tensors: Mapping[str, Tensor], last_stage: str, swin: str) -> dict[str, Tensor]:
    """Return the last norm of a Swin, which no output uses."""
    last = f"{_BACKBONE}.hidden_states_norms.{last_stage}"
    if f"{last}.weight" not in tensors:
        return {}
    weight = tensors[f"{last}.weight"]
    norm = f"{_BACKBONE}.{swin}.layernorm"
    return {f"{norm}.weight": torch.ones_like(weight), f"{norm}.bias": torch.zeros_like(weight)}


MASK2FORMER = CheckpointFormat(
    title=_TITLE,
    model="Mask2Former",
    rules=(
        *_resnet(),
        *_swin(_BACKBONE, ("stage1", "stage2", "stage3", "stage4")),
        *_MASK2FORMER_DECODERS,
    ),
    aliases=(
        (r"^(model\.pixel_level_module\.encoder)\.swin\.(encoder|embeddings)\.", r"\1.\2."),
        (r"(\.blocks\.\d+\.attention)\.q_proj\.", r"\1.self.query."),
        (r"(\.blocks\.\d+\.attention)\.k_proj\.", r"\1.self.key."),
        (r"(\.blocks\.\d+\.attention)\.v_proj\.", r"\1.self.value."),
        (r"(\.blocks\.\d+\.attention)\.o_proj\.", r"\1.output.dense."),
        (r"(\.blocks\.\d+\.attention)\.relative_position_bias\.", r"\1.self."),
        (r"(\.blocks\.\d+)\.mlp\.fc1\.", r"\1.intermediate.dense."),
        (r"(\.blocks\.\d+)\.mlp\.fc2\.", r"\1.output.dense."),
    ),
    not_weights=(
        r"criterion\.empty_weight|.*\.attention\.self\.relative_position_index"
        r"|model\.pixel_level_module\.encoder\.(swin\.)?layernorm\.(weight|bias)"
    ),
    infer=infer_mask2former,
    constants=_mask2former_constants,
    usual=ModelConfig(),
    fixed=MASKS_WITHOUT_TRACE,
    versions={},
)
MASKFORMER = CheckpointFormat(
    title=_TITLE,
    model="MaskFormer",
    rules=(*_resnet(), *_swin(f"{_BACKBONE}.model", ("0", "1", "2", "3")), *_MASKFORMER_DECODERS),
    aliases=(
        (r"^(model\.transformer_module\.decoder\.layers\.\d+\.\w+_attn)\.o_proj\.", r"\1.out_proj."),
        (r"^(model\.transformer_module\.decoder\.layers\.\d+)\.mlp\.(fc\d)\.", r"\1.\2."),
    ),
    not_weights=(
        r"criterion\.empty_weight|.*\.attention\.self\.relative_position_index"
        r"|model\.pixel_level_module\.encoder\.model\.layernorm\.(weight|bias)"
    ),
    infer=infer_maskformer,
    constants=_maskformer_constants,
    usual=maskformer_model("resnet50", encoder_layers=0),
    fixed=(*MASKS_WITHOUT_TRACE, "pixel_decoder.layers"),
    versions={},
)
DETR = CheckpointFormat(
    title=_TITLE,
    model="DETR",
    rules=(*_DETECTOR, *prefixed(_DETECTOR, "detr."), *DETR_MASK_HEAD),
    aliases=(
        (r"^((detr\.)?model\.backbone)\.model\.", r"\1.conv_encoder.model."),
        (r"^((detr\.)?model\.(encoder|decoder)\.layers\.\d+\.\w+)\.o_proj\.", r"\1.out_proj."),
        (r"^((detr\.)?model\.(encoder|decoder)\.layers\.\d+)\.mlp\.", r"\1."),
        (r"^bbox_attention\.([qk])_proj\.", r"bbox_attention.\1_linear."),
        *(
            (rf"^mask_head\.{place}\.{theirs}\.", f"mask_head.{ours}{number}.")
            for number, place in enumerate(
                ("conv1", "conv2", *(rf"fpn_stages\.{stage}\.refine" for stage in range(3))), start=1
            )
            for ours, theirs in (("lay", "conv"), ("gn", "norm"))
        ),
        *(
            (rf"^mask_head\.fpn_stages\.{stage}\.fpn_adapter\.", f"mask_head.adapter{stage + 1}.")
            for stage in range(3)
        ),
        (r"^mask_head\.output_conv\.", "mask_head.out_lay."),
    ),
    not_weights=r"(detr\.)?model\.backbone\.conv_encoder\.model\..*\.num_batches_tracked",
    infer=infer_detr,
    constants=no_constants,
    usual=DetrConfig(),
    fixed=DETR_WITHOUT_TRACE,
    versions={},
)
