"""The encoder-decoder Transformer: predicts a sequence of tokens from a sequence of tokens or vectors.

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
    """Token embeddings that encoder, decoder and output projection share (weight tying).

    Source: Attention Is All You Need, Sec. 3.4 (inputs are multiplied with the square root of the channels).
    """

    def __init__(self, count: int, channels: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, channels))
        self.bias = nn.Parameter(torch.zeros(count)) if bias else None  # of the logits
        self.scale = math.sqrt(channels)
        nn.init.normal_(self.weight, std=channels**-0.5)

    def forward(self, tokens: Int64[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens channels"]:
        """Return the scaled embeddings of tokens."""
        return functional.embedding(tokens, self.weight) * self.scale

    def logits(self, states: Float[Tensor, "*batch channels"]) -> Float[Tensor, "*batch vocabulary"]:
        """Return the logits of the next token, given the states of the decoder."""
        return functional.linear(states, self.weight, self.bias)


class TokenSource(nn.Module):
    """Embeds a source of tokens, which have the same vocabulary as the target."""

    def forward(
        self, source: Int64[Tensor, "batch places"], embedding: TokenEmbedding
    ) -> Float[Tensor, "batch places channels"]:
        """Return the embeddings of the tokens."""
        vectors: Tensor = embedding(source)
        return vectors


class VectorSource(nn.Module):
    """Projects a source of vectors (frames of speech, columns of an image) to the channels of the model."""

    def __init__(self, features: int, channels: int) -> None:
        super().__init__()
        self.projection = nn.Linear(features, channels)

    def forward(
        self, source: Float[Tensor, "batch places features"], embedding: TokenEmbedding
    ) -> Float[Tensor, "batch places channels"]:
        """Return the projected vectors; `embedding` is not used."""
        vectors: Tensor = self.projection(source)
        return vectors


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The state of decoding a batch: that of each layer, and the position of the next token."""

    kept: tuple[Kept, ...]
    place: int

    def rows(self, indices: Int64[Tensor, " rows"]) -> "Progress":
        """Return the progress of selected rows of the batch; an index may occur more than once."""
        kept = tuple(
            tuple(None if one is None else one.rows(indices) for one in layer) for layer in self.kept
        )
        return Progress(kept=kept, place=self.place)


class Seq2Seq(nn.Module):
    """Encoder layers over the source and decoder layers over the target tokens, with sine positions.

    `source_input` embeds the source: `TokenSource` or `VectorSource`. `encoder_norm` and `decoder_norm`
    follow the last layers; they are identities with post-norm, whose layers end with a norm. `halves` is that
    of `sequence_positions`.

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

        The first token is the begin token. A state depends neither on later tokens nor on positions of the
        source that are not valid; each source must have a valid one.
        """
        memory = self.encode(source, source_valid)
        states = self._placed(self.embedding(tokens), 0)
        nowhere = states.new_zeros(1).expand_as(states[:1])  # zeros: positions were added to the embeddings
        for layer in self.decoder_layers:
            states = layer(states, nowhere, memory, source_valid[:, None])
        return self.decoder_norm(states)

    def logits(self, states: Float[Tensor, "*batch channels"]) -> Float[Tensor, "*batch vocabulary"]:
        """Return the logits of the next token, given states from `forward` or `step`."""
        return self.embedding.logits(states)

    def encode(
        self,
        source: Int64[Tensor, "batch places"] | Float[Tensor, "batch places features"],
        valid: Bool[Tensor, "batch places"],
    ) -> Memory:
        """Return the memory for the decoder; source positions that are not `valid` are not attended to."""
        states = self._placed(self.source_input(source, self.embedding), 0)
        nowhere = states.new_zeros(1).expand_as(states[:1])
        for layer in self.encoder_layers:
            states = layer(states, nowhere, valid[:, None])
        states = self.encoder_norm(states)
        return Memory(keys=states, values=states)

    def start(self, memory: Memory) -> Progress:
        """Return the progress before the first token; it holds all of the memory that `step` needs."""
        kept = tuple(layer.start(memory) for layer in self._decoder())
        return Progress(kept=kept, place=0)

    def step(
        self,
        newest: Int64[Tensor, " batch"],
        progress: Progress,
        source_valid: Bool[Tensor, "batch places"],
    ) -> tuple[Float[Tensor, "batch channels"], Progress]:
        """Return the state after each sequence's newest token, as `forward` does, and the new progress.

        Keys and values of earlier tokens are cached, so only attention to them takes longer as a sequence
        grows.
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
        """Return the attention weights of every layer of `forward`, with the same arguments, for display."""
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
        """Return the vectors plus positions, counted from `first`, after dropout."""
        _, count, channels = vectors.shape
        positions = sequence_positions(
            first, count, channels, halves=self.halves, device=vectors.device, dtype=vectors.dtype
        )
        return self.dropout(vectors + positions)
