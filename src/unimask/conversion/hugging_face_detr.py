"""Names of Hugging Face transformers (`DetrForObjectDetection`, `DetrForSegmentation`): rules both ways.

They are the names of the files, where the backbone is timm's; the names that newer versions have in memory
are understood too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from unimask.checkpoints.images import ModelFile
from unimask.config.images import DetrConfig
from unimask.conversion.original_detr import BACKBONE, MASK_HEAD
from unimask.conversion.rules import Rule, prefixed, substitute
from unimask.errors import WeightsError

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

_MEMORY_NAMES = {"lay": "conv", "gn": "norm"}

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
        for ours, theirs in _MEMORY_NAMES.items()
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


# What the file may say where our model has no choice; where it says nothing, this is what it means.
_FIXED: Mapping[str, object] = {
    "activation_function": "relu",
    "position_embedding_type": "sine",
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What the configuration says of the architecture and the tensors do not."""

    heads: int
    dropout: float
    backbone: str  # timm's name
    dilated: bool


def check(path: Path, config: Mapping[str, object]) -> None:
    """Nothing comes out; the configuration asks for nothing that our model does not have.

    Raises:
        WeightsError: it does.
    """
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            raise WeightsError(path, f"{key} is {config[key]!r}; only {value!r} can be converted")
    if config.get("encoder_attention_heads") != config.get("decoder_attention_heads"):
        raise WeightsError(path, "encoder and decoder differ in attention heads; that cannot be converted")
    backbone = config.get("backbone_config")
    kind = backbone.get("model_type") if isinstance(backbone, dict) else "timm_backbone"
    if kind != "timm_backbone" or config.get("use_timm_backbone") is False:
        raise WeightsError(path, f"its backbone is {kind}; only those of timm can be converted")


def architecture_of(path: Path, config: Mapping[str, object]) -> Architecture:
    """What a checked configuration says.

    Raises:
        WeightsError: a value has the wrong type.
    """
    backbone = config.get("backbone_config")
    described: Mapping[str, object] = backbone if isinstance(backbone, dict) else config
    heads, dropout = config.get("encoder_attention_heads", 8), config.get("dropout", 0.1)
    if not isinstance(heads, int) or heads < 1:
        raise WeightsError(path, f"encoder_attention_heads is {heads!r}")
    if not isinstance(dropout, int | float):
        raise WeightsError(path, f"dropout is {dropout!r}")
    return Architecture(
        heads=heads,
        dropout=float(dropout),
        backbone=str(described.get("backbone") or "resnet50"),
        dilated=described.get("output_stride") == 16 or bool(config.get("dilation")),
    )


def config_of(model: DetrConfig, model_file: ModelFile) -> dict[str, object]:
    """The `config.json` of a folder with this model; weights of costs and losses are left at their defaults,
    because theirs must be integers."""
    losses, names = model_file.experiment.losses, model_file.categories.names
    return {
        "architectures": ["DetrForSegmentation" if model.mask_head else "DetrForObjectDetection"],
        "model_type": "detr",
        "backbone_config": {
            "model_type": "timm_backbone",
            "backbone": model.backbone.name,
            "out_indices": [1, 2, 3, 4],
            "output_stride": 16 if model.backbone.dilated else None,
            "use_pretrained_backbone": False,
        },
        "d_model": model.channels,
        "num_queries": model.queries,
        "encoder_layers": model.encoder_layers,
        "decoder_layers": model.decoder_layers,
        "encoder_attention_heads": model.heads,
        "decoder_attention_heads": model.heads,
        "encoder_ffn_dim": model.feedforward_channels,
        "decoder_ffn_dim": model.feedforward_channels,
        "dropout": model.dropout,
        "dilation": model.backbone.dilated,
        "auxiliary_loss": False,
        "eos_coefficient": losses.no_object_weight,
        **_FIXED,
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }
