"""An image becomes a set of (class, mask) pairs inside a plain Vision Transformer, without any decoder."""

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
"""Predicts, and returns the foreground of each query's mask: (batch, queries, patches), True where it is."""

AttentionRule = Callable[[int, Foreground], Tensor | None]
"""Tells which patches each query may attend to in a block that has queries, counted from 0; None is all.

A rule that asks for the foreground makes the model predict, and be supervised, before that block."""


def open_attention(block: int, foreground: Foreground) -> None:
    """Let every query attend to all patches; nothing is predicted before the last block."""


def masked_attention(block: int, foreground: Foreground) -> Tensor:
    """Let each query attend to the foreground of its own last mask.

    A query whose mask is empty still attends to queries, class token and registers.

    Source: EoMT (2503.19108), Sec. 3.2, after Mask2Former, Sec. 3.2.1.
    """
    return foreground()


@dataclass(frozen=True, kw_only=True)
class AnnealedAttention:
    """Masked attention that is lifted for some queries, drawn anew in each block.

    `chances` are those of a query to keep its mask, per block.

    Source: EoMT, Sec. 3.3 (mask annealing).
    """

    chances: tuple[float, ...]
    uniform: Uniform

    def __call__(self, block: int, foreground: Foreground) -> Tensor:
        """Return the foreground where the mask is kept, and all patches where it is lifted."""
        visible = foreground()
        lifted = self.uniform((*visible.shape[:2], 1)) > self.chances[block]
        return visible | lifted


_NORM_EPS = 1e-6


class Upscaling(nn.Module):
    """A step to maps of twice the size.

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
        """Return the larger maps."""
        assert self.expand.bias is not None
        expanded = double_maps(maps, self.expand.weight, self.expand.bias)
        mixed = self.mix(functional.gelu(expanded))
        normed: Tensor = self.norm(mixed.permute(0, 2, 3, 1))
        return normed.permute(0, 3, 1, 2)


def smaller_factors(
    embeddings: Float[Tensor, "batch queries channels"],
    features: Float[Tensor, "batch channels height width"],
) -> tuple[Float[Tensor, "batch queries _"], Float[Tensor, "batch _ height width"]]:
    """Return embeddings and features with the same product, and with as few channels as they can have.

    With as many channels as queries, the product itself is the features, and each query's embedding picks
    its own mask. So whatever samples, resizes or stores features handles min(queries, channels) maps.
    """
    queries, channels = embeddings.shape[1:]
    if channels < queries:
        return embeddings, features
    own = torch.eye(queries, device=embeddings.device, dtype=embeddings.dtype)
    # cell by cell, as features lie in memory: so do then the masks, and the gradients of both
    masks = features.flatten(2).transpose(1, 2) @ embeddings.transpose(1, 2)
    return own.expand(embeddings.shape[0], -1, -1), masks.transpose(1, 2).unflatten(2, features.shape[2:])


class Eomt(nn.Module):
    """Encoder-only Mask Transformer: queries join the tokens of a Vision Transformer before its last blocks.

    There is a prediction before each of these blocks that the attention rule guides by masks, and one after
    the last; norm and heads are shared by all of them. `rule` is that of predictions.

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

        `valid` plays no part: padding is a part of the image, as in the original.

        Raises:
            ValueError: the model does not take images of this size.
        """
        return self.predict(pixels, self.rule)

    def predict(
        self, pixels: Float[Tensor, "batch 3 height width"], rule: AttentionRule, scale: Scale = 1.0
    ) -> MaskPrediction:
        """Return what `forward` does under another attention rule, per prediction in order of depth.

        `scale` is that of rotary positions.
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
        """Return mask embeddings and mask features, from embeddings and from patches between two blocks."""
        return smaller_factors(embeddings, self.upscaling(patches))


def _stacked(parts: tuple[Tensor, ...]) -> Tensor:
    """Return the parts below a new first dimension; one alone is not copied."""
    return parts[0][None] if len(parts) == 1 else torch.stack(parts)


def _of_all_tokens(
    patches: Bool[Tensor, "batch queries patches"] | None, tokens: int
) -> Bool[Tensor, "batch queries {tokens}"] | None:
    """Return what queries may attend to among all tokens: all of those that are no patches, too."""
    return None if patches is None else functional.pad(patches, (tokens - patches.shape[2], 0), value=True)
