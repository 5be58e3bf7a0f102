"""Builds an encoder-decoder Transformer with random weights from its config."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from unimask.config.text import SequenceModelConfig
from unimask.models.seq2seq import Seq2Seq, TokenEmbedding, TokenSource, VectorSource
from unimask.nn.attention import Attention, SelfAttention
from unimask.nn.transformer import (
    CausalSublayer,
    CrossSublayer,
    DecoderLayer,
    EncoderLayer,
    FeedForward,
    FeedForwardSublayer,
    PreNormResidual,
    Residual,
)

ACTIVATIONS = {"relu": torch.relu_, "silu": functional.silu, "gelu": functional.gelu}
RESIDUALS: Mapping[str, type[Residual] | type[PreNormResidual]] = {"post": Residual, "pre": PreNormResidual}


def build_sequence_model(config: SequenceModelConfig, vocabulary: int) -> Seq2Seq:
    """Return a Transformer with random weights; `vocabulary` is the number of target tokens."""
    channels, pre_norm = config.channels, config.norm == "pre"
    return Seq2Seq(
        source_input=(
            VectorSource(config.source_features, channels) if config.source == "vectors" else TokenSource()
        ),
        embedding=TokenEmbedding(vocabulary, channels, bias=config.output_bias),
        encoder_layers=[_sequence_encoder_layer(config) for _ in range(config.encoder_layers)],
        decoder_layers=[_sequence_decoder_layer(config) for _ in range(config.decoder_layers)],
        encoder_norm=nn.LayerNorm(channels) if pre_norm else nn.Identity(),
        decoder_norm=nn.LayerNorm(channels) if pre_norm else nn.Identity(),
        dropout=config.dropout,
        halves=config.position_layout == "halves",
    )


def _sequence_encoder_layer(config: SequenceModelConfig) -> EncoderLayer:
    return EncoderLayer(
        SelfAttention(config.channels, config.heads, config.attention_dropout),
        config.channels,
        config.feedforward_channels,
        config.dropout,
        residual=RESIDUALS[config.norm],
        hidden_dropout=config.hidden_dropout,
        activation=ACTIVATIONS[config.activation],
    )


def _sequence_decoder_layer(config: SequenceModelConfig) -> DecoderLayer:
    channels, residual = config.channels, RESIDUALS[config.norm]
    feedforward = FeedForward(
        channels, config.feedforward_channels, config.hidden_dropout, ACTIVATIONS[config.activation]
    )

    def attention() -> Attention:
        return Attention(channels, config.heads, config.attention_dropout)

    return DecoderLayer(
        {
            "self": CausalSublayer(attention(), residual(channels, config.dropout)),
            "cross": CrossSublayer(attention(), residual(channels, config.dropout)),
            "feedforward": FeedForwardSublayer(feedforward, residual(channels, config.dropout)),
        }
    )
