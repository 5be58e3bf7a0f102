"""Folders of Hugging Face transformers: their tensors, and their configuration in both directions."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from unimask.checkpoints.images import ModelFile
from unimask.checkpoints.tensors import load_tensors, save_tensors
from unimask.config.images import DetrConfig, ModelConfig, ShortSide
from unimask.conversion import hugging_face_detr
from unimask.conversion.foreign_files import read_foreign_tensors
from unimask.errors import WeightsError
from unimask.files import write_text

Json = dict[str, object]

# What the file may say where our model has no choice; where it says nothing, this is what it means.
_FIXED: Mapping[str, object] = {
    "pre_norm": False,
    "activation_function": "relu",
    "enforce_input_projection": False,
    "common_stride": 4,
    "feature_strides": [4, 8, 16, 32],
}
_FIXED_DECODER: Mapping[str, object] = {  # of MaskFormer
    "model_type": "detr",
    "activation_function": "relu",
    "position_embedding_type": "sine",
    "scale_embedding": False,
}
_FIXED_BACKBONE: Mapping[str, Mapping[str, object]] = {
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
class Description:
    """What the configuration of a transformers folder says and its tensors do not."""

    heads: int  # of attention, in both decoders
    names: tuple[str, ...]  # of the categories; empty where there are only placeholders
    image_mean: tuple[float, float, float] | None  # RGB, 0..255
    image_std: tuple[float, float, float] | None
    resize: ShortSide | None


def is_hugging_face(folder: Path) -> bool:
    """Whether a folder holds a configuration of transformers; a broken one counts too."""
    path = folder / "config.json"
    return path.is_file() and '"model_type"' in path.read_text(encoding="utf-8", errors="replace")


def kind_of(folder: Path) -> str:
    """What `config.json` says the model is: `mask2former`, `detr`, ...

    Raises:
        WeightsError: the file cannot be read.
    """
    return str(read_json(folder / "config.json").get("model_type"))


def download(name: str) -> Path:
    """A model of the Hugging Face hub in the local cache: configuration and weights.

    Raises:
        WeightsError: it cannot be had, for instance because there is no network or no such model.
    """
    from huggingface_hub import snapshot_download

    patterns = [
        "config.json",
        "preprocessor_config.json",
        "model*.safetensors",
        "model.safetensors.index.json",
    ]
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*patterns[:2], "pytorch_model*"]))
    except Exception as error:  # the hub's client can fail in many ways, all of them mean the same here
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            name, f"is no file or folder here, and could not be had from the Hugging Face hub ({reason})"
        ) from None
    return folder


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder: safetensors before pickles, one file or several.

    Raises:
        WeightsError: there are no weights, or a file cannot be read.
    """
    readers: tuple[tuple[str, Callable[[Path], dict[str, Tensor]]], ...] = (
        ("model*.safetensors", load_tensors),
        ("pytorch_model*.bin", read_foreign_tensors),
    )
    for pattern, read in readers:
        paths = sorted(folder.glob(pattern))
        if paths:
            return {key: tensor for path in paths for key, tensor in read(path).items()}
    raise WeightsError(folder, "holds no model.safetensors and no pytorch_model.bin")


def read_description(folder: Path, check: Callable[[Path, Json], None] | None = None) -> Description:
    """What `config.json` and, where there is one, `preprocessor_config.json` say.

    `check` raises for what the model cannot be; without it, it must be a Mask2Former or MaskFormer.

    Raises:
        WeightsError: a file is broken, is of another kind of model, or asks for what our model does not have.
    """
    config = read_json(folder / "config.json")
    (check or _check)(folder / "config.json", config)
    labels = config.get("id2label")
    labels = labels if isinstance(labels, dict) else {}
    names = tuple(str(labels[key]) for key in sorted(labels, key=int))
    placeholders = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    heads = _heads(folder / "config.json", config)
    processor = folder / "preprocessor_config.json"
    pixels = read_json(processor) if processor.is_file() else {}
    return Description(
        heads=heads,
        names=() if placeholders else names,
        image_mean=_channels(pixels.get("image_mean")),
        image_std=_channels(pixels.get("image_std")),
        resize=_resize(pixels),
    )


def read_json(path: Path) -> Json:
    """The JSON object in a file.

    Raises:
        WeightsError: it cannot be read, or is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(path, f"cannot be read as JSON ({error})") from None
    if not isinstance(content, dict):
        raise WeightsError(path, "must be a JSON object")
    return content


def _heads(path: Path, config: Json) -> int:
    """The attention heads of the decoder."""
    decoder = config.get("decoder_config")
    heads = config.get("num_attention_heads", 8)
    if config["model_type"] == "maskformer" and isinstance(decoder, dict):
        heads = decoder.get("decoder_attention_heads", 8)
    if not isinstance(heads, int) or heads < 1:
        raise WeightsError(path, f"num_attention_heads is {heads!r}")
    return heads


def _check(path: Path, config: Json) -> None:
    kind = config.get("model_type")
    if kind not in ("mask2former", "maskformer"):
        raise WeightsError(
            path,
            f"is of a {kind!r} model; only 'mask2former', 'maskformer' and 'detr' can be converted",
        )
    backbone = _part(config, "backbone_config")
    name = str(backbone.get("model_type", "not described"))
    if name not in _KINDS_OF_BACKBONE:
        raise WeightsError(
            path, f"its backbone is {name}; only {' and '.join(_FIXED_BACKBONE)} can be converted"
        )
    parts: list[tuple[str, Json, Mapping[str, object]]] = [
        ("backbone_config.", backbone, _FIXED_BACKBONE[_KINDS_OF_BACKBONE[name]])
    ]
    if kind == "mask2former":
        parts.append(("", config, _FIXED))
    else:
        parts.append(("decoder_config.", _part(config, "decoder_config"), _FIXED_DECODER))
    for where, given, fixed in parts:
        for key, value in fixed.items():
            if given.get(key, value) != value:
                raise WeightsError(path, f"{where}{key} is {given[key]!r}; only {value!r} can be converted")


def _part(config: Json, name: str) -> Json:
    part = config.get(name)
    return part if isinstance(part, dict) else {}


def _channels(values: object) -> tuple[float, float, float] | None:
    """Three numbers of a scale of 0..1 on our scale of 0..255."""
    if not isinstance(values, list) or len(values) != 3:
        return None
    red, green, blue = (round(float(value) * 255, 4) for value in values)
    return red, green, blue


def _resize(pixels: Json) -> ShortSide | None:
    size = pixels.get("size")
    sides = (
        size if isinstance(size, dict) else {"shortest_edge": size, "longest_edge": pixels.get("max_size")}
    )
    short, longest = sides.get("shortest_edge"), sides.get("longest_edge")
    if isinstance(short, int) and isinstance(longest, int):
        return ShortSide(size=short, longest=longest)
    return None


def write_folder(folder: Path, tensors: Mapping[str, Tensor], model_file: ModelFile) -> None:
    """Write a folder that transformers' `from_pretrained` reads; files that are there are replaced."""
    model = model_file.experiment.model
    if isinstance(model, DetrConfig):
        config = hugging_face_detr.config_of(model, model_file)
    else:
        of_kind = {"deformable": _config, "pyramid": _maskformer_config}[model.pixel_decoder.kind]
        config = of_kind(tensors, model, model_file)
    processor = _processor(model_file)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_text(folder / "preprocessor_config.json", json.dumps(processor, indent=2) + "\n")
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")


def _labels(model_file: ModelFile) -> Json:
    names = model_file.categories.names
    return {
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }


def _config(tensors: Mapping[str, Tensor], model: ModelConfig, model_file: ModelFile) -> Json:
    losses = model_file.experiment.losses
    return {
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "model_type": "mask2former",
        "backbone_config": _backbone_config(tensors, "", model.backbone.drop_path_rate),
        "feature_size": model.pixel_decoder.channels,
        "mask_feature_size": model.pixel_decoder.mask_channels,
        "hidden_dim": model.query_decoder.channels,
        "encoder_feedforward_dim": model.pixel_decoder.feedforward_channels,
        "encoder_layers": model.pixel_decoder.layers,
        "decoder_layers": model.query_decoder.layers
        + 1,  # theirs counts the prediction before the first layer
        "num_attention_heads": model.query_decoder.heads,
        "dropout": model.query_decoder.dropout,
        "dim_feedforward": model.query_decoder.feedforward_channels,
        "num_queries": model.query_decoder.queries,
        "no_object_weight": losses.no_object_weight,
        "class_weight": losses.class_weight,
        "mask_weight": losses.mask_weight,
        "dice_weight": losses.dice_weight,
        "train_num_points": losses.points,
        "oversample_ratio": losses.oversampling,
        "importance_sample_ratio": losses.importance,
        **_FIXED,
        **_labels(model_file),
    }


def _maskformer_config(tensors: Mapping[str, Tensor], model: ModelConfig, model_file: ModelFile) -> Json:
    losses, decoder = model_file.experiment.losses, model.query_decoder
    return {
        "architectures": ["MaskFormerForInstanceSegmentation"],
        "model_type": "maskformer",
        "backbone_config": _backbone_config(tensors, ".model", model.backbone.drop_path_rate),
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
            **{key: value for key, value in _FIXED_DECODER.items() if key != "scale_embedding"},
        },
        "fpn_feature_size": model.pixel_decoder.channels,
        "mask_feature_size": model.pixel_decoder.mask_channels,
        "no_object_weight": losses.no_object_weight,
        "cross_entropy_weight": losses.class_weight,
        "mask_weight": losses.mask_weight,
        "dice_weight": losses.dice_weight,
        **_labels(model_file),
    }


def _backbone_config(tensors: Mapping[str, Tensor], swin: str, drop_path_rate: float) -> Json:
    """The backbone's part; `swin` is where in it a Swin lies."""
    encoder = "model.pixel_level_module.encoder"
    if f"{encoder}.embedder.embedder.convolution.weight" in tensors:
        last = [
            f"{encoder}.encoder.stages.{stage}.layers.{{}}.layer.2.convolution.weight" for stage in range(4)
        ]
        return {
            "model_type": "resnet",
            "embedding_size": tensors[f"{encoder}.embedder.embedder.convolution.weight"].shape[0],
            "hidden_sizes": [tensors[pattern.format(0)].shape[0] for pattern in last],
            "depths": [_count(tensors, pattern) for pattern in last],
            "out_features": _STAGES,
            **_FIXED_BACKBONE["resnet"],
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
        **_FIXED_BACKBONE["swin"],
    }


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    count = 0
    while pattern.format(count) in tensors:
        count += 1
    return count


_PROCESSORS = {
    "deformable": "Mask2FormerImageProcessor",
    "pyramid": "MaskFormerImageProcessor",
    "detr": "DetrImageProcessor",
}


def _processor(model_file: ModelFile) -> Json:
    experiment = model_file.experiment
    model = experiment.model
    kind = "detr" if isinstance(model, DetrConfig) else model.pixel_decoder.kind
    resize = experiment.data.resize if isinstance(experiment.data.resize, ShortSide) else None
    size = {"size": {"shortest_edge": resize.size, "longest_edge": resize.longest}} if resize else {}
    return {
        "image_processor_type": _PROCESSORS[kind],
        "do_resize": resize is not None,
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
