"""The Transformer itself: a sequence goes in, tokens come out.

Source: Attention Is All You Need (1706.03762).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from unimask.nn.attention import Memory, SelfAttention, watched
from unimask.nn.transformer import CausalSublayer, CrossSublayer, DecoderLayer, EncoderLayer, Kept
from unimask.ops.positions import sequence_positions
from unimask.structures import AttentionMaps


class TokenEmbedding(nn.Module):
    """One vector per token, with which tokens are read and, by its product with states, written.

    Source: Attention Is All You Need, Sec. 3.4 (encoder, decoder and output share it; read vectors are
    multiplied with the root of the width).
    """

    def __init__(self, count: int, channels: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, channels))
        self.bias = nn.Parameter(torch.zeros(count)) if bias else None  # of the logits
        self.scale = math.sqrt(channels)
        nn.init.normal_(self.weight, std=channels**-0.5)

    def forward(self, tokens: Int64[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens channels"]:
        """Return the vectors of tokens."""
        return functional.embedding(tokens, self.weight) * self.scale

    def logits(self, states: Float[Tensor, "*batch channels"]) -> Float[Tensor, "*batch vocabulary"]:
        """Return the logits of the next token."""
        return functional.linear(states, self.weight, self.bias)


class TokenSource(nn.Module):
    """The source is tokens of the same vocabulary as the target."""

    def forward(
        self, source: Int64[Tensor, "batch places"], embedding: TokenEmbedding
    ) -> Float[Tensor, "batch places channels"]:
        """Their vectors."""
        vectors: Tensor = embedding(source)
        return vectors


class VectorSource(nn.Module):
    """The source is vectors (frames of speech, columns of an image), brought to the width of the model."""

    def __init__(self, features: int, channels: int) -> None:
        super().__init__()
        self.projection = nn.Linear(features, channels)

    def forward(
        self, source: Float[Tensor, "batch places features"], embedding: TokenEmbedding
    ) -> Float[Tensor, "batch places channels"]:
        """Them, projected."""
        vectors: Tensor = self.projection(source)
        return vectors


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the sequences of a batch are: what each layer keeps, and the place of the next token."""

    kept: tuple[Kept, ...]
    place: int

    def rows(self, indices: Int64[Tensor, " rows"]) -> "Progress":
        """That of some rows of the batch, which may be named more than once."""
        kept = tuple(
            tuple(None if one is None else one.rows(indices) for one in layer) for layer in self.kept
        )
        return Progress(kept=kept, place=self.place)


class Seq2Seq(nn.Module):
    """Encoder layers over the source, decoder layers over the tokens written so far, positions as sines.

    `source_input` makes vectors of the source: `TokenSource` or `VectorSource`. The norms come after the last
    layers; with post-norm, whose layers end with one, they are identities. `halves`: see
    `sequence_positions`.

    Source: Attention Is All You Need, Sec. 3.
    """

    def __init__(
        self,
        *,
        source_input: nn.Module,
        embedding: TokenEmbedding,
        encoder_layers: Sequence[EncoderLayer],
        decoder_layers: Sequence[DecoderLayer],
        encoder_norm: nn.Module,
        decoder_norm: nn.Module,
        dropout: float,
        halves: bool,
    ) -> None:
        super().__init__()
        self.source_input = source_input
        self.embedding = embedding
        self.encoder_layers = nn.ModuleList(encoder_layers)
        self.decoder_layers = nn.ModuleList(decoder_layers)
        self.encoder_norm = encoder_norm
        self.decoder_norm = decoder_norm
        self.dropout = nn.Dropout(dropout)
        self.halves = halves

    def forward(
        self,
        source: Int64[Tensor, "batch places"] | Float[Tensor, "batch places features"],
        source_valid: Bool[Tensor, "batch places"],
        tokens: Int64[Tensor, "batch tokens"],
    ) -> Float[Tensor, "batch tokens channels"]:
        """Return the state after each token of the target, from which `logits` predicts the next one.

        The first token is the begin token. A state depends on no later token, and on no source place that is
        not valid; of each source at least one is.
        """
        memory = self.encode(source, source_valid)
        states = self._placed(self.embedding(tokens), 0)
        nowhere = states.new_zeros(1).expand_as(states[:1])  # positions are in the states already
        for layer in self.decoder_layers:
            states = layer(states, nowhere, memory, source_valid[:, None])
        return self.decoder_norm(states)

    def logits(self, states: Float[Tensor, "*batch channels"]) -> Float[Tensor, "*batch vocabulary"]:
        """Return the logits of the next token."""
        return self.embedding.logits(states)

    def encode(
        self,
        source: Int64[Tensor, "batch places"] | Float[Tensor, "batch places features"],
        valid: Bool[Tensor, "batch places"],
    ) -> Memory:
        """Return the memory of the decoder. Places that are not valid are never attended to."""
        states = self._placed(self.source_input(source, self.embedding), 0)
        nowhere = states.new_zeros(1).expand_as(states[:1])
        for layer in self.encoder_layers:
            states = layer(states, nowhere, valid[:, None])
        states = self.encoder_norm(states)
        return Memory(keys=states, values=states)

    def start(self, memory: Memory) -> Progress:
        """Return the progress before the first token; `step` does not need the memory any more."""
        kept = tuple(layer.start(memory) for layer in self._decoder())
        return Progress(kept=kept, place=0)

    def step(
        self,
        newest: Int64[Tensor, " batch"],
        progress: Progress,
        source_valid: Bool[Tensor, "batch places"],
    ) -> tuple[Float[Tensor, "batch channels"], Progress]:
        """Return the state after each sequence's newest token, as `forward` gives it, and the new progress.

        What was computed for earlier tokens is kept, so that a step costs the same wherever it is, but for
        attending to each of them.
        """
        states = self._placed(self.embedding(newest[:, None]), progress.place)
        after: list[Kept] = []
        for layer, kept in zip(self._decoder(), progress.kept, strict=True):
            states, kept = layer.step(states, kept, source_valid[:, None])
            after.append(kept)
        return self.decoder_norm(states)[:, 0], Progress(kept=tuple(after), place=progress.place + 1)

    @torch.no_grad()
    def attention_maps(
        self,
        source: Int64[Tensor, "batch places"] | Float[Tensor, "batch places features"],
        source_valid: Bool[Tensor, "batch places"],
        tokens: Int64[Tensor, "batch tokens"],
    ) -> AttentionMaps:
        """Return the attention of every layer while these tokens (the first is the begin token) are read."""
        with self._watched() as (encoder, decoder, cross):
            self(source, source_valid, tokens)
        return AttentionMaps(encoder=tuple(encoder), decoder=tuple(decoder), cross=tuple(cross))

    @contextmanager
    def _watched(self) -> Iterator[tuple[list[Tensor], list[Tensor], list[Tensor]]]:
        groups: list[list[nn.Module]] = [
            [m.attention for m in self.encoder_layers.modules() if isinstance(m, SelfAttention)],
            [m.attention for m in self.decoder_layers.modules() if isinstance(m, CausalSublayer)],
            [m.attention for m in self.decoder_layers.modules() if isinstance(m, CrossSublayer)],
        ]
        with ExitStack() as stack:
            encoder, decoder, cross = (stack.enter_context(watched(group)) for group in groups)
            yield encoder, decoder, cross

    def _decoder(self) -> Iterator[DecoderLayer]:
        for layer in self.decoder_layers:
            assert isinstance(layer, DecoderLayer)
            yield layer

    def _placed(
        self, vectors: Float[Tensor, "batch tokens channels"], first: int
    ) -> Float[Tensor, "batch tokens channels"]:
        """Add positions, counted from `first`."""
        _, count, channels = vectors.shape
        positions = sequence_positions(
            first, count, channels, halves=self.halves, device=vectors.device, dtype=vectors.dtype
        )
        return self.dropout(vectors + positions)
