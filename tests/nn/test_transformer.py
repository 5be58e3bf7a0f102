import pytest
import torch
from torch import Tensor, nn

from unimask.nn.attention import Attention, Memory, SelfAttention
from unimask.nn.transformer import (
    CrossSublayer,
    DecoderLayer,
    EncoderLayer,
    FeedForward,
    FeedForwardSublayer,
    Residual,
    SelfSublayer,
)

CHANNELS, HEADS, HIDDEN = 12, 3, 29


def copy_attention(ours: Attention, theirs: nn.MultiheadAttention) -> None:
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.input_weight)
        theirs.in_proj_bias.copy_(ours.input_bias)
    theirs.out_proj.load_state_dict(ours.output.state_dict())


def copy_feedforward(ours: FeedForward, theirs: nn.Module) -> None:
    theirs.linear1.load_state_dict(ours.expand.state_dict())
    theirs.linear2.load_state_dict(ours.contract.state_dict())


def shake(layer: nn.Module) -> None:
    """Give every parameter an effect on the result."""
    torch.manual_seed(5)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)


def sublayers(dropout: float = 0.0) -> dict[str, nn.Module]:
    return {
        "cross": CrossSublayer(Attention(CHANNELS, HEADS, dropout), Residual(CHANNELS, dropout)),
        "self": SelfSublayer(Attention(CHANNELS, HEADS, dropout), Residual(CHANNELS, dropout)),
        "feedforward": FeedForwardSublayer(
            FeedForward(CHANNELS, HIDDEN, dropout), Residual(CHANNELS, dropout)
        ),
    }


def decoder_layer(*order: str, dropout: float = 0.0) -> DecoderLayer:
    parts = sublayers(dropout)
    return DecoderLayer({name: parts[name] for name in order})


def test_encoder_layer_equals_torch() -> None:
    ours = EncoderLayer(SelfAttention(CHANNELS, HEADS), CHANNELS, HIDDEN)
    theirs = nn.TransformerEncoderLayer(CHANNELS, HEADS, HIDDEN, dropout=0.0, batch_first=True)
    shake(ours)
    copy_attention(ours.attention.attention, theirs.self_attn)
    copy_feedforward(ours.feedforward, theirs)
    theirs.norm1.load_state_dict(ours.attention_residual.norm.state_dict())
    theirs.norm2.load_state_dict(ours.feedforward_residual.norm.state_dict())
    tokens = torch.randn(2, 17, CHANNELS)
    torch.testing.assert_close(ours(tokens, torch.zeros(1, 17, CHANNELS)), theirs(tokens))


def test_decoder_layer_in_the_order_of_the_first_transformer_equals_torch() -> None:
    ours = decoder_layer("self", "cross", "feedforward")
    theirs = nn.TransformerDecoderLayer(CHANNELS, HEADS, HIDDEN, dropout=0.0, batch_first=True)
    shake(ours)
    parts = dict(ours.named_children())
    copy_attention(parts["self"].attention, theirs.self_attn)
    copy_attention(parts["cross"].attention, theirs.multihead_attn)
    copy_feedforward(parts["feedforward"].update, theirs)
    for norm, name in ((theirs.norm1, "self"), (theirs.norm2, "cross"), (theirs.norm3, "feedforward")):
        norm.load_state_dict(parts[name].residual.norm.state_dict())
    queries, tokens = torch.randn(2, 5, CHANNELS), torch.randn(2, 13, CHANNELS)
    visible = torch.rand(1, 5, 13) > 0.4
    visible[..., 0] = True
    result = ours(queries, torch.zeros(1, 5, CHANNELS), Memory(keys=tokens, values=tokens), visible)
    torch.testing.assert_close(result, theirs(queries, tokens, memory_mask=~visible[0]))


def test_the_order_changes_the_result_but_not_the_names() -> None:
    first, second = (
        decoder_layer("cross", "self", "feedforward"),
        decoder_layer("self", "cross", "feedforward"),
    )
    shake(first)
    assert set(first.state_dict()) == set(second.state_dict())
    second.load_state_dict(first.state_dict())
    queries, tokens = torch.randn(1, 5, CHANNELS), torch.randn(1, 13, CHANNELS)
    arguments = (queries, torch.randn(1, 5, CHANNELS), Memory(keys=tokens, values=tokens), None)
    assert (first(*arguments) - second(*arguments)).abs().max() > 0.01


def test_positions_are_in_queries_and_keys_but_not_in_values() -> None:
    layer = DecoderLayer({"self": sublayers()["self"]})
    with torch.no_grad():  # no query and no key projection: all keys fit all queries equally well
        layer.get_parameter("self.attention.input_weight")[: 2 * CHANNELS] = 0
    queries, positions = torch.randn(1, 5, CHANNELS), torch.randn(1, 5, CHANNELS)
    memory = Memory(keys=queries, values=queries)
    torch.testing.assert_close(
        layer(queries, positions, memory, None), layer(queries, torch.zeros_like(positions), memory, None)
    )


@pytest.mark.parametrize("name", ["cross", "self", "feedforward"])
def test_each_sublayer_drops_in_training_only(name: str) -> None:
    layer = decoder_layer(name, dropout=0.5)
    queries, positions = torch.randn(1, 5, CHANNELS), torch.zeros(1, 5, CHANNELS)
    memory = Memory(keys=queries, values=queries)
    assert not torch.equal(layer(queries, positions, memory, None), layer(queries, positions, memory, None))
    layer.eval()
    assert torch.equal(layer(queries, positions, memory, None), layer(queries, positions, memory, None))
