"""Attention: of every query to every key, and deformable attention to a few points of several maps."""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from unimask.ops.dispatch import fast_deformable_sampling, softmax_over_few
from unimask.structures import Size

_LEAST_SPARE = 16  # tokens for which there is room when space grows


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What queries look at: `keys` tell where (content and position), `values` what."""

    keys: Float[Tensor, "batch tokens channels"]
    values: Float[Tensor, "batch tokens channels"]


@dataclass(frozen=True, kw_only=True)
class Projected:
    """Keys and values of some tokens as one attention sees them: projected, and split into its heads.

    They depend on their own token only, so they can be kept while queries or further tokens come.
    """

    keys: Float[Tensor, "batch heads tokens head_channels"]
    values: Float[Tensor, "batch heads tokens head_channels"]

    def rows(self, indices: Int64[Tensor, " rows"]) -> "Projected":
        """Those of some rows of the batch, which may be named more than once."""
        return Projected(keys=self.keys[indices], values=self.values[indices])


class _Room:
    """Space for keys and values of more tokens than there are yet; `filled` of them have been written."""

    def __init__(self, keys: Tensor, values: Tensor, filled: int) -> None:
        self.keys, self.values, self.filled = keys, values, filled

    def grown(self, filled: int, spare: int) -> "_Room":
        """A copy of the tokens that have been written up to a point, with more space."""
        keys, values = (
            functional.pad(one[:, :, :filled], (0, 0, 0, spare)) for one in (self.keys, self.values)
        )
        return _Room(keys, values, filled)


class Prefix:
    """The tokens of a sequence so far, as one attention sees them; a prefix never changes.

    The next token is written behind the others into the same space, if nobody has written there yet, and the
    space grows by half when it is full: so all steps together copy an amount in proportion to the length. Not
    differentiable: decoding runs without gradients.
    """

    def __init__(self, room: _Room) -> None:
        self._room, self._count = room, room.filled

    @classmethod
    def of(cls, tokens: Projected) -> "Prefix":
        """These tokens."""
        return cls(_Room(tokens.keys, tokens.values, tokens.keys.shape[2]))

    @property
    def tokens(self) -> Projected:
        """Keys and values of all tokens so far."""
        keys, values = self._room.keys[:, :, : self._count], self._room.values[:, :, : self._count]
        return Projected(keys=keys, values=values)

    def followed_by(self, later: Projected) -> "Prefix":
        """These tokens, then the later ones."""
        room, count = self._room, self._count + later.keys.shape[2]
        if room.filled != self._count or room.keys.shape[2] < count:
            room = room.grown(self._count, count - self._count + max(_LEAST_SPARE, count // 2))
        room.keys[:, :, self._count : count] = later.keys
        room.values[:, :, self._count : count] = later.values
        room.filled = count
        return Prefix(room)

    def rows(self, indices: Int64[Tensor, " rows"]) -> "Prefix":
        """Those of some rows of the batch, which may be named more than once."""
        return Prefix(_Room(self._room.keys[indices], self._room.values[indices], self._count))


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
        """For each query the mean of the projected values, weighted by how well their keys fit.

        `visible` is True where a query may look, the same for all heads; None lets it look everywhere.
        A query that may look nowhere has no defined result.
        """
        return self.attend(queries, self.project(keys, values), visible)

    def project(
        self,
        keys: Float[Tensor, "batch tokens channels"],
        values: Float[Tensor, "batch tokens channels"],
    ) -> Projected:
        """The half of the work that depends on keys and values only."""
        return Projected(keys=self._input(1, keys), values=self._input(2, values))

    def attend(
        self,
        queries: Float[Tensor, "batch queries channels"],
        projected: Projected,
        visible: Bool[Tensor, "#batch #queries tokens"] | None = None,
    ) -> Float[Tensor, "batch queries channels"]:
        """The other half; both together are `forward`."""
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
        visible: Bool[Tensor, "#batch #queries tokens"] | None = None,
    ) -> Float[Tensor, "batch heads queries tokens"]:
        """How much each query takes of each token, per head: they add up to 1. To be looked at."""
        query, key = self._input(0, queries), self._input(1, keys)
        logits = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
        if visible is not None:
            logits = logits.masked_fill(~visible[:, None], -math.inf)
        return logits.softmax(dim=-1)

    def _input(
        self, part: int, inputs: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch heads tokens head_channels"]:
        """Projected to queries, keys or values (part 0, 1, 2), and split into heads."""
        weight, bias = self.input_weight.chunk(3)[part], self.input_bias.chunk(3)[part]
        return functional.linear(inputs, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)


class SelfAttention(nn.Module):
    """Tokens look at each other: `Attention` in the form that an encoder layer calls."""

    def __init__(self, channels: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = Attention(channels, heads, dropout)

    def forward(
        self,
        placed: Float[Tensor, "batch tokens channels"],
        tokens: Float[Tensor, "batch tokens channels"],
        visible: Bool[Tensor, "#batch #tokens tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens channels"]:
        """What each token sees; queries and keys are `placed` (tokens with their positions)."""
        update: Tensor = self.attention(placed, placed, tokens, visible)
        return update


@contextmanager
def watched(attentions: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Inside, each call of one of the attentions adds its shares (batch, heads, queries, tokens) to the list.

    For `Attention` only: `attend` alone, as decoding uses it, is not seen. Nor are calls of other threads: a
    server asks one model several things at a time.
    """
    seen: list[Tensor] = []
    own = threading.get_ident()

    def look(attention: Attention, inputs: tuple[Any, ...]) -> None:  # the last may be no tensor
        if threading.get_ident() != own:
            return
        queries, keys, _, *visible = inputs
        seen.append(attention.shares(queries, keys, *visible))

    hooks = [attention.register_forward_pre_hook(look) for attention in attentions]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True, kw_only=True)
class Levels:
    """Where things are when the maps of several levels lie one after the other, row by row, as tokens.

    `places` is the (x, y) of each query, where every map spans [0, 1]; its type is the one that deformable
    attention samples in. `cells` is the (width, height) of each level, `sizes` its (height, width).
    """

    sizes: tuple[Size, ...]
    places: Float[Tensor, "queries 2"]
    cells: Float[Tensor, "levels 2"]


class DeformableAttention(nn.Module):
    """Each query looks at a few points around its own place in every level, at offsets that it predicts.

    Before training, head h looks in the direction 2 pi h / heads, its point p at p + 1 cells, all points with
    equal weight. Offsets, weights and sampling are float32 under mixed precision.

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
