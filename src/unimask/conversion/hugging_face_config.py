"""`config.json` of Hugging Face transformers (Mask2Former, MaskFormer, DETR), in both directions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from unimask.checkpoints.images import ModelFile
from unimask.config.models import AnyModelConfig, BackboneConfig, DetrConfig, EomtConfig, ModelConfig
from unimask.conversion import eomt, hugging_face
from unimask.conversion.architecture import SWIN_DROP_PATH_RATE, Stated
from unimask.conversion.checkpoint_format import CheckpointFormat
from unimask.conversion.hugging_face_eomt import has_gates, read_eomt, write_eomt
from unimask.conversion.hugging_face_pixels import read_pixels
from unimask.conversion.hugging_face_values import (
    Json,
    check_fixed,
    heads_in,
    names_in,
    part_of,
    read_object,
    share_in,
    written_losses,
)
from unimask.errors import WeightsError

# What the file may say where our model has no choice; where it says nothing, this is what it means.
_MASK2FORMER_FIXED: Mapping[str, object] = {
    "pre_norm": False,
    "activation_function": "relu",
    "enforce_input_projection": False,
    "common_stride": 4,
    "feature_strides": [4, 8, 16, 32],
}
_MASKFORMER_FIXED: Mapping[str, object] = {  # of its decoder
    "model_type": "detr",
    "activation_function": "relu",
    "position_embedding_type": "sine",
    "scale_embedding": False,
}
_DETR_FIXED: Mapping[str, object] = {
    "activation_function": "relu",
    "position_embedding_type": "sine",
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
}
_BACKBONE_FIXED: Mapping[str, Mapping[str, object]] = {
    "swin": {
        "patch_size": 4,
        "mlp_ratio": 4.0,
        "qkv_bias": True,
        "hidden_act": "gelu",
        "use_absolute_embeddings": False,
        "layer_norm_eps": 1e-5,
    },
    "resnet": {
        "layer_type": "bottleneck",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    },
}
_KINDS_OF_BACKBONE = {"swin": "swin", "maskformer-swin": "swin", "resnet": "resnet"}
_FREEZE_NORM = "unimask_freeze_norm"  # false: norms learn, even if they have seen no batch yet
_STAGES = ["stage1", "stage2", "stage3", "stage4"]


@dataclass(frozen=True, kw_only=True)
class ConfigFormat:
    """The `config.json` of a kind of model."""

    names: CheckpointFormat  # of its tensors
    image_processor: str  # the class that reads `preprocessor_config.json`
    read: Callable[
        [Path, Json], Stated
    ]  # path and content of a `config.json`; refuses what our model does not have
    write: Callable[[Mapping[str, Tensor], ModelFile], Json]  # exported tensors, model -> `config.json`


def format_of(config: Json, path: Path) -> ConfigFormat:
    """Return the format of a `config.json`, by its `model_type`.

    Raises:
        WeightsError: no model of this type can be converted.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FORMATS:
        *most, last = map(repr, FORMATS)
        known = f"{', '.join(most)} and {last}"
        raise WeightsError(path, f"is of a {model_type!r} model; only {known} can be converted")
    found = FORMATS[model_type]
    return replace(found, names=eomt.TRANSFORMERS_DINOV2_GATED) if has_gates(config) else found


def format_for(model: AnyModelConfig) -> ConfigFormat:
    """Return the format of a model in transformers."""
    if isinstance(model, EomtConfig):
        if model.backbone.kind == "dinov3":
            return FORMATS["eomt_dinov3"]
        gated = model.backbone.gated
        return replace(FORMATS["eomt"], names=eomt.TRANSFORMERS_DINOV2_GATED) if gated else FORMATS["eomt"]
    if isinstance(model, DetrConfig):
        return FORMATS["detr"]
    return FORMATS[{"deformable": "mask2former", "pyramid": "maskformer"}[model.pixel_decoder.kind]]


def read_stated(folder: Path) -> tuple[ConfigFormat, Stated]:
    """Return what `config.json` and, where there is one, `preprocessor_config.json` state.

    Raises:
        WeightsError: a file is broken, is of another kind of model, or asks for what our model does not have.
    """
    path = folder / "config.json"
    config = read_object(path)
    config_format = format_of(config, path)
    stated, pixels = config_format.read(path, config), read_pixels(folder, config_format.image_processor)
    return config_format, replace(
        stated,
        names=names_in(path, config),
        image_mean=pixels.image_mean,
        image_std=pixels.image_std,
        data=pixels.data,
    )


def _read_mask2former(path: Path, config: Json) -> Stated:
    check_fixed(path, config, _MASK2FORMER_FIXED)
    return _with_backbone(path, config, Stated(heads=heads_in(path, config, "num_attention_heads")))


def _read_maskformer(path: Path, config: Json) -> Stated:
    decoder = part_of(path, config, "decoder_config")
    check_fixed(path, decoder, _MASKFORMER_FIXED, "decoder_config.")
    return _with_backbone(path, config, Stated(heads=heads_in(path, decoder, "decoder_attention_heads")))


def _read_detr(path: Path, config: Json) -> Stated:
    check_fixed(path, config, _DETR_FIXED)
    if config.get("encoder_attention_heads") != config.get("decoder_attention_heads"):
        raise WeightsError(path, "encoder and decoder differ in attention heads; that cannot be converted")
    backbone = part_of(path, config, "backbone_config")
    kind = backbone.get("model_type") if backbone else "timm_backbone"
    if kind != "timm_backbone" or config.get("use_timm_backbone") is False:
        raise WeightsError(path, f"its backbone is {kind}; only those of timm can be converted")
    described = backbone or config
    return Stated(
        heads=heads_in(path, config, "encoder_attention_heads"),
        dropout=share_in(path, config, "dropout", 0.1),
        backbone=str(described.get("backbone") or "resnet50"),
        dilated=described.get("output_stride") == 16 or bool(config.get("dilation")),
    )


def _with_backbone(path: Path, config: Json, stated: Stated) -> Stated:
    """Return what is stated with what the file says of the backbone, if ours are as it is described."""
    backbone = part_of(path, config, "backbone_config")
    name = str(backbone.get("model_type", "not described"))
    if name not in _KINDS_OF_BACKBONE:
        raise WeightsError(
            path, f"its backbone is {name}; only {' and '.join(_BACKBONE_FIXED)} can be converted"
        )
    check_fixed(path, backbone, _BACKBONE_FIXED[_KINDS_OF_BACKBONE[name]], "backbone_config.")
    rate = share_in(path, backbone, "drop_path_rate", SWIN_DROP_PATH_RATE)
    return replace(stated, drop_path_rate=rate, idle_norms_are_frozen=backbone.get(_FREEZE_NORM) is not False)


def written_config(config_format: ConfigFormat, tensors: Mapping[str, Tensor], model_file: ModelFile) -> Json:
    """Return the content of `config.json` for a model."""
    names = model_file.categories.names
    return {
        **config_format.write(tensors, model_file),
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }


def _write_mask2former(tensors: Mapping[str, Tensor], model_file: ModelFile) -> Json:
    model, losses = model_file.experiment.model, model_file.experiment.losses
    assert isinstance(model, ModelConfig)
    pixels, queries = model.pixel_decoder, model.query_decoder
    return {
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "model_type": "mask2former",
        "backbone_config": _backbone(tensors, "", model.backbone),
        "feature_size": pixels.channels,
        "mask_feature_size": pixels.mask_channels,
        "hidden_dim": queries.channels,
        "encoder_feedforward_dim": pixels.feedforward_channels,
        "encoder_layers": pixels.layers,
        "decoder_layers": queries.layers + 1,  # theirs counts the prediction before the first layer
        "num_attention_heads": queries.heads,
        "dropout": queries.dropout,
        "dim_feedforward": queries.feedforward_channels,
        "num_queries": queries.queries,
        **written_losses(losses),
        **_MASK2FORMER_FIXED,
    }


def _write_maskformer(tensors: Mapping[str, Tensor], model_file: ModelFile) -> Json:
    model, losses = model_file.experiment.model, model_file.experiment.losses
    assert isinstance(model, ModelConfig)
    decoder = model.query_decoder
    return {
        "architectures": ["MaskFormerForInstanceSegmentation"],
        "model_type": "maskformer",
        "backbone_config": _backbone(tensors, ".model", model.backbone),
        "decoder_config": {
            "d_model": decoder.channels,
            "num_queries": decoder.queries,
            "encoder_layers": 0,
            "encoder_attention_heads": decoder.heads,
            "decoder_layers": decoder.layers,
            "decoder_attention_heads": decoder.heads,
            "decoder_ffn_dim": decoder.feedforward_channels,
            "dropout": decoder.dropout,
            "attention_dropout": decoder.dropout,
            "activation_dropout": decoder.dropout,
            **{key: value for key, value in _MASKFORMER_FIXED.items() if key != "scale_embedding"},
        },
        "fpn_feature_size": model.pixel_decoder.channels,
        "mask_feature_size": model.pixel_decoder.mask_channels,
        "no_object_weight": losses.no_object_weight,
        "cross_entropy_weight": losses.class_weight,
        "mask_weight": losses.mask_weight,
        "dice_weight": losses.dice_weight,
    }


def _write_detr(tensors: Mapping[str, Tensor], model_file: ModelFile) -> Json:
    """Weights of costs and losses are left at their defaults, because theirs must be integers."""
    model = model_file.experiment.model
    assert isinstance(model, DetrConfig)
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
        "eos_coefficient": model_file.experiment.losses.no_object_weight,
        **_DETR_FIXED,
    }


def _backbone(tensors: Mapping[str, Tensor], swin: str, config: BackboneConfig) -> Json:
    """Return the backbone's part of the file; `swin` is where a Swin lies in the encoder.

    Raises:
        WeightsError: it is a ResNet of another kind than the releases have.
    """
    encoder = "model.pixel_level_module.encoder"
    stem = f"{encoder}.embedder.embedder.convolution.weight"
    if stem in tensors:
        last = [
            f"{encoder}.encoder.stages.{stage}.layers.{{}}.layer.2.convolution.weight" for stage in range(4)
        ]
        if last[0].format(0) not in tensors:
            raise WeightsError(
                config.name,
                "is made of basic blocks of two convolutions; only ResNets of bottlenecks (resnet50 and "
                "deeper) and Swins can be written for transformers",
            )
        return {
            "model_type": "resnet",
            "embedding_size": tensors[stem].shape[0],
            "hidden_sizes": [tensors[pattern.format(0)].shape[0] for pattern in last],
            "depths": [_count(tensors, pattern) for pattern in last],
            "out_features": _STAGES,
            **({} if config.freeze_norm else {_FREEZE_NORM: False}),
            **_BACKBONE_FIXED["resnet"],
        }
    table = "attention.self.relative_position_bias_table"
    tables = [f"{encoder}{swin}.encoder.layers.{stage}.blocks.{{}}.{table}" for stage in range(4)]
    return {
        "model_type": "swin",
        "embed_dim": tensors[f"{encoder}{swin}.embeddings.norm.weight"].shape[0],
        "depths": [_count(tensors, pattern) for pattern in tables],
        "num_heads": [tensors[pattern.format(0)].shape[1] for pattern in tables],
        "window_size": (round(tensors[tables[0].format(0)].shape[0] ** 0.5) + 1) // 2,
        "drop_path_rate": config.drop_path_rate,
        "out_features": _STAGES,
        **_BACKBONE_FIXED["swin"],
    }


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    count = 0
    while pattern.format(count) in tensors:
        count += 1
    return count


FORMATS: Mapping[str, ConfigFormat] = {
    "mask2former": ConfigFormat(
        names=hugging_face.MASK2FORMER,
        image_processor="Mask2FormerImageProcessor",
        read=_read_mask2former,
        write=_write_mask2former,
    ),
    "maskformer": ConfigFormat(
        names=hugging_face.MASKFORMER,
        image_processor="MaskFormerImageProcessor",
        read=_read_maskformer,
        write=_write_maskformer,
    ),
    "eomt": ConfigFormat(
        names=eomt.TRANSFORMERS_DINOV2,
        image_processor="EomtImageProcessor",
        read=read_eomt,
        write=write_eomt,
    ),
    "eomt_dinov3": ConfigFormat(
        names=eomt.TRANSFORMERS_DINOV3,
        image_processor="EomtImageProcessor",
        read=read_eomt,
        write=write_eomt,
    ),
    "detr": ConfigFormat(
        names=hugging_face.DETR,
        image_processor="DetrImageProcessor",
        read=_read_detr,
        write=_write_detr,
    ),
}
"""By the `model_type` in `config.json`."""
