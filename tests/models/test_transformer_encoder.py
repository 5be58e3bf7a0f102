import torch
from torch import nn

from unimask.models.transformer_encoder import TransformerEncoder, encoder_layer
from unimask.ops.positions import sine_positions

CHANNELS, HEADS, HIDDEN = 12, 3, 29
HEIGHT, WIDTH = 3, 5


def make_encoder(layers: int = 2, dropout: float = 0.0) -> TransformerEncoder:
    torch.manual_seed(3)
    return TransformerEncoder([encoder_layer(CHANNELS, HEADS, HIDDEN, dropout) for _ in range(layers)])


def places() -> torch.Tensor:
    return sine_positions(HEIGHT, WIDTH, CHANNELS).flatten(0, 1)[None]


def test_equals_the_layers_of_pytorch_when_cells_have_no_place() -> None:
    encoder = make_encoder().eval()
    maps = torch.randn(2, CHANNELS, HEIGHT, WIDTH)
    expected = maps.flatten(2).transpose(1, 2)
    for layer in encoder.layers:
        theirs = nn.TransformerEncoderLayer(CHANNELS, HEADS, HIDDEN, 0.0, batch_first=True).eval()
        attention = layer.attention.attention
        with torch.no_grad():
            theirs.self_attn.in_proj_weight.copy_(attention.input_weight)
            theirs.self_attn.in_proj_bias.copy_(attention.input_bias)
        theirs.self_attn.out_proj.load_state_dict(attention.output.state_dict())
        theirs.linear1.load_state_dict(layer.feedforward.expand.state_dict())
        theirs.linear2.load_state_dict(layer.feedforward.contract.state_dict())
        theirs.norm1.load_state_dict(layer.attention_residual.norm.state_dict())
        theirs.norm2.load_state_dict(layer.feedforward_residual.norm.state_dict())
        expected = theirs(expected)
    result = encoder(maps, torch.zeros(1, HEIGHT * WIDTH, CHANNELS))
    torch.testing.assert_close(result.flatten(2).transpose(1, 2), expected, atol=1e-5, rtol=1e-5)


def test_padding_has_no_influence() -> None:
    encoder = make_encoder().eval()
    maps = torch.randn(2, CHANNELS, HEIGHT, WIDTH)
    valid = torch.ones(2, HEIGHT, WIDTH, dtype=torch.bool)
    valid[1, :, 3:] = False
    changed = torch.where(valid[:, None], maps, torch.full_like(maps, 7.0))
    first, second = encoder(maps, places(), valid), encoder(changed, places(), valid)
    assert torch.equal(first.movedim(1, 3)[valid], second.movedim(1, 3)[valid])
    without = encoder(maps, places())
    torch.testing.assert_close(first[0], without[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(first[1, :, :, :3], without[1, :, :, :3], atol=1e-3)


def test_positions_count_in_every_layer() -> None:
    encoder = make_encoder().eval()
    maps = torch.ones(1, CHANNELS, HEIGHT, WIDTH)
    same = encoder(maps, torch.zeros(1, HEIGHT * WIDTH, CHANNELS))
    assert torch.allclose(same, same[:, :, :1, :1].expand_as(same), atol=1e-6)
    torch.testing.assert_close(encoder(maps, places()), same, atol=1e-5, rtol=1e-5)  # all values are equal
    maps = torch.randn(1, CHANNELS, HEIGHT, WIDTH)
    shuffled = maps.flip(3)
    assert not torch.allclose(encoder(maps, places()).flip(3), encoder(shuffled, places()), atol=1e-3)


def test_dropout_acts_in_training_only() -> None:
    encoder = make_encoder(dropout=0.5)
    maps = torch.randn(1, CHANNELS, HEIGHT, WIDTH)
    assert not torch.equal(encoder(maps, places()), encoder(maps, places()))
    encoder.eval()
    assert torch.equal(encoder(maps, places()), encoder(maps, places()))
