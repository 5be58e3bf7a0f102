"""The `config.json` of EoMT in Hugging Face transformers, in both directions."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from unimask.checkpoints.images import ModelFile
from unimask.config.models import EomtConfig
from unimask.conversion.architecture import Stated
from unimask.conversion.hugging_face_values import Json, check_fixed, heads_in, part_of, written_losses
from unimask.errors import WeightsError

# What the file may say where our model has no choice; where it says nothing, this is what it means.
_FIXED: Mapping[str, Mapping[str, object]] = {
    "eomt": {
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "mlp_ratio": 4,
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


def read_eomt(path: Path, config: Json) -> Stated:
    """Return what the file says of an EoMT.

    Raises:
        WeightsError: it asks for what our model does not have.
    """
    check_fixed(path, config, _FIXED[str(config["model_type"])])
    check_fixed(path, part_of(path, config, "rope_parameters"), _ROTARY_FIXED, "rope_parameters.")
    size = config.get("image_size", 640)
    if type(size) is not int or size < 1:
        raise WeightsError(path, f"image_size is {size!r}; only squares can be converted")
    return Stated(heads=heads_in(path, config, "num_attention_heads"), size=size)


def has_gates(config: Json) -> bool:
    """Return whether the feed-forwards of an EoMT have gates."""
    return config.get("model_type") == "eomt" and config.get("use_swiglu_ffn") is True


def write_eomt(tensors: Mapping[str, Tensor], model_file: ModelFile) -> Json:
    """Return what the file says of an EoMT, but for its categories."""
    model, losses = model_file.experiment.model, model_file.experiment.losses
    assert isinstance(model, EomtConfig)
    backbone = model.backbone
    dinov3 = backbone.kind == "dinov3"
    name, kind = ("EomtDinov3", "eomt_dinov3") if dinov3 else ("Eomt", "eomt")
    fixed = dict(_FIXED[kind])
    if dinov3:
        del fixed["rope_theta"]  # today it is one of the parameters
        fixed |= {"rope_parameters": dict(_ROTARY_FIXED), "intermediate_size": backbone.feedforward_channels}
    else:
        # with gates transformers takes two thirds of the hidden width that it is told
        told = backbone.feedforward_channels * (3 if backbone.gated else 2) // 2
        fixed |= {"mlp_ratio": told // backbone.channels, "use_swiglu_ffn": backbone.gated}
    return {
        "architectures": [f"{name}ForUniversalSegmentation"],
        "model_type": kind,
        "hidden_size": backbone.channels,
        "num_hidden_layers": backbone.blocks,
        "num_attention_heads": backbone.heads,
        "image_size": backbone.size,
        "patch_size": backbone.patch,
        "num_register_tokens": backbone.registers,
        "num_queries": model.queries,
        "num_blocks": model.query_blocks,
        "num_upscale_blocks": sum(key.endswith("conv1.weight") for key in tensors),
        **written_losses(losses),
        **fixed,
    }
