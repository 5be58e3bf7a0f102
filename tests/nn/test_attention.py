import threading

import pytest
import torch
from torch import Tensor, nn

from unimask.nn import attention as module
from unimask.nn.attention import Attention, DeformableAttention, Levels, watched
from unimask.ops.dispatch import softmax_over_few
from unimask.ops.positions import cell_centers
from unimask.structures import Size

SIZES = ((3, 5), (5, 7))


def levels(dtype: torch.dtype = torch.float32) -> Levels:
    return Levels(
        sizes=SIZES,
        places=torch.cat([cell_centers(*size, dtype=dtype) for size in SIZES]),
        cells=torch.tensor([(width, height) for height, width in SIZES], dtype=dtype),
    )


@pytest.fixture
def pair() -> tuple[Attention, nn.MultiheadAttention]:
    """Ours and torch's, with the same parameters."""
    torch.manual_seed(3)
    ours, theirs = Attention(20, 5), nn.MultiheadAttention(20, 5, batch_first=True)
    nn.init.normal_(ours.input_bias)
    nn.init.normal_(ours.output.bias)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.input_weight,
            "in_proj_bias": ours.input_bias,
            "out_proj.weight": ours.output.weight,
            "out_proj.bias": ours.output.bias,
        }
    )
    return ours, theirs


def test_attention_equals_torch(pair: tuple[Attention, nn.MultiheadAttention]) -> None:
    ours, theirs = pair
    queries, keys, values = torch.randn(2, 7, 20), torch.randn(2, 11, 20), torch.randn(2, 11, 20)
    expected, _ = theirs(queries, keys, values)
    torch.testing.assert_close(ours(queries, keys, values), expected)


@pytest.mark.parametrize("shape", [(2, 7, 11), (1, 7, 11), (2, 1, 11), (1, 1, 11)])
def test_visible_is_the_opposite_of_blocked(
    pair: tuple[Attention, nn.MultiheadAttention], shape: tuple[int, int, int]
) -> None:
    ours, theirs = pair
    queries, keys, values = torch.randn(2, 7, 20), torch.randn(2, 11, 20), torch.randn(2, 11, 20)
    visible = torch.rand(shape) > 0.5
    visible[..., 0] = True
    blocked = ~visible.expand(2, 7, 11)
    expected, _ = theirs(queries, keys, values, attn_mask=blocked.repeat_interleave(5, dim=0))
    torch.testing.assert_close(ours(queries, keys, values, visible), expected)


def test_dropout_acts_in_training_only() -> None:
    attention = Attention(16, 2, dropout=0.5)
    inputs = torch.randn(1, 13, 16)
    assert not torch.equal(attention(inputs, inputs, inputs), attention(inputs, inputs, inputs))
    attention.eval()
    assert torch.equal(attention(inputs, inputs, inputs), attention(inputs, inputs, inputs))


def test_deformable_attention_starts_on_rings() -> None:
    heads, points = 8, 3
    attention = DeformableAttention(32, heads, levels=2, points=points)
    offsets = attention.offsets.bias.detach().view(heads, 2, points, 2)
    expected = torch.tensor([[1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1], [0, -1], [1, -1]]).float()
    for point in range(points):
        for level in range(2):
            torch.testing.assert_close(offsets[:, level, point], expected * (point + 1), atol=1e-5, rtol=0)
    for zero in (attention.offsets.weight, attention.weights.weight, attention.weights.bias):
        assert not zero.any()


def test_offsets_are_in_cells_of_their_own_level() -> None:
    """Identity projections, all weight on one point, one cell to the right: maps move by one cell."""
    attention = DeformableAttention(4, heads=1, levels=2, points=1)
    for layer in (attention.values, attention.output):
        nn.init.eye_(layer.weight)
    values = torch.randn(1, 50, 4)
    maps = [part.reshape(1, *size, 4) for part, size in zip(values.split([15, 35], 1), SIZES, strict=True)]
    with torch.no_grad():
        attention.offsets.bias.copy_(torch.tensor([1.0, 0.0, 1.0, 0.0]))
        for index, (start, stop) in enumerate(((0, 15), (15, 50))):
            attention.weights.bias.fill_(-1e4)[index] = 0
            result = attention(torch.randn(1, 50, 4), values, levels())[:, start:stop]
            shifted = torch.zeros_like(maps[index])
            shifted[:, :, :-1] = maps[index][:, :, 1:]
            torch.testing.assert_close(result, shifted.flatten(1, 2), atol=1e-5, rtol=1e-5)


def test_sampling_is_float32_under_mixed_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    types = []
    plain = module.fast_deformable_sampling

    def spy(values: Tensor, sizes: tuple[Size, ...], locations: Tensor, weights: Tensor) -> Tensor:
        sampled = plain(values, sizes, locations, weights)
        types.extend([values.dtype, locations.dtype, weights.dtype, sampled.dtype])
        return sampled

    monkeypatch.setattr(module, "fast_deformable_sampling", spy)
    attention, tokens = DeformableAttention(32, 4, 2, 4), torch.randn(1, 50, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = attention(tokens, tokens, levels())
    assert types == [torch.float32] * 4
    assert result.dtype == torch.bfloat16
    with torch.no_grad():
        torch.testing.assert_close(result.float(), attention(tokens, tokens, levels()), atol=0.05, rtol=0.05)


def test_deformable_attention_in_float64() -> None:
    attention, tokens = DeformableAttention(8, 2, 2, 1).double(), torch.randn(1, 50, 8, dtype=torch.float64)
    assert attention(tokens, tokens, levels(torch.float64)).dtype == torch.float64


def test_softmax_over_few() -> None:
    logits = torch.randn(3, 7, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(softmax_over_few(logits), logits.softmax(dim=-1))
    torch.testing.assert_close(softmax_over_few(logits + 1e4), logits.softmax(dim=-1))
    assert torch.autograd.gradcheck(softmax_over_few, logits)


def test_watching_sees_no_other_thread() -> None:
    torch.manual_seed(0)
    attention = Attention(14, 2)
    queries, memory = torch.randn(1, 3, 14), torch.randn(1, 5, 14)
    with watched([attention]) as seen:
        other = threading.Thread(target=attention, args=(queries, memory, memory))
        other.start()
        other.join()
        assert seen == []
        attention(queries, memory, memory)
    attention(queries, memory, memory)
    (shares,) = seen
    assert shares.shape == (1, 2, 3, 5)
    assert torch.allclose(shares.sum(-1), torch.ones(1, 2, 3))
