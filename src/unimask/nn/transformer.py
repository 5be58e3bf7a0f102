"""The layers of the Transformer: one residual wrapper, and sublayers that are put together in any order.

Source: Attention Is All You Need, Sec. 3.1-3.3; positions are added in every layer, as in DETR, Sec. A.3.
"""

from collections.abc import Callable, Mapping
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unimask.nn.attention import Attention, Memory, Prefix, Projected


class Residual(nn.Module):
    """norm(inputs + dropout(update)): the normalisation comes last (post-norm).

    A sublayer f is used as `residual(inputs, f(residual.prepare(inputs)))`.
    """

    def __init__(self, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def prepare(
        self, inputs: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch tokens channels"]:
        """Return the inputs as they are: the last norm has normalised them."""
        return inputs

    def forward(
        self, inputs: Float[Tensor, "batch tokens channels"], update: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch tokens channels"]:
        """Return the inputs after one sublayer."""
        return self.norm(inputs + self.dropout(update))


class PreNormResidual(nn.Module):
    """inputs + dropout(f(norm(inputs))): the normalisation comes first, and none after the sum.

    Source: Xiong et al., On Layer Normalization in the Transformer Architecture (2002.04745), Fig. 1 (b). A
    stack of such layers needs a norm after the last one.
    """

    def __init__(self, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def prepare(
        self, inputs: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch tokens channels"]:
        """Return the inputs, normalised."""
        return self.norm(inputs)

    def forward(
        self, inputs: Float[Tensor, "batch tokens channels"], update: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch tokens channels"]:
        """Return the inputs after one sublayer."""
        return inputs + self.dropout(update)


class FeedForward(nn.Module):
    """Two linear layers with an activation between them (ReLU in the paper), for each token on its own.

    The activation may work in place.
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        dropout: float = 0.0,
        activation: Callable[[Tensor], Tensor] = torch.relu_,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.expand = nn.Linear(channels, hidden_channels)
        self.contract = nn.Linear(hidden_channels, channels)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.expand.weight)
        nn.init.xavier_uniform_(self.contract.weight)

    def forward(
        self, tokens: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch tokens channels"]:
        """Return the update of each token."""
        return self.contract(self.dropout(self.activation(self.expand(tokens))))


class EncoderLayer(nn.Module):
    """Self-attention of any kind, then a feed-forward.

    `attention` is called as `attention(tokens + positions, tokens, *where)` and gives the update. `residual`
    makes what surrounds each of the two. `hidden_dropout` is that inside the feed-forward, None: `dropout`.
    """

    def __init__(
        self,
        attention: nn.Module,
        channels: int,
        feedforward_channels: int,
        dropout: float = 0.0,
        *,
        residual: type[Residual] | type[PreNormResidual] = Residual,
        hidden_dropout: float | None = None,
        activation: Callable[[Tensor], Tensor] = torch.relu_,
    ) -> None:
        super().__init__()
        hidden = dropout if hidden_dropout is None else hidden_dropout
        self.attention = attention
        self.attention_residual = residual(channels, dropout)
        self.feedforward = FeedForward(channels, feedforward_channels, hidden, activation)
        self.feedforward_residual = residual(channels, dropout)

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens channels"],
        positions: Float[Tensor, "#batch tokens channels"],
        *where: object,
    ) -> Float[Tensor, "batch tokens channels"]:
        """Return the tokens, one layer further."""
        return self.feed(self.attend(tokens, positions, *where))

    def attend(self, tokens: Tensor, positions: Tensor, *where: object) -> Tensor:
        """Return the tokens after self-attention."""
        prepared = self.attention_residual.prepare(tokens)
        return self.attention_residual(tokens, self.attention(prepared + positions, prepared, *where))

    def feed(self, tokens: Tensor) -> Tensor:
        """Return the tokens after the feed-forward."""
        return self.feedforward_residual(tokens, self.feedforward(self.feedforward_residual.prepare(tokens)))


class CrossSublayer(nn.Module):
    """Queries attend to the memory."""

    def __init__(self, attention: Attention, residual: Residual | PreNormResidual) -> None:
        super().__init__()
        self.attention = attention
        self.residual = residual

    def forward(
        self,
        queries: Float[Tensor, "batch queries channels"],
        positions: Float[Tensor, "#batch queries channels"],
        memory: Memory,
        visible: Bool[Tensor, "#batch #queries tokens"] | None,
    ) -> Float[Tensor, "batch queries channels"]:
        """Return the queries after cross-attention."""
        placed = self.residual.prepare(queries) + positions
        return self.residual(queries, self.attention(placed, memory.keys, memory.values, visible))

    def start(self, memory: Memory) -> Projected:
        """Return what `step` keeps: the memory, projected once."""
        return self.attention.project(memory.keys, memory.values)

    def step(
        self,
        newest: Float[Tensor, "batch 1 channels"],
        kept: Projected,
        visible: Bool[Tensor, "batch 1 tokens"],
    ) -> tuple[Float[Tensor, "batch 1 channels"], Projected]:
        """Return the newest token of each sequence after cross-attention, and what to keep."""
        update = self.attention.attend(self.residual.prepare(newest), kept, visible)
        return self.residual(newest, update), kept


class SelfSublayer(nn.Module):
    """Queries attend to each other."""

    def __init__(self, attention: Attention, residual: Residual | PreNormResidual) -> None:
        super().__init__()
        self.attention = attention
        self.residual = residual

    def forward(
        self,
        queries: Float[Tensor, "batch queries channels"],
        positions: Float[Tensor, "#batch queries channels"],
        memory: Memory,
        visible: Bool[Tensor, "#batch #queries tokens"] | None,
    ) -> Float[Tensor, "batch queries channels"]:
        """Return the queries after self-attention; the memory plays no part."""
        prepared = self.residual.prepare(queries)
        placed = prepared + positions
        return self.residual(queries, self.attention(placed, placed, prepared))


class CausalSublayer(nn.Module):
    """Tokens of a sequence attend to themselves and to those before them.

    Source: Attention Is All You Need, Sec. 3.1 (masked self-attention of the decoder).
    """

    def __init__(self, attention: Attention, residual: Residual | PreNormResidual) -> None:
        super().__init__()
        self.attention = attention
        self.residual = residual

    def forward(
        self,
        queries: Float[Tensor, "batch queries channels"],
        positions: Float[Tensor, "#batch queries channels"],
        memory: Memory,
        visible: Bool[Tensor, "#batch #queries tokens"] | None,
    ) -> Float[Tensor, "batch queries channels"]:
        """Return the tokens after self-attention; memory and `visible`, which is about it, play no part."""
        prepared = self.residual.prepare(queries)
        placed = prepared + positions
        update = self.attention(placed, placed, prepared, causal_visibility(queries.shape[1], queries.device))
        return self.residual(queries, update)

    def start(self, memory: Memory) -> Prefix:
        """Return what `step` keeps: no token yet."""
        return Prefix.of(self.attention.project(memory.keys[:, :0], memory.values[:, :0]))

    def step(
        self,
        newest: Float[Tensor, "batch 1 channels"],
        kept: Prefix,
        visible: Bool[Tensor, "batch 1 tokens"],
    ) -> tuple[Float[Tensor, "batch 1 channels"], Prefix]:
        """Return the newest token of each sequence after self-attention, and what to keep, including it."""
        prepared = self.residual.prepare(newest)
        kept = kept.followed_by(self.attention.project(prepared, prepared))
        return self.residual(newest, self.attention.attend(prepared, kept.tokens)), kept


def causal_visibility(count: int, device: torch.device) -> Bool[Tensor, "1 count count"]:
    """Return the attention mask in which each of `count` tokens attends to itself and those before it."""
    return torch.ones((1, count, count), dtype=torch.bool, device=device).tril()


class FeedForwardSublayer(nn.Module):
    """A feed-forward, for each query on its own."""

    def __init__(self, feedforward: FeedForward, residual: Residual | PreNormResidual) -> None:
        super().__init__()
        self.update = feedforward
        self.residual = residual

    def forward(
        self,
        queries: Float[Tensor, "batch queries channels"],
        positions: Float[Tensor, "#batch queries channels"],
        memory: Memory,
        visible: Bool[Tensor, "#batch #queries tokens"] | None,
    ) -> Float[Tensor, "batch queries channels"]:
        """Return the queries after the feed-forward; positions and memory play no part."""
        return self.residual(queries, self.update(self.residual.prepare(queries)))

    def start(self, memory: Memory) -> None:
        """There is nothing to keep."""

    def step(
        self, newest: Float[Tensor, "batch 1 channels"], kept: None, visible: Bool[Tensor, "batch 1 tokens"]
    ) -> tuple[Float[Tensor, "batch 1 channels"], None]:
        """Return the newest token of each sequence after the feed-forward."""
        return self.residual(newest, self.update(self.residual.prepare(newest))), None


KeptOne = Projected | Prefix | None
"""What a sublayer keeps between the tokens of a sequence: keys and values of its attention, if it has one."""

Kept = tuple[KeptOne, ...]
"""What the sublayers of a layer keep."""


@runtime_checkable
class Stepper(Protocol):
    """A sublayer that can take the tokens of a sequence one at a time, keeping what it computed before."""

    def start(self, memory: Memory) -> KeptOne:
        """Return what is kept before the first token."""

    def step(self, newest: Tensor, kept: KeptOne, visible: Tensor) -> tuple[Tensor, KeptOne]:
        """Return the newest token of each sequence after the sublayer, and what to keep now."""


class DecoderLayer(nn.Module):
    """Sublayers one after the other, in the order of the mapping; its keys name them in the state dict."""

    def __init__(self, sublayers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, sublayer in sublayers.items():
            self.add_module(name, sublayer)

    def forward(
        self,
        queries: Float[Tensor, "batch queries channels"],
        positions: Float[Tensor, "#batch queries channels"],
        memory: Memory,
        visible: Bool[Tensor, "#batch #queries tokens"] | None,
    ) -> Float[Tensor, "batch queries channels"]:
        """Return the queries, one layer further; `visible`: where they may attend, None: everywhere."""
        for sublayer in self.children():
            queries = sublayer(queries, positions, memory, visible)
        return queries

    def start(self, memory: Memory) -> Kept:
        """Return what `step` keeps of each sublayer before the first token of a sequence."""
        return tuple(sublayer.start(memory) for sublayer in self._steppers())

    def step(
        self,
        newest: Float[Tensor, "batch 1 channels"],
        kept: Kept,
        visible: Bool[Tensor, "batch 1 tokens"],
    ) -> tuple[Float[Tensor, "batch 1 channels"], Kept]:
        """Return the newest token of each sequence after the layer, as `forward` gives it, and what to keep.

        Only for layers whose tokens attend to none that come later, and get no positions in the layer:
        `CausalSublayer` in the place of `SelfSublayer`.
        """
        after: list[KeptOne] = []
        for sublayer, one in zip(self._steppers(), kept, strict=True):
            newest, one = sublayer.step(newest, one, visible)
            after.append(one)
        return newest, tuple(after)

    def _steppers(self) -> tuple[Stepper, ...]:
        return tuple(cast(Stepper, sublayer) for sublayer in self.children())
