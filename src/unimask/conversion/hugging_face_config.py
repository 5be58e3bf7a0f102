"""`config.json` and `preprocessor_config.json` of Hugging Face transformers, in both directions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from unimask.checkpoints.images import ModelFile
from unimask.config.images import (
    AnyModelConfig,
    DetrConfig,
    EomtConfig,
    ModelConfig,
    ShortSide,
    SlidingWindow,
    Square,
)
from unimask.conversion import eomt, hugging_face
from unimask.conversion.architecture import HEADS, Stated
from unimask.conversion.checkpoint_format import CheckpointFormat
from unimask.errors import WeightsError
from unimask.files import read_json
from unimask.presets.eomt import LONGEST

Json = dict[str, object]

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
_EOMT_FIXED: Mapping[str, Mapping[str, object]] = {
    "eomt": {
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "mlp_ratio": 4,
        "use_swiglu_ffn": False,
        "hidden_dropout_prob": 0.0,
        "attention_dropout": 0.0,
    },
    "eomt_dinov3": {
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "use_gated_mlp": False,
        "query_bias": True,
        "key_bias": False,
        "value_bias": True,
        "proj_bias": True,
        "mlp_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_dropout": 0.0,
        "rope_theta": 100.0,
    },
}
_ROTARY_FIXED: Mapping[str, object] = {"rope_theta": 100.0, "rope_type": "default"}
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
_STAGES = ["stage1", "stage2", "stage3", "stage4"]


@dataclass(frozen=True, kw_only=True)
class ConfigFormat:
    """How transformers describes a kind of model."""

    names: CheckpointFormat  # of its tensors
    image_processor: str  # the class that reads `preprocessor_config.json`
    read: Callable[
        [Path, Json], Stated
    ]  # path and content of a `config.json`; refuses what our model does not have
    write: Callable[[Mapping[str, Tensor], ModelFile], Json]  # exported tensors, model -> `config.json`


def format_of(model_type: object, path: Path) -> ConfigFormat:
    """Return the format of a `model_type`.

    Raises:
        WeightsError: no model of this type can be converted.
    """
    if model_type not in FORMATS:
        *most, last = map(repr, FORMATS)
        known = f"{', '.join(most)} and {last}"
        raise WeightsError(path, f"is of a {model_type!r} model; only {known} can be converted")
    return FORMATS[str(model_type)]


def format_for(model: AnyModelConfig) -> ConfigFormat:
    """Return the format in which transformers keeps a model."""
    if isinstance(model, EomtConfig):
        return FORMATS[{"dinov2": "eomt", "dinov3": "eomt_dinov3"}[model.backbone.kind]]
    if isinstance(model, DetrConfig):
        return FORMATS["detr"]
    return FORMATS[{"deformable": "mask2former", "pyramid": "maskformer"}[model.pixel_decoder.kind]]


def read_stated(folder: Path) -> tuple[ConfigFormat, Stated]:
    """Return what `config.json` and, where there is one, `preprocessor_config.json` say.

    Raises:
        WeightsError: a file is broken, is of another kind of model, or asks for what our model does not have.
    """
    path = folder / "config.json"
    config = read_object(path)
    config_format = format_of(config.get("model_type"), path)
    stated = config_format.read(path, config)
    labels = _part(config, "id2label")
    names = tuple(str(labels[key]) for key in sorted(labels, key=int))
    placeholders = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    processor = folder / "preprocessor_config.json"
    pixels = read_object(processor) if processor.is_file() else {}
    return config_format, replace(
        stated,
        names=() if placeholders else names,
        image_mean=_channels(pixels.get("image_mean"), stated.image_mean),
        image_std=_channels(pixels.get("image_std"), stated.image_std),
        resize=_resize(pixels),
    )


def read_object(path: Path) -> Json:
    """Return the JSON object in a file.

    Raises:
        WeightsError: it cannot be read, or is none.
    """
    content = read_json(path, WeightsError)
    if not isinstance(content, dict):
        raise WeightsError(path, "must be a JSON object")
    return content


def check_fixed(path: Path, given: Json, fixed: Mapping[str, object], where: str = "") -> None:
    """Check that a part of a configuration says nothing that differs from `fixed`.

    Raises:
        WeightsError: it does; the message names the key below `where`.
    """
    for key, value in fixed.items():
        if given.get(key, value) != value:
            raise WeightsError(path, f"{where}{key} is {given[key]!r}; only {value!r} can be converted")


def _heads(path: Path, given: Json, key: str) -> int:
    heads = given.get(key, HEADS)
    if not isinstance(heads, int) or heads < 1:
        raise WeightsError(path, f"{key} is {heads!r}")
    return heads


def _read_mask2former(path: Path, config: Json) -> Stated:
    _check_backbone(path, config)
    check_fixed(path, config, _MASK2FORMER_FIXED)
    return Stated(heads=_heads(path, config, "num_attention_heads"))


def _read_maskformer(path: Path, config: Json) -> Stated:
    _check_backbone(path, config)
    decoder = _part(config, "decoder_config")
    check_fixed(path, decoder, _MASKFORMER_FIXED, "decoder_config.")
    return Stated(heads=_heads(path, decoder, "decoder_attention_heads"))


def _read_detr(path: Path, config: Json) -> Stated:
    check_fixed(path, config, _DETR_FIXED)
    if config.get("encoder_attention_heads") != config.get("decoder_attention_heads"):
        raise WeightsError(path, "encoder and decoder differ in attention heads; that cannot be converted")
    backbone = _part(config, "backbone_config")
    kind = backbone.get("model_type") if backbone else "timm_backbone"
    if kind != "timm_backbone" or config.get("use_timm_backbone") is False:
        raise WeightsError(path, f"its backbone is {kind}; only those of timm can be converted")
    dropout = config.get("dropout", 0.1)
    if not isinstance(dropout, int | float):
        raise WeightsError(path, f"dropout is {dropout!r}")
    described = backbone or config
    return Stated(
        heads=_heads(path, config, "encoder_attention_heads"),
        dropout=float(dropout),
        backbone=str(described.get("backbone") or "resnet50"),
        dilated=described.get("output_stride") == 16 or bool(config.get("dilation")),
    )


def _read_eomt(path: Path, config: Json) -> Stated:
    check_fixed(path, config, _EOMT_FIXED[str(config["model_type"])])
    check_fixed(path, _part(config, "rope_parameters"), _ROTARY_FIXED, "rope_parameters.")
    size = config.get("image_size", 640)
    if not isinstance(size, int):
        raise WeightsError(path, f"image_size is {size!r}; only squares can be converted")
    return Stated(heads=_heads(path, config, "num_attention_heads"), size=size)


def _check_backbone(path: Path, config: Json) -> None:
    backbone = _part(config, "backbone_config")
    name = str(backbone.get("model_type", "not described"))
    if name not in _KINDS_OF_BACKBONE:
        raise WeightsError(
            path, f"its backbone is {name}; only {' and '.join(_BACKBONE_FIXED)} can be converted"
        )
    check_fixed(path, backbone, _BACKBONE_FIXED[_KINDS_OF_BACKBONE[name]], "backbone_config.")


def _part(config: Json, name: str) -> Json:
    part = config.get(name)
    return part if isinstance(part, dict) else {}


def _channels(values: object, usual: tuple[float, float, float]) -> tuple[float, float, float]:
    """Three numbers of a scale of 0..1 on our scale of 0..255; `usual` where there are none."""
    if not isinstance(values, list) or len(values) != 3:
        return usual
    red, green, blue = (round(float(value) * 255, 4) for value in values)
    return red, green, blue


def _resize(pixels: Json) -> ShortSide | Square | None:
    size = pixels.get("size")
    sides = (
        size if isinstance(size, dict) else {"shortest_edge": size, "longest_edge": pixels.get("max_size")}
    )
    short, longest = sides.get("shortest_edge"), sides.get("longest_edge")
    if isinstance(short, int) and str(pixels.get("image_processor_type")).startswith("Eomt"):
        split = pixels.get("do_split_image") is True
        return ShortSide(size=short, longest=LONGEST * short) if split else Square(size=short)
    if isinstance(short, int) and isinstance(longest, int):
        return ShortSide(size=short, longest=longest)
    return None


def written_config(config_format: ConfigFormat, tensors: Mapping[str, Tensor], model_file: ModelFile) -> Json:
    """Return the content of `config.json` for a model."""
    names = model_file.categories.names
    return {
        **config_format.write(tensors, model_file),
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }


def written_processor(config_format: ConfigFormat, model_file: ModelFile) -> Json:
    """Return the content of `preprocessor_config.json` for a model."""
    experiment = model_file.experiment
    resize = experiment.data.resize
    size: Json = {}
    if isinstance(experiment.data.view, SlidingWindow):
        size = {"size": {"shortest_edge": experiment.data.view.size}, "do_split_image": True}
    elif isinstance(resize, ShortSide):
        size = {"size": {"shortest_edge": resize.size, "longest_edge": resize.longest}}
    elif isinstance(resize, Square):
        size = {"size": {"shortest_edge": resize.size, "longest_edge": resize.size}, "do_pad": True}
    return {
        "image_processor_type": config_format.image_processor,
        "do_resize": bool(size),
        **size,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [value / 255 for value in experiment.model.backbone.image_mean],
        "image_std": [value / 255 for value in experiment.model.backbone.image_std],
        "size_divisor": experiment.data.divisor,
        "ignore_index": 255,
        "do_reduce_labels": False,
    }


def _write_mask2former(tensors: Mapping[str, Tensor], model_file: ModelFile) -> Json:
    model, losses = model_file.experiment.model, model_file.experiment.losses
    assert isinstance(model, ModelConfig)
    pixels, queries = model.pixel_decoder, model.query_decoder
    return {
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "model_type": "mask2former",
        "backbone_config": _backbone(tensors, "", model.backbone.drop_path_rate),
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
        "no_object_weight": losses.no_object_weight,
        "class_weight": losses.class_weight,
        "mask_weight": losses.mask_weight,
        "dice_weight": losses.dice_weight,
        "train_num_points": losses.points,
        "oversample_ratio": losses.oversampling,
        "importance_sample_ratio": losses.importance,
        **_MASK2FORMER_FIXED,
    }


def _write_maskformer(tensors: Mapping[str, Tensor], model_file: ModelFile) -> Json:
    model, losses = model_file.experiment.model, model_file.experiment.losses
    assert isinstance(model, ModelConfig)
    decoder = model.query_decoder
    return {
        "architectures": ["MaskFormerForInstanceSegmentation"],
        "model_type": "maskformer",
        "backbone_config": _backbone(tensors, ".model", model.backbone.drop_path_rate),
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


def _write_eomt(tensors: Mapping[str, Tensor], model_file: ModelFile) -> Json:
    model, losses = model_file.experiment.model, model_file.experiment.losses
    assert isinstance(model, EomtConfig)
    backbone = model.backbone
    dinov3 = backbone.kind == "dinov3"
    name = "EomtDinov3" if dinov3 else "Eomt"
    fixed = dict(_EOMT_FIXED["eomt_dinov3" if dinov3 else "eomt"])
    if dinov3:
        del fixed["rope_theta"]  # today it is one of the parameters
        fixed |= {"rope_parameters": dict(_ROTARY_FIXED), "intermediate_size": backbone.feedforward_channels}
    else:
        fixed["mlp_ratio"] = backbone.feedforward_channels // backbone.channels
    return {
        "architectures": [f"{name}ForUniversalSegmentation"],
        "model_type": "eomt_dinov3" if dinov3 else "eomt",
        "hidden_size": backbone.channels,
        "num_hidden_layers": backbone.blocks,
        "num_attention_heads": backbone.heads,
        "image_size": backbone.size,
        "patch_size": backbone.patch,
        "num_register_tokens": backbone.registers,
        "num_queries": model.queries,
        "num_blocks": model.query_blocks,
        "num_upscale_blocks": sum(key.endswith("conv1.weight") for key in tensors),
        "no_object_weight": losses.no_object_weight,
        "class_weight": losses.class_weight,
        "mask_weight": losses.mask_weight,
        "dice_weight": losses.dice_weight,
        "train_num_points": losses.points,
        "oversample_ratio": losses.oversampling,
        "importance_sample_ratio": losses.importance,
        **fixed,
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


def _backbone(tensors: Mapping[str, Tensor], swin: str, drop_path_rate: float) -> Json:
    """Return the backbone's part of the file; `swin` is where a Swin lies in the encoder."""
    encoder = "model.pixel_level_module.encoder"
    stem = f"{encoder}.embedder.embedder.convolution.weight"
    if stem in tensors:
        last = [
            f"{encoder}.encoder.stages.{stage}.layers.{{}}.layer.2.convolution.weight" for stage in range(4)
        ]
        return {
            "model_type": "resnet",
            "embedding_size": tensors[stem].shape[0],
            "hidden_sizes": [tensors[pattern.format(0)].shape[0] for pattern in last],
            "depths": [_count(tensors, pattern) for pattern in last],
            "out_features": _STAGES,
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
        "drop_path_rate": drop_path_rate,
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
        read=_read_eomt,
        write=_write_eomt,
    ),
    "eomt_dinov3": ConfigFormat(
        names=eomt.TRANSFORMERS_DINOV3,
        image_processor="EomtImageProcessor",
        read=_read_eomt,
        write=_write_eomt,
    ),
    "detr": ConfigFormat(
        names=hugging_face.DETR,
        image_processor="DetrImageProcessor",
        read=_read_detr,
        write=_write_detr,
    ),
}
"""By the `model_type` in `config.json`."""
