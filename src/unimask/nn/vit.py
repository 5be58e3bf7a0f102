"""The Vision Transformer of DINOv2 and DINOv3; further tokens, such as queries, can be added between blocks.

Source: Dosovitskiy et al., An Image is Worth 16x16 Words (2010.11929), Sec. 3.1; DINOv2 (2304.07193);
registers: Darcet et al. (2309.16588); DINOv3 (2508.10104), Sec. 3.2. Constants are those of timm.
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
"""A factor on the coordinates of rotary positions; 1 in predictions."""


def unrotated(tokens: Float[Tensor, "batch heads tokens head_channels"]) -> Tensor:
    """Return the tokens unchanged: their positions were added before the first block."""
    return tokens


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """The rotation of the patches, which are the last tokens; the tokens before them are not rotated.

    Channels c of the first and of the second half are rotated as the two coordinates of a point in the plane.

    Source: RoFormer (2104.09864), Sec. 3.2; over two axes as in DINOv3.
    """

    cos: Float[Tensor, "patches head_channels"]
    sin: Float[Tensor, "patches head_channels"]

    def __call__(
        self, tokens: Float[Tensor, "batch heads tokens head_channels"]
    ) -> Float[Tensor, "batch heads tokens head_channels"]:
        """Return the tokens with the patches rotated, in their own type."""
        others, patches = tokens.split((tokens.shape[2] - self.cos.shape[0], self.cos.shape[0]), dim=2)
        first, second = patches.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
        rotated = patches * self.cos + turned * self.sin
        return torch.cat((others, rotated.to(tokens.dtype)), dim=2)


class LearnedPositions(nn.Module):
    """Learned position embeddings of the patches of images of one size.

    `embedding` is (1, patches, channels), row by row.
    """

    def __init__(self, grid: Size, channels: int) -> None:
        super().__init__()
        self.grid = grid
        self.embedding = nn.Parameter(torch.empty(1, grid[0] * grid[1], channels))
        nn.init.trunc_normal_(self.embedding, std=0.02)

    def forward(
        self, patches: Float[Tensor, "batch patches channels"], grid: Size, scale: Scale = 1.0
    ) -> tuple[Float[Tensor, "batch patches channels"], Rotate]:
        """Return the patches plus their positions, and a rotation that does nothing; `scale` is not used.

        Raises:
            ValueError: the grid (rows, columns) is not the one that the positions were learned for.
        """
        if grid != self.grid:
            raise ValueError(f"positions were learned for {self.grid} patches (rows, columns), not {grid}")
        return patches + self.embedding, unrotated


class RotaryPositions(nn.Module):
    """Rotary positions: queries and keys are rotated by the positions of their patches, at any image size.

    The image spans [-1, 1] in both directions, times `scale`, which training may draw anew for each step.
    """

    def __init__(self, head_channels: int) -> None:
        super().__init__()
        self.head_channels = head_channels

    def forward(
        self, patches: Float[Tensor, "batch patches channels"], grid: Size, scale: Scale = 1.0
    ) -> tuple[Float[Tensor, "batch patches channels"], Rotate]:
        """Return the patches unchanged, and their rotation on a grid of (rows, columns)."""
        places = scale * (2 * cell_centers(*grid, device=patches.device).flip(1) - 1)  # (y, x)
        exponents = torch.arange(0, 1, 4 / self.head_channels, device=patches.device)
        angles = 2 * math.pi * places[:, :, None] * ROTARY_BASE**-exponents
        angles = angles.flatten(1).tile(2)
        return patches, Rotation(cos=angles.cos(), sin=angles.sin())


class KeylessBias(nn.Module):
    """The projection to queries, keys and values (in this order) of DINOv3, without a bias for keys."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.query_bias = nn.Parameter(torch.zeros(channels))
        self.value_bias = nn.Parameter(torch.zeros(channels))

    @property
    def bias(self) -> Float[Tensor, " three_times_channels"]:
        """The biases of queries, keys (zeros) and values."""
        return torch.cat((self.query_bias, torch.zeros_like(self.query_bias), self.value_bias))

    def forward(
        self, tokens: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch tokens three_times_channels"]:
        """Return queries, keys and values, concatenated along the channels."""
        return functional.linear(tokens, self.weight, self.bias)


class TokenAttention(nn.Module):
    """Self-attention of tokens, with an optional attention mask for the first of them.

    `inputs` projects to queries, keys and values, concatenated along the channels.

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

        `visible` is True where the first tokens may attend; the other tokens attend to all tokens. With None
        all tokens attend to all tokens.
        """
        queries, keys, values = self._project(tokens, rotate)
        attend = functional.scaled_dot_product_attention
        if visible is None:
            attended = attend(queries, keys, values)
        else:
            # two calls, so that the mask has rows for the restricted tokens only
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
        """Return the attention weights of the restricted tokens per head, for display; each row sums to 1."""
        queries, keys, _ = self._project(tokens, rotate)
        first = queries[:, :, : visible.shape[1]]
        logits = first @ keys.transpose(2, 3) / math.sqrt(first.shape[-1])
        return logits.masked_fill(~visible[:, None], -math.inf).softmax(dim=-1)

    def _project(
        self, tokens: Float[Tensor, "batch tokens channels"], rotate: Rotate
    ) -> tuple[Float[Tensor, "batch heads tokens head_channels"], ...]:
        """Return queries, keys and values, split into heads; queries and keys are rotated."""
        split = self.inputs(tokens).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = split.permute(2, 0, 3, 1, 4).unbind()
        return rotate(queries), rotate(keys), values


class ScaledResidual(nn.Module):
    """A pre-norm residual connection with LayerScale: inputs + scale * f(norm(inputs)).

    `scale` is a learned factor per channel.

    Source: Going Deeper with Image Transformers (2103.17239), Sec. 2.
    """

    def __init__(self, channels: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=norm_eps)
        self.scale = nn.Parameter(torch.ones(channels))

    def prepare(
        self, inputs: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch tokens channels"]:
        """Return the normalised inputs, which the sublayer takes."""
        return self.norm(inputs)

    def forward(
        self, inputs: Float[Tensor, "batch tokens channels"], update: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch tokens channels"]:
        """Return the inputs after the sublayer, given its `update`."""
        return torch.addcmul(inputs, update, self.scale)


class GatedFeedForward(nn.Module):
    """A SwiGLU feed-forward, applied to each token: SiLU(gates) * values between two linear layers.

    `expand` projects to gates and values, concatenated along the channels in this order.

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
    """A block of a Vision Transformer: self-attention and a feed-forward."""

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
        """Return the tokens after the block; `visible` as in `TokenAttention.forward`."""
        update = self.attention(self.attention_residual.prepare(tokens), rotate, visible)
        tokens = self.attention_residual(tokens, update)
        update = self.feedforward(self.feedforward_residual.prepare(tokens))
        return self.feedforward_residual(tokens, update)


RunBlock = Callable[..., Tensor]
"""Runs a block: called with the block, its tokens, their rotation and, optionally, the attention mask."""


def kept(block: nn.Module, *inputs: object) -> Tensor:
    """Run a block and keep all intermediate results for the backward pass."""
    result: Tensor = block(*inputs)
    return result


def recomputed(block: nn.Module, *inputs: object) -> Tensor:
    """Run a block and keep only its inputs (with the mask); the backward pass computes the rest again."""
    if not torch.is_grad_enabled():
        return kept(block, *inputs)
    result: Tensor = checkpoint(block, *inputs, use_reentrant=False)
    return result


class VisionTransformer(nn.Module):
    """A Vision Transformer on the patches of an image, a class token and registers.

    To work between the blocks, call `embed`, then `run` on each of `blocks`, then `norm`, as `forward` does.
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
        """Return the tokens before the first block, their rotation, and the (rows, columns) of patches.

        The order of tokens is class token, registers, patches row by row. `pixels` are normalised; `scale` is
        the factor on rotary positions.

        Raises:
            ValueError: a side of the image is not a multiple of the patch, or the size is not that of the
                learned positions.
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
        """Return the tokens after the last block, normalised, in the order of `embed`."""
        tokens, rotate, _ = self.embed(pixels)
        for block in self.blocks:
            tokens = self.run(block, tokens, rotate)
        result: Tensor = self.norm(tokens)
        return result
