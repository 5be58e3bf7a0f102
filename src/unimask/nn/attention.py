"""Multi-head attention, with a key-value cache for decoding, and multi-scale deformable attention."""

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

_LEAST_SPARE = 16  # free tokens after a buffer has grown, at least


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The tokens that queries attend to: `keys` include positions, `values` do not."""

    keys: Float[Tensor, "batch tokens channels"]
    values: Float[Tensor, "batch tokens channels"]


@dataclass(frozen=True, kw_only=True)
class Projected:
    """Projected keys and values of some tokens, split into the heads of one attention.

    They depend on their own token only, so they can be reused for further queries and tokens.
    """

    keys: Float[Tensor, "batch heads tokens head_channels"]
    values: Float[Tensor, "batch heads tokens head_channels"]

    def rows(self, indices: Int64[Tensor, " rows"]) -> "Projected":
        """Return selected rows of the batch; an index may occur more than once."""
        return Projected(keys=self.keys[indices], values=self.values[indices])


class _Buffer:
    """Memory for the keys and values of a growing sequence; its first `filled` tokens are written."""

    def __init__(self, keys: Tensor, values: Tensor, filled: int) -> None:
        self.keys, self.values, self.filled = keys, values, filled

    def grown(self, filled: int, spare: int) -> "_Buffer":
        """Return a new buffer with a copy of the first `filled` tokens and space for `spare` more."""
        keys, values = (
            functional.pad(one[:, :, :filled], (0, 0, 0, spare)) for one in (self.keys, self.values)
        )
        return _Buffer(keys, values, filled)


class Prefix:
    """A key-value cache: keys and values of the tokens of a sequence so far, for one attention. Immutable.

    `followed_by` appends to the same buffer if its next token is still free, and copies it otherwise. A full
    buffer grows by half, so the total amount copied is linear in the length of the sequence. Not
    differentiable.
    """

    def __init__(self, buffer: _Buffer) -> None:
        self._buffer, self._count = buffer, buffer.filled

    @classmethod
    def of(cls, tokens: Projected) -> "Prefix":
        """Return the prefix that consists of these tokens."""
        return cls(_Buffer(tokens.keys, tokens.values, tokens.keys.shape[2]))

    @property
    def tokens(self) -> Projected:
        """Keys and values of all tokens so far."""
        keys, values = self._buffer.keys[:, :, : self._count], self._buffer.values[:, :, : self._count]
        return Projected(keys=keys, values=values)

    def followed_by(self, later: Projected) -> "Prefix":
        """Return the prefix with the `later` tokens appended."""
        buffer, count = self._buffer, self._count + later.keys.shape[2]
        if buffer.filled != self._count or buffer.keys.shape[2] < count:
            buffer = buffer.grown(self._count, count - self._count + max(_LEAST_SPARE, count // 2))
        buffer.keys[:, :, self._count : count] = later.keys
        buffer.values[:, :, self._count : count] = later.values
        buffer.filled = count
        return Prefix(buffer)

    def rows(self, indices: Int64[Tensor, " rows"]) -> "Prefix":
        """Return selected rows of the batch; an index may occur more than once."""
        return Prefix(_Buffer(self._buffer.keys[indices], self._buffer.values[indices], self._count))


class Attention(nn.Module):
    """Multi-head scaled dot-product attention.

    The three input projections are stored as rows of one matrix: query, key, value in this order.

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
        """Return, for each query, the average of the projected values, weighted by the attention weights.

        `visible` is True where a query may attend, the same for all heads; with None it attends everywhere.
        The result of a query that may attend nowhere is undefined.
        """
        return self.attend(queries, self.project(keys, values), visible)

    def project(
        self,
        keys: Float[Tensor, "batch tokens channels"],
        values: Float[Tensor, "batch tokens channels"],
    ) -> Projected:
        """Return the projected keys and values, which do not depend on queries."""
        return Projected(keys=self._input(1, keys), values=self._input(2, values))

    def attend(
        self,
        queries: Float[Tensor, "batch queries channels"],
        projected: Projected,
        visible: Bool[Tensor, "#batch #queries tokens"] | None = None,
    ) -> Float[Tensor, "batch queries channels"]:
        """Return what `forward` does, from keys and values that `project` has projected."""
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
        """Return the attention weights of `forward` per head, for display; they sum to 1 for each query."""
        query, key = self._input(0, queries), self._input(1, keys)
        logits = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
        if visible is not None:
            logits = logits.masked_fill(~visible[:, None], -math.inf)
        return logits.softmax(dim=-1)

    def _input(
        self, part: int, inputs: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch heads tokens head_channels"]:
        """Return the inputs projected to queries, keys or values (part 0, 1, 2), split into heads."""
        weight, bias = self.input_weight.chunk(3)[part], self.input_bias.chunk(3)[part]
        return functional.linear(inputs, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)


class SelfAttention(nn.Module):
    """Self-attention of tokens: `Attention` with the arguments that `EncoderLayer` passes."""

    def __init__(self, channels: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = Attention(channels, heads, dropout)

    def forward(
        self,
        placed: Float[Tensor, "batch tokens channels"],
        tokens: Float[Tensor, "batch tokens channels"],
        visible: Bool[Tensor, "#batch #tokens tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens channels"]:
        """Return the update of each token; queries and keys are `placed`, the tokens plus their positions."""
        update: Tensor = self.attention(placed, placed, tokens, visible)
        return update


@runtime_checkable
class Shared(Protocol):
    """An attention module that returns its weights: `shares` takes the arguments of its `forward`."""

    def shares(self, *inputs: Any) -> Tensor:
        """Return the weights (batch, heads, queries, tokens)."""


@contextmanager
def watched(attentions: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Record the attention weights (batch, heads, queries, tokens) of each call in the list that is yielded.

    Only calls of `forward` in the same thread are recorded: a server may run one model in several threads.
    Calls of `attend` alone, as in decoding, are not recorded.
    """
    seen: list[Tensor] = []
    own = threading.get_ident()

    def look(attention: nn.Module, inputs: tuple[Any, ...]) -> None:  # some inputs are not tensors
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
    """The geometry of maps of several levels, whose cells are tokens: level after level, row by row.

    `places` is the location (x, y) of each query, where every map spans [0, 1]; deformable attention samples
    in its type. `sizes` is the (height, width) of each level, `cells` its (width, height) as a tensor.
    """

    sizes: tuple[Size, ...]
    places: Float[Tensor, "queries 2"]
    cells: Float[Tensor, "levels 2"]


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention: each query samples a few points of every level, at predicted offsets.

    Initially the offsets of head h have the direction 2 pi h / heads, point p is p + 1 cells away, and all
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
        """Return, for each query, the weighted sum of values sampled around its location.

        `values` holds the cells of all levels, as described by `levels`.
        """
        projected = self.project(values).to(levels.places.dtype)
        sample = partial(fast_deformable_sampling, projected, levels.sizes)
        return self.attend(queries, levels.places, levels.cells, sample)

    def project(
        self, values: Float[Tensor, "batch cells channels"]
    ) -> Float[Tensor, "batch cells heads head_channels"]:
        """Return the projected values, split into heads, from which `attend` samples."""
        return self.values(values).unflatten(-1, (self.shape[0], -1))

    def attend(
        self,
        queries: Float[Tensor, "batch queries channels"],
        places: Float[Tensor, "queries 2"],
        cells: Float[Tensor, "levels 2"],
        sample: Callable[[Tensor, Tensor], Tensor],
    ) -> Float[Tensor, "batch queries channels"]:
        """Return what `forward` does; `sample(locations, weights)` returns the weighted sums of values.

        `places` and `cells` as in `Levels`.
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
    """Return the initial offsets in cells: head h in its direction, point p at maximum norm p + 1."""
    angles = torch.arange(heads, dtype=torch.float32) * (2 * math.pi / heads)
    directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
    directions = directions / directions.abs().amax(-1, keepdim=True)
    distances = torch.arange(1, points + 1, dtype=torch.float32)
    return (directions[:, None] * distances[:, None])[:, None].expand(heads, levels, points, 2)
