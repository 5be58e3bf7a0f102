"""The layers of the Transformer: residual connections, and sublayers that can be combined in any order.

Source: Attention Is All You Need, Sec. 3.1-3.3; positions are added in every layer, as in DETR, Sec. A.3.
"""

from collections.abc import Callable, Mapping
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unimask.nn.attention import Attention, Memory, Prefix, Projected


class Residual(nn.Module):
    """A residual connection with post-norm: norm(inputs + dropout(update)).

    A sublayer f is used as `residual(inputs, f(residual.prepare(inputs)))`.
    """

    def __init__(self, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def prepare(
        self, inputs: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch tokens channels"]:
        """Return the inputs unchanged: the norm of the previous sublayer has normalised them."""
        return inputs

    def forward(
        self, inputs: Float[Tensor, "batch tokens channels"], update: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch tokens channels"]:
        """Return the inputs after the sublayer, given its `update`."""
        return self.norm(inputs + self.dropout(update))


class PreNormResidual(nn.Module):
    """A residual connection with pre-norm: inputs + dropout(f(norm(inputs))).

    A stack of such layers needs a norm after the last one.

    Source: Xiong et al., On Layer Normalization in the Transformer Architecture (2002.04745), Fig. 1 (b).
    """

    def __init__(self, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def prepare(
        self, inputs: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch tokens channels"]:
        """Return the normalised inputs, which the sublayer takes."""
        return self.norm(inputs)

    def forward(
        self, inputs: Float[Tensor, "batch tokens channels"], update: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch tokens channels"]:
        """Return the inputs after the sublayer, given its `update`."""
        return inputs + self.dropout(update)


class FeedForward(nn.Module):
    """Two linear layers with an activation between them (ReLU in the paper), applied to each token.

    The activation may modify its input in place.
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
    """Self-attention of any kind, followed by a feed-forward.

    `attention` is called as `attention(tokens + positions, tokens, *where)` and returns the update.
    `residual` is the class of the residual connections. `hidden_dropout` is the dropout inside the
    feed-forward; None means `dropout`.
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
        """Return the tokens after the layer."""
        return self.feed(self.attend(tokens, positions, *where))

    def attend(self, tokens: Tensor, positions: Tensor, *where: object) -> Tensor:
        """Return the tokens after self-attention."""
        prepared = self.attention_residual.prepare(tokens)
        return self.attention_residual(tokens, self.attention(prepared + positions, prepared, *where))

    def feed(self, tokens: Tensor) -> Tensor:
        """Return the tokens after the feed-forward."""
        return self.feedforward_residual(tokens, self.feedforward(self.feedforward_residual.prepare(tokens)))


class CrossSublayer(nn.Module):
    """Cross-attention: queries attend to the memory."""

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
        """Return the initial state of `step`: the projected memory."""
        return self.attention.project(memory.keys, memory.values)

    def step(
        self,
        newest: Float[Tensor, "batch 1 channels"],
        kept: Projected,
        visible: Bool[Tensor, "batch 1 tokens"],
    ) -> tuple[Float[Tensor, "batch 1 channels"], Projected]:
        """Return the newest token of each sequence after cross-attention, and the unchanged state."""
        update = self.attention.attend(self.residual.prepare(newest), kept, visible)
        return self.residual(newest, update), kept


class SelfSublayer(nn.Module):
    """Self-attention: queries attend to each other."""

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
        """Return the queries after self-attention; `memory` and `visible` are not used."""
        prepared = self.residual.prepare(queries)
        placed = prepared + positions
        return self.residual(queries, self.attention(placed, placed, prepared))


class CausalSublayer(nn.Module):
    """Causal self-attention: each token of a sequence attends to itself and to the tokens before it.

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
        """Return the tokens after self-attention; `memory` and `visible` are not used."""
        prepared = self.residual.prepare(queries)
        placed = prepared + positions
        update = self.attention(placed, placed, prepared, causal_visibility(queries.shape[1], queries.device))
        return self.residual(queries, update)

    def start(self, memory: Memory) -> Prefix:
        """Return the initial state of `step`: an empty prefix."""
        return Prefix.of(self.attention.project(memory.keys[:, :0], memory.values[:, :0]))

    def step(
        self,
        newest: Float[Tensor, "batch 1 channels"],
        kept: Prefix,
        visible: Bool[Tensor, "batch 1 tokens"],
    ) -> tuple[Float[Tensor, "batch 1 channels"], Prefix]:
        """Return the newest token of each sequence after self-attention, and the prefix including it."""
        prepared = self.residual.prepare(newest)
        kept = kept.followed_by(self.attention.project(prepared, prepared))
        return self.residual(newest, self.attention.attend(prepared, kept.tokens)), kept


def causal_visibility(count: int, device: torch.device) -> Bool[Tensor, "1 count count"]:
    """Return the causal attention mask of `count` tokens: True where a token may attend."""
    return torch.ones((1, count, count), dtype=torch.bool, device=device).tril()


class FeedForwardSublayer(nn.Module):
    """A feed-forward, applied to each query."""

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
        """Return the queries after the feed-forward; the other arguments are not used."""
        return self.residual(queries, self.update(self.residual.prepare(queries)))

    def start(self, memory: Memory) -> None:
        """Return None: a feed-forward has no state."""

    def step(
        self, newest: Float[Tensor, "batch 1 channels"], kept: None, visible: Bool[Tensor, "batch 1 tokens"]
    ) -> tuple[Float[Tensor, "batch 1 channels"], None]:
        """Return the newest token of each sequence after the feed-forward."""
        return self.residual(newest, self.update(self.residual.prepare(newest))), None


KeptOne = Projected | Prefix | None
"""The state of a sublayer between the tokens of a sequence: cached keys and values, if it has attention."""

Kept = tuple[KeptOne, ...]
"""The states of the sublayers of a layer."""


@runtime_checkable
class Stepper(Protocol):
    """A sublayer that processes the tokens of a sequence one at a time, with a state between them."""

    def start(self, memory: Memory) -> KeptOne:
        """Return the state before the first token."""

    def step(self, newest: Tensor, kept: KeptOne, visible: Tensor) -> tuple[Tensor, KeptOne]:
        """Return the newest token of each sequence after the sublayer, and the new state."""


class DecoderLayer(nn.Module):
    """A sequence of sublayers in the order of the mapping; its keys are their names in the state dict."""

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
        """Return the queries after the layer; `visible` is True where they may attend, None: everywhere."""
        for sublayer in self.children():
            queries = sublayer(queries, positions, memory, visible)
        return queries

    def start(self, memory: Memory) -> Kept:
        """Return the states of the sublayers before the first token of a sequence."""
        return tuple(sublayer.start(memory) for sublayer in self._steppers())

    def step(
        self,
        newest: Float[Tensor, "batch 1 channels"],
        kept: Kept,
        visible: Bool[Tensor, "batch 1 tokens"],
    ) -> tuple[Float[Tensor, "batch 1 channels"], Kept]:
        """Return the newest token of each sequence after the layer, as `forward` does, and the new states.

        Only for causal layers without positions: with `CausalSublayer` instead of `SelfSublayer`.
        """
        after: list[KeptOne] = []
        for sublayer, one in zip(self._steppers(), kept, strict=True):
            newest, one = sublayer.step(newest, one, visible)
            after.append(one)
        return newest, tuple(after)

    def _steppers(self) -> tuple[Stepper, ...]:
        return tuple(cast(Stepper, sublayer) for sublayer in self.children())
