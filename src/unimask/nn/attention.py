"""Attention: of every query to every key, and deformable attention to a few points of several maps."""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from unimask.ops.dispatch import fast_deformable_sampling, softmax_over_few
from unimask.structures import Size

_LEAST_SPARE = 16  # spare tokens when the space grows


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What queries attend to: `keys` hold content and position, `values` the content."""

    keys: Float[Tensor, "batch tokens channels"]
    values: Float[Tensor, "batch tokens channels"]


@dataclass(frozen=True, kw_only=True)
class Projected:
    """Keys and values of some tokens for one attention: projected, and split into its heads.

    They depend on their own token only, so they can be kept while queries or further tokens come.
    """

    keys: Float[Tensor, "batch heads tokens head_channels"]
    values: Float[Tensor, "batch heads tokens head_channels"]

    def rows(self, indices: Int64[Tensor, " rows"]) -> "Projected":
        """Select rows of the batch; a row may be named more than once."""
        return Projected(keys=self.keys[indices], values=self.values[indices])


class _Buffer:
    """Space for keys and values of more tokens than there are yet; `filled` of them have been written."""

    def __init__(self, keys: Tensor, values: Tensor, filled: int) -> None:
        self.keys, self.values, self.filled = keys, values, filled

    def grown(self, filled: int, spare: int) -> "_Buffer":
        """Copy the first `filled` tokens into a buffer with space for `spare` more."""
        keys, values = (
            functional.pad(one[:, :, :filled], (0, 0, 0, spare)) for one in (self.keys, self.values)
        )
        return _Buffer(keys, values, filled)


class Prefix:
    """Keys and values of the tokens of a sequence so far, for one attention; a prefix never changes.

    The next token is written behind the others into the same space, if nobody has written there yet, and the
    space grows by half when it is full: so all steps together copy an amount in proportion to the length. Not
    differentiable: decoding runs without gradients.
    """

    def __init__(self, buffer: _Buffer) -> None:
        self._buffer, self._count = buffer, buffer.filled

    @classmethod
    def of(cls, tokens: Projected) -> "Prefix":
        """Return the prefix of these tokens."""
        return cls(_Buffer(tokens.keys, tokens.values, tokens.keys.shape[2]))

    @property
    def tokens(self) -> Projected:
        """Keys and values of all tokens so far."""
        keys, values = self._buffer.keys[:, :, : self._count], self._buffer.values[:, :, : self._count]
        return Projected(keys=keys, values=values)

    def followed_by(self, later: Projected) -> "Prefix":
        """Return the prefix with the later tokens behind these."""
        buffer, count = self._buffer, self._count + later.keys.shape[2]
        if buffer.filled != self._count or buffer.keys.shape[2] < count:
            buffer = buffer.grown(self._count, count - self._count + max(_LEAST_SPARE, count // 2))
        buffer.keys[:, :, self._count : count] = later.keys
        buffer.values[:, :, self._count : count] = later.values
        buffer.filled = count
        return Prefix(buffer)

    def rows(self, indices: Int64[Tensor, " rows"]) -> "Prefix":
        """Select rows of the batch; a row may be named more than once."""
        return Prefix(_Buffer(self._buffer.keys[indices], self._buffer.values[indices], self._count))


class Attention(nn.Module):
    """Multi-head scaled dot-product attention.

    The three input projections are rows of one matrix: query, key, value in this order.

    Source: Attention Is All You Need, Sec. 3.2.
    """

    def __init__(self, channels: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout  # of the attention weights
        self.input_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.input_bias = nn.Parameter(torch.zeros(3 * channels))
        self.output: nn.Module = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.input_weight)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(
        self,
        queries: Float[Tensor, "batch queries channels"],
        keys: Float[Tensor, "batch tokens channels"],
        values: Float[Tensor, "batch tokens channels"],
        visible: Bool[Tensor, "#batch #queries tokens"] | None = None,
    ) -> Float[Tensor, "batch queries channels"]:
        """Return for each query the mean of the projected values, weighted by how well their keys fit.

        `visible` is True where a query may attend, the same for all heads; None lets it attend everywhere.
        The result of a query that may attend nowhere is undefined.
        """
        return self.attend(queries, self.project(keys, values), visible)

    def project(
        self,
        keys: Float[Tensor, "batch tokens channels"],
        values: Float[Tensor, "batch tokens channels"],
    ) -> Projected:
        """Project keys and values: the half of the work that does not depend on queries."""
        return Projected(keys=self._input(1, keys), values=self._input(2, values))

    def attend(
        self,
        queries: Float[Tensor, "batch queries channels"],
        projected: Projected,
        visible: Bool[Tensor, "#batch #queries tokens"] | None = None,
    ) -> Float[Tensor, "batch queries channels"]:
        """Attend to projected keys and values; `project` and `attend` together are `forward`."""
        attended = functional.scaled_dot_product_attention(
            self._input(0, queries),
            projected.keys,
            projected.values,
            attn_mask=None if visible is None else visible[:, None],
            dropout_p=self.dropout * self.training,
        )
        return self.output(attended.transpose(1, 2).flatten(2))

    def shares(
        self,
        queries: Float[Tensor, "batch queries channels"],
        keys: Float[Tensor, "batch tokens channels"],
        values: Float[Tensor, "batch tokens channels"],
        visible: Bool[Tensor, "#batch #queries tokens"] | None = None,
    ) -> Float[Tensor, "batch heads queries tokens"]:
        """Return the attention weights of `forward` per head, for display; those of a query add up to 1."""
        query, key = self._input(0, queries), self._input(1, keys)
        logits = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
        if visible is not None:
            logits = logits.masked_fill(~visible[:, None], -math.inf)
        return logits.softmax(dim=-1)

    def _input(
        self, part: int, inputs: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch heads tokens head_channels"]:
        """Project to queries, keys or values (part 0, 1, 2), split into heads."""
        weight, bias = self.input_weight.chunk(3)[part], self.input_bias.chunk(3)[part]
        return functional.linear(inputs, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)


class SelfAttention(nn.Module):
    """Tokens attend to each other: `Attention` in the form that an encoder layer calls."""

    def __init__(self, channels: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = Attention(channels, heads, dropout)

    def forward(
        self,
        placed: Float[Tensor, "batch tokens channels"],
        tokens: Float[Tensor, "batch tokens channels"],
        visible: Bool[Tensor, "#batch #tokens tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens channels"]:
        """Return the update of each token; queries and keys are `placed` (tokens with their positions)."""
        update: Tensor = self.attention(placed, placed, tokens, visible)
        return update


@runtime_checkable
class Shared(Protocol):
    """An attention that tells its weights: `shares` takes what its `forward` takes."""

    def shares(self, *inputs: Any) -> Tensor:
        """Return the weights (batch, heads, queries, tokens)."""


@contextmanager
def watched(attentions: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Record the attention weights (batch, heads, queries, tokens) of each call inside, in the list.

    Calls of `attend` alone, as in decoding, are not recorded, nor are those of other threads: a server may
    run one model in several.
    """
    seen: list[Tensor] = []
    own = threading.get_ident()

    def look(attention: nn.Module, inputs: tuple[Any, ...]) -> None:  # not all of them need be tensors
        if threading.get_ident() != own:
            return
        seen.append(cast(Shared, attention).shares(*inputs))

    hooks = [attention.register_forward_pre_hook(look) for attention in attentions]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True, kw_only=True)
class Levels:
    """Geometry of the maps of several levels that lie one after the other, row by row, as tokens.

    `places` is the (x, y) of each query, where every map spans [0, 1]; its type is the one that deformable
    attention samples in. `cells` is the (width, height) of each level, `sizes` its (height, width).
    """

    sizes: tuple[Size, ...]
    places: Float[Tensor, "queries 2"]
    cells: Float[Tensor, "levels 2"]


class DeformableAttention(nn.Module):
    """Each query attends to a few points around its own place in every level, at offsets that it predicts.

    Before training, head h points in the direction 2 pi h / heads, its point p lies p + 1 cells away, and all
    points have equal weight. Offsets, weights and sampling are float32 under mixed precision.

    Source: Deformable DETR (2010.04159), Sec. 4.1, Eq. 3.
    """

    def __init__(self, channels: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.shape = (heads, levels, points)
        self.offsets = nn.Linear(channels, heads * levels * points * 2)
        self.weights = nn.Linear(channels, heads * levels * points)
        self.values = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.values, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.offsets.bias.copy_(_ring(heads, levels, points).flatten())

    def forward(
        self,
        queries: Float[Tensor, "batch queries channels"],
        values: Float[Tensor, "batch cells channels"],
        levels: Levels,
    ) -> Float[Tensor, "batch queries channels"]:
        """Return what each query gathers around its own place.

        `values` holds the maps of all levels, as `levels` describes them.
        """
        projected = self.project(values).to(levels.places.dtype)
        sample = partial(fast_deformable_sampling, projected, levels.sizes)
        return self.attend(queries, levels.places, levels.cells, sample)

    def project(
        self, values: Float[Tensor, "batch cells channels"]
    ) -> Float[Tensor, "batch cells heads head_channels"]:
        """Return the values that are sampled, split into heads."""
        return self.values(values).unflatten(-1, (self.shape[0], -1))

    def attend(
        self,
        queries: Float[Tensor, "batch queries channels"],
        places: Float[Tensor, "queries 2"],
        cells: Float[Tensor, "levels 2"],
        sample: Callable[[Tensor, Tensor], Tensor],
    ) -> Float[Tensor, "batch queries channels"]:
        """Return what queries at these places gather; `sample` maps locations and weights to sums of values.

        `cells` is the (width, height) of each level.
        """
        heads, _, points = self.shape
        offsets, weights = self.offsets(queries), self.weights(queries)
        cell_sides = cells.reciprocal().repeat_interleave(points, dim=0).flatten().repeat(heads)
        with torch.autocast(device_type=queries.device.type, enabled=False):
            steps = (offsets.to(places.dtype) * cell_sides).unflatten(-1, (*self.shape, 2))
            shares = softmax_over_few(weights.to(places.dtype).unflatten(-1, (heads, -1)))
            locations = places[:, None, None, None] + steps
            sampled = sample(locations, shares.unflatten(-1, (-1, points)))
        return self.output(sampled)


def _ring(heads: int, levels: int, points: int) -> Float[Tensor, "heads levels points 2"]:
    """Offsets in cells: one direction per head, on the square of radius p + 1 for point p, in every level."""
    angles = torch.arange(heads, dtype=torch.float32) * (2 * math.pi / heads)
    directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
    directions = directions / directions.abs().amax(-1, keepdim=True)
    distances = torch.arange(1, points + 1, dtype=torch.float32)
    return (directions[:, None] * distances[:, None])[:, None].expand(heads, levels, points, 2)
