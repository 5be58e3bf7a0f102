"""EoMT: predicts a set of (class, mask) pairs with a plain Vision Transformer, without any decoder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from unimask.models.heads import MaskHeads
from unimask.nn.vit import Scale, VisionTransformer
from unimask.ops.dispatch import double_maps, resize_maps
from unimask.structures import MaskPrediction, Size, Uniform

Foreground = Callable[[], Tensor]
"""Adds a prediction and returns its foreground (batch, queries, patches): True inside the query's mask."""

AttentionRule = Callable[[int, Foreground], Tensor | None]
"""Returns which patches each query may attend to in a block, counted from the first with queries; None: all.

A rule that calls the foreground function adds a prediction before that block, supervised in training."""


def open_attention(block: int, foreground: Foreground) -> None:
    """Let every query attend to all patches; the only prediction is that after the last block."""


def masked_attention(block: int, foreground: Foreground) -> Tensor:
    """Let each query attend to the foreground of its own last mask.

    A query whose mask is empty still attends to the queries, the class token and the registers.

    Source: EoMT (2503.19108), Sec. 3.2, after Mask2Former, Sec. 3.2.1.
    """
    return foreground()


@dataclass(frozen=True, kw_only=True)
class AnnealedAttention:
    """Masked attention with the attention mask removed for some queries, drawn at random in each block.

    `chances` is, per block, the probability that a query keeps its attention mask.

    Source: EoMT, Sec. 3.3 (mask annealing).
    """

    chances: tuple[float, ...]
    uniform: Uniform

    def __call__(self, block: int, foreground: Foreground) -> Tensor:
        """Return the foreground for queries that keep their attention mask, else all patches."""
        visible = foreground()
        lifted = self.uniform((*visible.shape[:2], 1)) > self.chances[block]
        return visible | lifted


_NORM_EPS = 1e-6


class Upscaling(nn.Module):
    """Upscales maps to twice the size: transposed convolution, GELU, depthwise convolution, norm.

    Source: EoMT, Sec. 3.2 (upscaling); the order of its layers is only in the original code.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.mix = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = nn.LayerNorm(channels, eps=_NORM_EPS)

    def forward(
        self, maps: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels 2*height 2*width"]:
        """Return maps of twice the size."""
        assert self.expand.bias is not None
        expanded = double_maps(maps, self.expand.weight, self.expand.bias)
        mixed = self.mix(functional.gelu(expanded))
        normed: Tensor = self.norm(mixed.permute(0, 2, 3, 1))
        return normed.permute(0, 3, 1, 2)


def smaller_factors(
    embeddings: Float[Tensor, "batch queries channels"],
    features: Float[Tensor, "batch channels height width"],
) -> tuple[Float[Tensor, "batch queries _"], Float[Tensor, "batch _ height width"]]:
    """Return embeddings and features with the same product and min(queries, channels) channels.

    If there are at least as many channels as queries, the features are replaced with the product, the mask
    logits, and the embeddings with the identity matrix. So sampling, resizing or storing the features takes
    min(queries, channels) maps.
    """
    queries, channels = embeddings.shape[1:]
    if channels < queries:
        return embeddings, features
    own = torch.eye(queries, device=embeddings.device, dtype=embeddings.dtype)
    # in this order masks and gradients are channels_last in memory, as the features are
    masks = features.flatten(2).transpose(1, 2) @ embeddings.transpose(1, 2)
    return own.expand(embeddings.shape[0], -1, -1), masks.transpose(1, 2).unflatten(2, features.shape[2:])


class Eomt(nn.Module):
    """Encoder-only Mask Transformer: queries are added to the tokens of a Vision Transformer.

    They are added before the last `query_blocks` blocks. There is a prediction after the last block, and one
    before each of these blocks in which the attention rule uses masks. All predictions share the norm and the
    heads. `rule` is the attention rule of `forward`.

    Source: Kerssies et al., Your ViT is Secretly an Image Segmentation Model (2503.19108), Sec. 3.
    """

    def __init__(
        self,
        *,
        backbone: VisionTransformer,
        queries: int,
        query_blocks: int,
        upscaling: Sequence[Upscaling],
        heads: MaskHeads,
        rule: AttentionRule,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.queries = nn.Embedding(queries, backbone.channels)
        self.first_query_block = len(backbone.blocks) - query_blocks
        self.upscaling = nn.Sequential(*upscaling)
        self.heads = heads
        self.rule = rule

    def forward(
        self,
        pixels: Float[Tensor, "batch 3 height width"],
        valid: Bool[Tensor, "batch height width"] | None = None,
    ) -> MaskPrediction:
        """Return class logits and factorised masks; `pixels` are normalised.

        `valid` is not used: padding is treated like any other pixel, as in the original.

        Raises:
            ValueError: the model does not support images of this size.
        """
        return self.predict(pixels, self.rule)

    def predict(
        self, pixels: Float[Tensor, "batch 3 height width"], rule: AttentionRule, scale: Scale = 1.0
    ) -> MaskPrediction:
        """Return what `forward` does, with another attention rule; predictions are in order of depth.

        `scale` is the factor on rotary positions.

        Raises:
            ValueError: the model does not support images of this size.
        """
        backbone = self.backbone
        tokens, rotate, grid = backbone.embed(pixels, scale)
        for block in backbone.blocks[: self.first_query_block]:
            tokens = backbone.run(block, tokens, rotate)
        queries = self.queries.weight.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        tokens = torch.cat((queries, tokens), dim=1)
        predictions: list[tuple[Tensor, Tensor, Tensor]] = []

        def foreground() -> Tensor:
            predictions.append(self._heads(tokens, grid))
            _, embeddings, features = predictions[-1]
            return embeddings.detach() @ resize_maps(features.detach(), grid) > 0

        for index, block in enumerate(backbone.blocks[self.first_query_block :]):
            visible = _of_all_tokens(rule(index, foreground), tokens.shape[1])
            tokens = backbone.run(block, tokens, rotate, visible)
        predictions.append(self._heads(tokens, grid))
        class_logits, embeddings, features = (_stacked(parts) for parts in zip(*predictions, strict=True))
        return MaskPrediction(class_logits=class_logits, mask_embeddings=embeddings, mask_features=features)

    def _heads(
        self, tokens: Float[Tensor, "batch tokens channels"], grid: Size
    ) -> tuple[
        Float[Tensor, "batch queries classes_and_none"],
        Float[Tensor, "batch queries _"],
        Float[Tensor, "batch _ height width"],
    ]:
        """Return class logits, mask embeddings and mask features of the tokens between two blocks."""
        normed = self.backbone.norm(tokens)
        class_logits, embeddings = self.heads(normed[:, : self.queries.num_embeddings])
        patches = normed[:, -grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid)
        return class_logits, *self.masks(embeddings, patches)

    def masks(
        self,
        embeddings: Float[Tensor, "batch queries channels"],
        patches: Float[Tensor, "batch channels rows columns"],
    ) -> tuple[Float[Tensor, "batch queries _"], Float[Tensor, "batch _ height width"]]:
        """Return mask embeddings and mask features, given those of the heads and the normalised patches."""
        return smaller_factors(embeddings, self.upscaling(patches))


def _stacked(parts: tuple[Tensor, ...]) -> Tensor:
    """Return the parts stacked in a new first dimension; a single one is not copied."""
    return parts[0][None] if len(parts) == 1 else torch.stack(parts)


def _of_all_tokens(
    patches: Bool[Tensor, "batch queries patches"] | None, tokens: int
) -> Bool[Tensor, "batch queries {tokens}"] | None:
    """Return which tokens queries may attend to: the given patches, and all tokens that are not patches."""
    return None if patches is None else functional.pad(patches, (tokens - patches.shape[2], 0), value=True)
