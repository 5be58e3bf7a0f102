"""The layers of the Transformer: one residual wrapper, and sublayers that are put together in any order.

Source: Attention Is All You Need, Sec. 3.1-3.3; positions are added in every layer, as in DETR, Sec. A.3.
"""

from collections.abc import Mapping

from jaxtyping import Bool, Float
from torch import Tensor, nn

from unimask.nn.attention import Attention, Memory
from unimask.ops.dispatch import token_by_token


class Residual(nn.Module):
    """norm(inputs + dropout(update)): the normalisation comes last (post-norm)."""

    def __init__(self, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, inputs: Float[Tensor, "batch tokens channels"], update: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch tokens channels"]:
        """The inputs after one sublayer."""
        return self.norm(inputs + self.dropout(update))


class FeedForward(nn.Module):
    """Two linear layers with ReLU between them, for each token on its own."""

    def __init__(self, channels: int, hidden_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.expand = nn.Linear(channels, hidden_channels)
        self.contract = nn.Linear(hidden_channels, channels)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.expand.weight)
        nn.init.xavier_uniform_(self.contract.weight)

    def forward(
        self, tokens: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch tokens channels"]:
        """The update of each token."""
        return token_by_token(self._update, tokens)

    def _update(self, tokens: Float[Tensor, "*tokens channels"]) -> Float[Tensor, "*tokens channels"]:
        return self.contract(self.dropout(self.expand(tokens).relu_()))


class EncoderLayer(nn.Module):
    """Self-attention of any kind, then a feed-forward.

    `attention` is called as `attention(tokens + positions, tokens, *where)` and gives the update.
    """

    def __init__(
        self, attention: nn.Module, channels: int, feedforward_channels: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.attention = attention
        self.attention_residual = Residual(channels, dropout)
        self.feedforward = FeedForward(channels, feedforward_channels, dropout)
        self.feedforward_residual = Residual(channels, dropout)

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens channels"],
        positions: Float[Tensor, "#batch tokens channels"],
        *where: object,
    ) -> Float[Tensor, "batch tokens channels"]:
        """The tokens, one layer further."""
        tokens = self.attention_residual(tokens, self.attention(tokens + positions, tokens, *where))
        return self.feedforward_residual(tokens, self.feedforward(tokens))


class CrossSublayer(nn.Module):
    """Queries look at the memory."""

    def __init__(self, attention: Attention, residual: Residual) -> None:
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
        """The queries after cross-attention."""
        update = self.attention(queries + positions, memory.keys, memory.values, visible)
        return self.residual(queries, update)


class SelfSublayer(nn.Module):
    """Queries look at each other."""

    def __init__(self, attention: Attention, residual: Residual) -> None:
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
        """The queries after self-attention; the memory plays no part."""
        placed = queries + positions
        return self.residual(queries, self.attention(placed, placed, queries))


class FeedForwardSublayer(nn.Module):
    """Each query for itself."""

    def __init__(self, feedforward: FeedForward, residual: Residual) -> None:
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
        """The queries after the feed-forward; positions and memory play no part."""
        return self.residual(queries, self.update(queries))


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
        """The queries, one layer further; `visible`: where each may look in the memory, None: everywhere."""
        for sublayer in self.children():
            queries = sublayer(queries, positions, memory, visible)
        return queries
