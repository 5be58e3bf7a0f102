"""Layers of sequences against those of torch, with the same weights."""

import pytest
import torch
from torch import Tensor, nn

from unimask.nn.attention import Attention, Memory, Prefix, Projected, SelfAttention
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
from unimask.ops.positions import sequence_positions

CHANNELS, HEADS, HIDDEN = 12, 3, 29
KINDS = {"post": Residual, "pre": PreNormResidual}
BOTH = pytest.mark.parametrize("norm", ["post", "pre"])


def copy_attention(ours: Attention, theirs: nn.MultiheadAttention) -> None:
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.input_weight)
        theirs.in_proj_bias.copy_(ours.input_bias)
    theirs.out_proj.load_state_dict(ours.output.state_dict())


def shaken(layer: nn.Module) -> nn.Module:
    torch.manual_seed(5)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer.eval()


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)
    tokens = torch.randn(2, 7, CHANNELS, generator=generator)
    memory = torch.randn(2, 11, CHANNELS, generator=generator)
    return tokens, memory, torch.arange(11) < torch.tensor([[11], [4]])


@BOTH
def test_an_encoder_layer_is_that_of_torch(norm: str) -> None:
    ours = EncoderLayer(SelfAttention(CHANNELS, HEADS), CHANNELS, HIDDEN, residual=KINDS[norm])
    shaken(ours)
    theirs = nn.TransformerEncoderLayer(
        CHANNELS, HEADS, HIDDEN, dropout=0.0, batch_first=True, norm_first=norm == "pre"
    ).eval()
    copy_attention(ours.attention.attention, theirs.self_attn)
    theirs.linear1.load_state_dict(ours.feedforward.expand.state_dict())
    theirs.linear2.load_state_dict(ours.feedforward.contract.state_dict())
    theirs.norm1.load_state_dict(ours.attention_residual.norm.state_dict())
    theirs.norm2.load_state_dict(ours.feedforward_residual.norm.state_dict())
    _, memory, valid = inputs()
    expected = theirs(memory, src_key_padding_mask=~valid)
    found = ours(memory, torch.zeros(1, 11, CHANNELS), valid[:, None])
    torch.testing.assert_close(found[valid], expected[valid], rtol=1e-5, atol=1e-5)


def decoder_layer(norm: str) -> DecoderLayer:
    residual = KINDS[norm]
    return DecoderLayer(
        {
            "self": CausalSublayer(Attention(CHANNELS, HEADS), residual(CHANNELS)),
            "cross": CrossSublayer(Attention(CHANNELS, HEADS), residual(CHANNELS)),
            "feedforward": FeedForwardSublayer(FeedForward(CHANNELS, HIDDEN), residual(CHANNELS)),
        }
    )


@BOTH
def test_a_decoder_layer_is_that_of_torch(norm: str) -> None:
    ours = decoder_layer(norm)
    shaken(ours)
    theirs = nn.TransformerDecoderLayer(
        CHANNELS, HEADS, HIDDEN, dropout=0.0, batch_first=True, norm_first=norm == "pre"
    ).eval()
    parts = dict(ours.named_children())
    copy_attention(parts["self"].attention, theirs.self_attn)
    copy_attention(parts["cross"].attention, theirs.multihead_attn)
    theirs.linear1.load_state_dict(parts["feedforward"].update.expand.state_dict())
    theirs.linear2.load_state_dict(parts["feedforward"].update.contract.state_dict())
    for name, norm_layer in zip(parts, (theirs.norm1, theirs.norm2, theirs.norm3), strict=True):
        norm_layer.load_state_dict(parts[name].residual.norm.state_dict())
    tokens, memory, valid = inputs()
    expected = theirs(
        tokens,
        memory,
        tgt_mask=nn.Transformer.generate_square_subsequent_mask(7),
        memory_key_padding_mask=~valid,
    )
    seen = Memory(keys=memory, values=memory)
    found = ours(tokens, torch.zeros(1, 7, CHANNELS), seen, valid[:, None])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    kept, states = ours.start(seen), []
    for token in tokens.split(1, dim=1):
        state, kept = ours.step(token, kept, valid[:, None])
        states.append(state)
    torch.testing.assert_close(torch.cat(states, dim=1), expected, rtol=1e-5, atol=1e-5)


def test_attention_is_that_of_torch() -> None:
    ours = Attention(CHANNELS, HEADS)
    shaken(ours)
    theirs = nn.MultiheadAttention(CHANNELS, HEADS, batch_first=True).eval()
    copy_attention(ours, theirs)
    tokens, memory, valid = inputs()
    expected, shares = theirs(tokens, memory, memory, key_padding_mask=~valid, average_attn_weights=False)
    torch.testing.assert_close(ours(tokens, memory, memory, valid[:, None]), expected, rtol=1e-5, atol=1e-5)
    found = ours.shares(tokens, memory, memory, valid[:, None])
    torch.testing.assert_close(found, shares, rtol=1e-5, atol=1e-5)


def test_positions_are_those_of_the_paper() -> None:
    positions = sequence_positions(0, 13, 10)
    for place in (0, 1, 12):
        for wave in range(5):
            angle = torch.tensor(place / 10_000 ** (2 * wave / 10), dtype=torch.float64)
            assert float(positions[place, 2 * wave]) == pytest.approx(float(angle.sin()), abs=1e-6)
            assert float(positions[place, 2 * wave + 1]) == pytest.approx(float(angle.cos()), abs=1e-6)
    assert torch.equal(sequence_positions(4, 3, 10), positions[4:7])
    halves = sequence_positions(0, 13, 10, halves=True)
    assert torch.equal(halves, torch.cat((positions[:, 0::2], positions[:, 1::2]), dim=1))
    with pytest.raises(ValueError, match="even"):
        sequence_positions(0, 3, 7)


def test_a_prefix_never_changes() -> None:
    """Two ways to go on from the same tokens do not disturb each other, whatever was written in between."""
    numbers = torch.Generator().manual_seed(0)

    def some(count: int) -> Projected:
        return Projected(
            keys=torch.randn(3, 2, count, 5, generator=numbers),
            values=torch.randn(3, 2, count, 5, generator=numbers),
        )

    def cat(*parts: Projected) -> Projected:
        keys, values = [one.keys for one in parts], [one.values for one in parts]
        return Projected(keys=torch.cat(keys, dim=2), values=torch.cat(values, dim=2))

    def check(found: Prefix, *parts: Projected) -> None:
        assert torch.equal(found.tokens.keys, cat(*parts).keys)
        assert torch.equal(found.tokens.values, cat(*parts).values)

    with torch.no_grad():
        first, one, other, more = some(0), some(1), some(1), some(40)
        start = Prefix.of(first)
        left, right = start.followed_by(one), start.followed_by(other)
        longer, branch = left.followed_by(more), left.followed_by(other)
        last = longer.followed_by(one)
        check(start, first)
        check(left, one)
        check(right, other)
        check(longer, one, more)
        check(branch, one, other)
        check(last, one, more, one)
        named = torch.tensor([2, 0, 0])
        assert torch.equal(last.rows(named).tokens.keys, cat(one, more, one).keys[named])
        assert last.tokens.keys.data_ptr() == longer.tokens.keys.data_ptr()  # written behind, not copied
