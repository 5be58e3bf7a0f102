"""The Vision Transformer as DINOv2 and DINOv3 build it; further tokens may join before any of its blocks.

Source: Dosovitskiy et al., An Image is Worth 16x16 Words (2010.11929), Sec. 3.1; DINOv2 (2304.07193);
registers: Darcet et al. (2309.16588); DINOv3 (2508.10104), Sec. 3.2. Numbers are those of timm.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from unimask.nn.transformer import FeedForward
from unimask.ops.positions import cell_centers
from unimask.structures import Size

ROTARY_BASE = 100.0

Rotate = Callable[[Tensor], Tensor]
"""Rotates queries and keys (batch, heads, tokens, head_channels) by the positions of their tokens."""


Scale = float | Float[Tensor, "1"]
"""How large the image is to rotary positions; 1 in predictions."""


def unrotated(tokens: Float[Tensor, "batch heads tokens head_channels"]) -> Tensor:
    """Return the tokens as they are: their positions were added before the first block."""
    return tokens


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """Rotates the last tokens, which are the patches; those before them have no position.

    Channel c of the first half and channel c of the second half are the coordinates of a point in the plane.

    Source: RoFormer (2104.09864), Sec. 3.2; over two axes as in DINOv3.
    """

    cos: Float[Tensor, "patches head_channels"]
    sin: Float[Tensor, "patches head_channels"]

    def __call__(
        self, tokens: Float[Tensor, "batch heads tokens head_channels"]
    ) -> Float[Tensor, "batch heads tokens head_channels"]:
        """Return the tokens with the patches rotated, in the type of the tokens."""
        others, patches = tokens.split((tokens.shape[2] - self.cos.shape[0], self.cos.shape[0]), dim=2)
        first, second = patches.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
        rotated = patches * self.cos + turned * self.sin
        return torch.cat((others, rotated.to(tokens.dtype)), dim=2)


class LearnedPositions(nn.Module):
    """A learned vector per patch, for images of one size.

    `embedding` holds the vectors row by row, below a dimension for the batch.
    """

    def __init__(self, grid: Size, channels: int) -> None:
        super().__init__()
        self.grid = grid
        self.embedding = nn.Parameter(torch.empty(1, grid[0] * grid[1], channels))
        nn.init.trunc_normal_(self.embedding, std=0.02)

    def forward(
        self, patches: Float[Tensor, "batch patches channels"], grid: Size, scale: Scale = 1.0
    ) -> tuple[Float[Tensor, "batch patches channels"], Rotate]:
        """Return the patches with their positions, which have no scale, and a rotation that does nothing.

        Raises:
            ValueError: there are other patches than those the positions are for.
        """
        if grid != self.grid:
            raise ValueError(f"positions were learned for {self.grid} patches (rows, columns), not {grid}")
        return patches + self.embedding, unrotated


class RotaryPositions(nn.Module):
    """Rotates queries and keys by the places of their patches, for images of any size.

    The image spans [-1, 1] in both directions, times the scale: a training may draw one for each step.
    """

    def __init__(self, head_channels: int) -> None:
        super().__init__()
        self.head_channels = head_channels

    def forward(
        self, patches: Float[Tensor, "batch patches channels"], grid: Size, scale: Scale = 1.0
    ) -> tuple[Float[Tensor, "batch patches channels"], Rotate]:
        """Return the patches as they are, and the rotation of their places."""
        places = scale * (2 * cell_centers(*grid, device=patches.device).flip(1) - 1)  # (y, x)
        exponents = torch.arange(0, 1, 4 / self.head_channels, device=patches.device)
        angles = 2 * math.pi * places[:, :, None] * ROTARY_BASE**-exponents
        angles = angles.flatten(1).tile(2)
        return patches, Rotation(cos=angles.cos(), sin=angles.sin())


class KeylessBias(nn.Module):
    """The projections to queries, keys and values of DINOv3, in this order: keys have no bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.query_bias = nn.Parameter(torch.zeros(channels))
        self.value_bias = nn.Parameter(torch.zeros(channels))

    @property
    def bias(self) -> Float[Tensor, " three_times_channels"]:
        """The biases of all three, with zeros for the keys."""
        return torch.cat((self.query_bias, torch.zeros_like(self.query_bias), self.value_bias))

    def forward(
        self, tokens: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch tokens three_times_channels"]:
        """Return queries, keys and values side by side."""
        return functional.linear(tokens, self.weight, self.bias)


class TokenAttention(nn.Module):
    """Tokens attend to each other; the first of them may be restricted.

    `inputs` projects to queries, keys and values side by side.

    Source: Attention Is All You Need, Sec. 3.2.2.
    """

    def __init__(self, inputs: nn.Linear | KeylessBias, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inputs: nn.Module = inputs
        self.output: nn.Module = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(inputs.weight)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens channels"],
        rotate: Rotate,
        visible: Bool[Tensor, "batch restricted tokens"] | None,
    ) -> Float[Tensor, "batch tokens channels"]:
        """Return the update of each token.

        `visible` tells to which tokens each of the first tokens may attend; all others attend to everything,
        and with None so does every token.
        """
        queries, keys, values = self._project(tokens, rotate)
        attend = functional.scaled_dot_product_attention
        if visible is None:
            attended = attend(queries, keys, values)
        else:
            # apart, so that the mask has rows for the restricted tokens only
            first, others = queries.split((visible.shape[1], tokens.shape[1] - visible.shape[1]), dim=2)
            restricted = attend(first, keys, values, attn_mask=visible[:, None])
            attended = torch.cat((restricted, attend(others, keys, values)), dim=2)
        update: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return update

    def shares(
        self,
        tokens: Float[Tensor, "batch tokens channels"],
        rotate: Rotate,
        visible: Bool[Tensor, "batch restricted tokens"],
    ) -> Float[Tensor, "batch heads restricted tokens"]:
        """Return the attention weights of the restricted tokens per head, for display; they add up to 1."""
        queries, keys, _ = self._project(tokens, rotate)
        first = queries[:, :, : visible.shape[1]]
        logits = first @ keys.transpose(2, 3) / math.sqrt(first.shape[-1])
        return logits.masked_fill(~visible[:, None], -math.inf).softmax(dim=-1)

    def _project(
        self, tokens: Float[Tensor, "batch tokens channels"], rotate: Rotate
    ) -> tuple[Float[Tensor, "batch heads tokens head_channels"], ...]:
        """Return queries, keys and values, split into heads, queries and keys rotated."""
        split = self.inputs(tokens).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = split.permute(2, 0, 3, 1, 4).unbind()
        return rotate(queries), rotate(keys), values


class ScaledResidual(nn.Module):
    """inputs + scale * f(norm(inputs)), with a learned number per channel (LayerScale).

    Source: Going Deeper with Image Transformers (2103.17239), Sec. 2.
    """

    def __init__(self, channels: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=norm_eps)
        self.scale = nn.Parameter(torch.ones(channels))

    def prepare(
        self, inputs: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch tokens channels"]:
        """Return the inputs, normalised."""
        return self.norm(inputs)

    def forward(
        self, inputs: Float[Tensor, "batch tokens channels"], update: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch tokens channels"]:
        """Return the inputs after one sublayer."""
        return torch.addcmul(inputs, update, self.scale)


class GatedFeedForward(nn.Module):
    """SiLU(gates) * values between two linear layers, for each token on its own (SwiGLU).

    `expand` projects to gates and values side by side, in this order.

    Source: GLU Variants Improve Transformer (2002.05202), Sec. 2, with biases as in DINOv2 g and DINOv3 S+.
    """

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.expand = nn.Linear(channels, 2 * hidden_channels)
        self.contract = nn.Linear(hidden_channels, channels)
        nn.init.xavier_uniform_(self.expand.weight)
        nn.init.xavier_uniform_(self.contract.weight)

    def forward(
        self, tokens: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch tokens channels"]:
        """Return the update of each token."""
        gates, values = self.expand(tokens).chunk(2, dim=-1)
        update: Tensor = self.contract(functional.silu(gates) * values)
        return update


class Block(nn.Module):
    """Self-attention and a feed-forward."""

    def __init__(
        self,
        attention: TokenAttention,
        feedforward: FeedForward | GatedFeedForward,
        channels: int,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.attention_residual = ScaledResidual(channels, norm_eps)
        self.feedforward = feedforward
        self.feedforward_residual = ScaledResidual(channels, norm_eps)

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens channels"],
        rotate: Rotate,
        visible: Bool[Tensor, "batch restricted tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens channels"]:
        """Return the tokens, one block further; `visible` as for `TokenAttention`."""
        update = self.attention(self.attention_residual.prepare(tokens), rotate, visible)
        tokens = self.attention_residual(tokens, update)
        update = self.feedforward(self.feedforward_residual.prepare(tokens))
        return self.feedforward_residual(tokens, update)


RunBlock = Callable[..., Tensor]
"""Calls a block with tokens, their rotation, and what is visible to them."""


def kept(block: nn.Module, *inputs: object) -> Tensor:
    """Run a block and keep all that its backward pass needs."""
    result: Tensor = block(*inputs)
    return result


def recomputed(block: nn.Module, *inputs: object) -> Tensor:
    """Run a block and keep its inputs only: the backward pass computes the rest again, from the same mask."""
    if not torch.is_grad_enabled():
        return kept(block, *inputs)
    result: Tensor = checkpoint(block, *inputs, use_reentrant=False)
    return result


class VisionTransformer(nn.Module):
    """Patches of an image, a class token and registers, through blocks.

    Who needs more than `forward` calls `embed`, `run` for each of the `blocks`, and `norm`.
    """

    def __init__(
        self,
        *,
        patch: int,
        registers: int,
        channels: int,
        positions: LearnedPositions | RotaryPositions,
        blocks: Sequence[Block],
        norm_eps: float,
        run: RunBlock = kept,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.channels = channels
        self.run = run
        self.patches = nn.Conv2d(3, channels, patch, patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, channels))
        self.registers = nn.Parameter(torch.empty(1, registers, channels))
        self.positions = positions
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(channels, eps=norm_eps)
        for tokens in (self.class_token, self.registers):
            nn.init.trunc_normal_(tokens, std=0.02)

    def embed(
        self, pixels: Float[Tensor, "batch 3 height width"], scale: Scale = 1.0
    ) -> tuple[Float[Tensor, "batch tokens channels"], Rotate, Size]:
        """Return the tokens before the first block, how blocks rotate them, and (rows, columns) of patches.

        The order is class token, registers, patches row by row. `scale` is that of rotary positions.

        Raises:
            ValueError: a side of the image is no multiple of the patch, or positions are for another size.
        """
        height, width = pixels.shape[2:]
        if height % self.patch or width % self.patch:
            raise ValueError(f"sides of images are multiples of {self.patch}, not {height} x {width} pixels")
        grid = (height // self.patch, width // self.patch)
        patches, rotate = self.positions(self.patches(pixels).flatten(2).transpose(1, 2), grid, scale)
        prefix = torch.cat((self.class_token, self.registers), dim=1).expand(patches.shape[0], -1, -1)
        return torch.cat((prefix.to(patches.dtype), patches), dim=1), rotate, grid

    def forward(
        self, pixels: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch _tokens channels"]:
        """Return the normalised tokens after the last block."""
        tokens, rotate, _ = self.embed(pixels)
        for block in self.blocks:
            tokens = self.run(block, tokens, rotate)
        result: Tensor = self.norm(tokens)
        return result
