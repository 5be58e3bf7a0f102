"""Swin Transformer, equal to the original segmentation backbone at every image size.

Feature maps are (batch, height, width, channels) inside this file.

Source: Liu et al., Swin Transformer (2103.14030), Sec. 3. The rules for padding are from the original code.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from unimask.nn.layers import DropPath
from unimask.nn.transformer import FeedForward

PATCH = 4  # side of a patch in pixels


def _pad_to_multiple(features: Tensor, multiple: int) -> Tensor:
    """Pad (batch, height, width, channels) with zeros at the bottom and at the right."""
    bottom, right = (-size % multiple for size in features.shape[1:3])
    return functional.pad(features, (0, 0, 0, right, 0, bottom))


def _roll(features: Tensor, steps: int) -> Tensor:
    return features.roll((steps, steps), (1, 2)) if steps else features


def _partition(
    features: Float[Tensor, "batch height width channels"], window: int
) -> Float[Tensor, "batch windows tokens channels"]:
    batch, height, width, channels = features.shape
    grid = features.view(batch, height // window, window, width // window, window, channels)
    return grid.transpose(2, 3).reshape(batch, -1, window * window, channels)


def _join(
    windows: Float[Tensor, "batch windows tokens channels"], height: int, width: int, window: int
) -> Float[Tensor, "batch height width channels"]:
    batch, _, _, channels = windows.shape
    grid = windows.view(batch, height // window, width // window, window, window, channels)
    return grid.transpose(2, 3).reshape(batch, height, width, channels)


def relative_positions(window: int) -> Int64[Tensor, "tokens tokens"]:
    """Return, for each (query, key) in a window, the row of the bias table for their relative position."""
    rows, columns = (steps.flatten() for steps in torch.meshgrid(*2 * [torch.arange(window)], indexing="ij"))
    down, right = (steps[:, None] - steps[None, :] + window - 1 for steps in (rows, columns))
    return down * (2 * window - 1) + right


def shift_penalty(
    height: int, width: int, window: int, shift: int, device: torch.device
) -> Float[Tensor, "windows tokens tokens"]:
    """Return what is added to the attention logits in each window of a map that was rolled by `shift`.

    It is 0 between tokens of a window that were neighbours before, and -100 (not -infinity) between others,
    also where one window covers the whole map. Height and width must be multiples of the window.
    """

    def regions(size: int) -> Tensor:
        position = torch.arange(size, device=device)
        return (position >= size - window).long() + (position >= size - shift).long()

    region = (3 * regions(height)[:, None] + regions(width)).to(torch.float32)
    tokens = _partition(region[None, :, :, None], window)[0, :, :, 0]
    return torch.where(tokens[:, :, None] == tokens[:, None, :], 0.0, -100.0)


class WindowAttention(nn.Module):
    """Self-attention inside each window, with a learned bias per relative position (Sec. 3.2, Eq. 4).

    `position_bias` is the table of the biases: (2 window - 1)^2 rows, and a column per head.
    """

    relative_positions: Tensor

    def __init__(self, *, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.projection = nn.Linear(channels, channels)
        self.position_bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_positions", relative_positions(window), persistent=False)

    def forward(
        self,
        windows: Float[Tensor, "batch windows tokens channels"],
        penalty: Float[Tensor, "groups tokens tokens"],
    ) -> Float[Tensor, "batch windows tokens channels"]:
        """Return the windows after attention; `penalty` holds one entry for all windows or one for each."""
        batch, num_windows, tokens, channels = windows.shape
        groups = penalty.shape[0]
        bias = self.position_bias[self.relative_positions].permute(2, 0, 1) + penalty[:, None]
        parts = self.query_key_value(windows).view(
            -1, num_windows, tokens, 3, self.heads, channels // self.heads
        )
        bias = bias.to(parts.dtype)
        if batch == 1 or groups == 1:
            # windows become part of the batch dimension, which needs no copy
            query, key, value = parts.flatten(0, 1).permute(2, 0, 3, 1, 4).unbind()
            attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
            attended = attended.transpose(1, 2)
        else:
            # windows become part of the head dimension, so that all images share the bias of each window
            query, key, value = parts.permute(3, 0, 1, 4, 2, 5).flatten(2, 3).unbind()
            bias = bias.flatten(0, 1)[None]
            attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
            attended = attended.unflatten(1, (groups, self.heads)).transpose(2, 3)
        result: Tensor = self.projection(attended.reshape(batch, num_windows, tokens, channels))
        return result


class SwinBlock(nn.Module):
    """Attention in (shifted) windows and a feed-forward, each with a pre-norm residual connection (Eq. 3).

    The map is padded with zeros after the norm, so tokens of the padding take part in the attention.
    """

    def __init__(self, *, channels: int, heads: int, window: int, shift: int, drop_path_rate: float) -> None:
        super().__init__()
        self.window = window
        self.shift = shift
        self.attention_norm = nn.LayerNorm(channels)
        self.attention = WindowAttention(channels=channels, heads=heads, window=window)
        self.feedforward_norm = nn.LayerNorm(channels)
        self.feedforward = FeedForward(channels, 4 * channels, activation=functional.gelu)
        self.drop_path = DropPath(drop_path_rate)

    def _attend(self, features: Tensor, penalty: Tensor) -> Tensor:
        height, width = features.shape[1:3]
        padded = _pad_to_multiple(self.attention_norm(features), self.window)
        rolled = _roll(padded, -self.shift)
        windows = self.attention(_partition(rolled, self.window), penalty)
        joined = _join(windows, padded.shape[1], padded.shape[2], self.window)
        return _roll(joined, self.shift)[:, :height, :width]

    def forward(
        self,
        features: Float[Tensor, "batch height width channels"],
        penalty: Float[Tensor, "groups tokens tokens"],
    ) -> Float[Tensor, "batch height width channels"]:
        """Return the map after the block; `penalty` is the one for the block's shift and the padded size."""
        features = features + self.drop_path(self._attend(features, penalty))
        tokens = self.feedforward_norm(features).flatten(1, 2)
        update = self.feedforward(tokens).view_as(features)
        result: Tensor = features + self.drop_path(update)
        return result


class SwinStage(nn.Module):
    """The blocks of one stride; every second block shifts its windows by half a window."""

    def __init__(self, *, channels: int, heads: int, window: int, drop_path_rates: tuple[float, ...]) -> None:
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(
            SwinBlock(
                channels=channels,
                heads=heads,
                window=window,
                shift=window // 2 if index % 2 else 0,
                drop_path_rate=rate,
            )
            for index, rate in enumerate(drop_path_rates)
        )

    def forward(
        self, features: Float[Tensor, "batch height width channels"]
    ) -> Float[Tensor, "batch height width channels"]:
        """Return the map after all blocks."""
        height, width = (-(-size // self.window) * self.window for size in features.shape[1:3])
        tokens, shift = self.window**2, self.window // 2
        straight = torch.zeros((1, tokens, tokens), device=features.device)
        shifted = shift_penalty(height, width, self.window, shift, features.device)
        for index, block in enumerate(self.blocks):
            features = block(features, shifted if index % 2 else straight)
        return features


class PatchEmbedding(nn.Module):
    """Embeds non-overlapping 4 x 4 patches; images are padded with zeros at the bottom and at the right."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, channels, PATCH, PATCH)
        self.norm = nn.LayerNorm(channels)

    def forward(
        self, pixels: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch rows columns channels"]:
        """Return the map of tokens at stride 4."""
        bottom, right = (-size % PATCH for size in pixels.shape[2:])
        tokens = self.projection(functional.pad(pixels, (0, right, 0, bottom)))
        result: Tensor = self.norm(tokens.permute(0, 2, 3, 1))
        return result


class PatchMerging(nn.Module):
    """Merges 2 x 2 tokens into one token with twice the channels; odd sizes are padded with zeros.

    The four tokens are concatenated in the order (row, column) = (0, 0), (1, 0), (0, 1), (1, 1).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(
        self, features: Float[Tensor, "batch height width channels"]
    ) -> Float[Tensor, "batch rows columns wider"]:
        """Return the map at twice the stride."""
        padded = _pad_to_multiple(features, 2)
        batch, height, width, channels = padded.shape
        grid = padded.view(batch, height // 2, 2, width // 2, 2, channels)
        result: Tensor = self.reduction(self.norm(grid.permute(0, 1, 3, 4, 2, 5).flatten(3)))
        return result


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, WindowAttention):
        nn.init.trunc_normal_(module.position_bias, std=0.02)


class Swin(nn.Module):
    """A Swin Transformer with maps of strides 4, 8, 16 and 32, each with its own norm.

    `depths` (blocks) and `heads` have one entry per stage; stage i has `embed_channels` * 2^i channels, and
    the attribute `channels` is stride -> channels. The rate of stochastic depth grows linearly from 0 at the
    first block to `drop_path_rate` at the last.
    """

    def __init__(
        self,
        *,
        embed_channels: int,
        depths: tuple[int, ...],
        heads: tuple[int, ...],
        window: int,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [embed_channels * 2**index for index in range(len(depths))]
        last = max(sum(depths) - 1, 1)
        rates = iter([drop_path_rate * index / last for index in range(sum(depths))])
        self.channels = {PATCH * 2**index: width for index, width in enumerate(widths)}
        self.patch_embedding = PatchEmbedding(embed_channels)
        self.stages = nn.ModuleList(
            SwinStage(
                channels=width,
                heads=num_heads,
                window=window,
                drop_path_rates=tuple(next(rates) for _ in range(depth)),
            )
            for width, num_heads, depth in zip(widths, heads, depths, strict=True)
        )
        self.merges = nn.ModuleList(PatchMerging(width) for width in widths[:-1])
        self.output_norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.apply(_initialise)

    def forward(
        self, pixels: Float[Tensor, "batch 3 height width"]
    ) -> dict[int, Float[Tensor, "batch _channels _height _width"]]:
        """Return stride -> map, from normalised pixels.

        The size of a map is the size of the image divided by the stride, rounded up.
        """
        features = self.patch_embedding(pixels)
        maps: dict[int, Tensor] = {}
        for index, (stage, norm) in enumerate(zip(self.stages, self.output_norms, strict=True)):
            features = stage(features if index == 0 else self.merges[index - 1](features))
            maps[PATCH * 2**index] = norm(features).permute(0, 3, 1, 2)
        return maps
