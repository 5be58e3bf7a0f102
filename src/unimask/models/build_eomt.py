"""Builds an EoMT and its Vision Transformer with random weights from their configs."""

from collections.abc import Callable
from functools import partial

from torch import nn
from torch.nn import functional

from unimask.config.models import EomtConfig, VisionTransformerConfig
from unimask.config.values import check_divisible, check_values
from unimask.errors import ConfigError
from unimask.models.eomt import Eomt, Upscaling, masked_attention, open_attention
from unimask.models.heads import MaskHeads
from unimask.models.pixel_decoders import MASK_STRIDE
from unimask.nn.transformer import FeedForward
from unimask.nn.vit import (
    Block,
    GatedFeedForward,
    KeylessBias,
    LearnedPositions,
    RotaryPositions,
    TokenAttention,
    VisionTransformer,
    kept,
    recomputed,
)

NORM_EPS = {"dinov2": 1e-6, "dinov3": 1e-5}
RUN_BLOCK = {False: kept, True: recomputed}
PREDICTED_WITH = {"open": open_attention, "masked": masked_attention, "annealed": open_attention}
"""`EomtConfig.attention` -> the attention rule of predictions."""


def build_eomt(config: EomtConfig, num_classes: int) -> Eomt:
    """Return an EoMT, with the attention rule of predictions.

    Raises:
        ConfigError: see `build_model`.
    """
    check_values(config, "model")
    if config.query_blocks > config.backbone.blocks:
        reason = f"{config.query_blocks} of {config.backbone.blocks} blocks (model.backbone.blocks)"
        raise ConfigError("model.query_blocks", reason)
    backbone = build_vision_transformer(config.backbone)
    channels = config.backbone.channels
    return Eomt(
        backbone=backbone,
        queries=config.queries,
        query_blocks=config.query_blocks,
        upscaling=[Upscaling(channels) for _ in range(_doublings(config.backbone.patch))],
        heads=MaskHeads(channels, channels, num_classes, functional.gelu),
        rule=PREDICTED_WITH[config.attention],
    )


def _doublings(patch: int) -> int:
    """Return how many times a map of patches must be doubled in size to reach stride 4.

    Raises:
        ConfigError: `patch` is not 4, 8, 16 or 32.
    """
    steps = (patch // MASK_STRIDE).bit_length() - 1
    if steps < 0 or MASK_STRIDE * 2**steps != patch:
        raise ConfigError("model.backbone.patch", f"must be 4, 8, 16 or 32, not {patch}")
    return steps


def build_vision_transformer(config: VisionTransformerConfig) -> VisionTransformer:
    """Return the Vision Transformer of an EoMT.

    Raises:
        ConfigError: see `build_model`.
    """
    path, channels = "model.backbone", config.channels
    check_values(config, path)
    check_divisible(channels, config.heads, f"{path}.channels", "heads")
    if config.patch < 1 or config.size < 1 or config.size % config.patch:
        reason = f"must be a multiple of the patch, {config.patch}; got {config.size}"
        raise ConfigError(f"{path}.size", reason)
    eps = NORM_EPS[config.kind]
    head_channels, grid = channels // config.heads, config.size // config.patch
    inputs: Callable[[], nn.Linear | KeylessBias]
    positions: LearnedPositions | RotaryPositions
    if config.kind == "dinov3":
        check_divisible(head_channels, 4, f"{path}.channels", "parts of a rotation, per head")
        inputs, positions = partial(KeylessBias, channels), RotaryPositions(head_channels)
    else:
        inputs = partial(nn.Linear, channels, 3 * channels)
        positions = LearnedPositions((grid, grid), channels)
    feedforward: Callable[[], FeedForward | GatedFeedForward]
    if config.gated:
        feedforward = partial(GatedFeedForward, channels, config.feedforward_channels)
    else:
        feedforward = partial(FeedForward, channels, config.feedforward_channels, activation=functional.gelu)
    blocks = [
        Block(TokenAttention(inputs(), channels, config.heads), feedforward(), channels, eps)
        for _ in range(config.blocks)
    ]
    return VisionTransformer(
        patch=config.patch,
        registers=config.registers,
        channels=channels,
        positions=positions,
        blocks=blocks,
        norm_eps=eps,
        run=RUN_BLOCK[config.recompute],
    )
