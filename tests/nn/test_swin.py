"""Swin: shapes at odd sizes, the shift seams, gradients, and a slow attention written the other way."""

import pytest
import torch
from torch import Tensor

from unimask.nn.swin import (
    PatchMerging,
    Swin,
    WindowAttention,
    relative_positions,
    shift_penalty,
)


def small(window: int = 3, drop_path_rate: float = 0.0) -> Swin:
    torch.manual_seed(0)
    return Swin(
        embed_channels=6,
        depths=(2, 1, 2, 1),
        heads=(1, 2, 3, 2),
        window=window,
        drop_path_rate=drop_path_rate,
    )


@pytest.mark.parametrize("size", [(1, 1), (5, 97), (64, 32), (101, 53)])
def test_maps_have_the_size_of_the_picture_over_the_stride_rounded_up(size):
    network = small()
    maps = network(torch.randn(2, 3, *size))
    assert network.channels == {4: 6, 8: 12, 16: 24, 32: 48}
    for stride, features in maps.items():
        expected = tuple(-(-pixels // stride) for pixels in size)
        assert features.shape == (2, network.channels[stride], *expected)
        assert features.isfinite().all()


def test_pictures_of_a_batch_do_not_meet():
    network = small().eval()
    pixels = torch.randn(3, 3, 37, 61)
    with torch.no_grad():
        together = network(pixels)
        alone = [network(pixels[index : index + 1]) for index in range(3)]
    for stride, features in together.items():
        expected = torch.cat([maps[stride] for maps in alone])
        torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


def test_every_parameter_gets_a_gradient():
    network = small()
    maps = network(torch.randn(1, 3, 71, 83))
    weights = [torch.randn_like(features) for features in maps.values()]
    sum((a * b).sum() for a, b in zip(maps.values(), weights, strict=True)).backward()
    idle = [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert not idle


def test_stochastic_depth_grows_and_rests_in_evaluation():
    network = small(drop_path_rate=0.5)
    rates = [block.drop_path.drop_prob for stage in network.stages for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    pixels = torch.randn(1, 3, 33, 47)
    with torch.no_grad():
        first, second = (network.eval()(pixels)[32] for _ in range(2))
    assert torch.equal(first, second)


def test_relative_positions_by_hand():
    # tokens of a 2 x 2 window, row by row; the table has rows for offsets (-1, -1) .. (1, 1)
    assert relative_positions(2).tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]


@pytest.mark.parametrize(
    ("height", "width", "window", "shift"), [(6, 9, 3, 1), (4, 8, 4, 2), (5, 5, 5, 2), (7, 14, 7, 3)]
)
def test_shift_penalty_by_slow_search(height, width, window, shift):
    """Two tokens of a window may meet where the rolled map did not wrap between them."""
    penalty = shift_penalty(height, width, window, shift, torch.device("cpu"))

    def wrapped(row: int, column: int) -> tuple[bool, bool]:
        return row >= height - shift, column >= width - shift

    for number, window_penalty in enumerate(penalty):
        top, left = divmod(number, width // window)
        cells = [(top * window + i, left * window + j) for i in range(window) for j in range(window)]
        for query, at_query in enumerate(cells):
            for key, at_key in enumerate(cells):
                same = wrapped(*at_query) == wrapped(*at_key)
                assert window_penalty[query, key] == (0.0 if same else -100.0)


def slow_attention(layer: WindowAttention, windows: Tensor, penalty: Tensor) -> Tensor:
    """One window, one head, one query at a time."""
    result = torch.zeros_like(windows)
    width = windows.shape[-1] // layer.heads
    for image in range(windows.shape[0]):
        for number in range(windows.shape[1]):
            query, key, value = layer.query_key_value(windows[image, number]).chunk(3, dim=1)
            for head in range(layer.heads):
                part = slice(head * width, (head + 1) * width)
                logits = query[:, part] @ key[:, part].T * width**-0.5
                logits = logits + layer.position_bias[layer.relative_positions, head]
                logits = logits + penalty[number % len(penalty)]
                result[image, number, :, part] = logits.softmax(1) @ value[:, part]
    return layer.projection(result)


@pytest.mark.parametrize("shared", [True, False])
@torch.no_grad()
def test_attention_equals_the_slow_one(shared):
    torch.manual_seed(0)
    layer = WindowAttention(channels=15, heads=3, window=3)
    layer.position_bias.normal_()
    windows = torch.randn(2, 6, 9, 15)
    penalty = torch.zeros(1, 9, 9) if shared else shift_penalty(6, 9, 3, 1, torch.device("cpu"))
    expected = slow_attention(layer, windows, penalty)
    torch.testing.assert_close(layer(windows, penalty), expected, atol=1e-5, rtol=1e-5)


def test_merging_takes_the_neighbours_column_by_column():
    merging = PatchMerging(1)
    merging.norm = torch.nn.Identity()
    merging.reduction = torch.nn.Identity()
    features = torch.arange(1.0, 7.0).view(1, 2, 3, 1)  # 1 2 3 / 4 5 6, padded to four columns
    assert merging(features)[0, 0].tolist() == [[1, 4, 2, 5], [3, 6, 0, 0]]


def test_mixed_precision_stays_close():
    network = small().eval()
    pixels = torch.randn(1, 3, 41, 59)
    with torch.no_grad():
        exact = network(pixels)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = network(pixels)
    for stride, features in exact.items():
        assert (mixed[stride].float() - features).abs().max() < 0.15


def test_state_dict_holds_learned_numbers_only():
    names = set(small().state_dict())
    assert names == {name for name, _ in small().named_parameters()}
    assert "stages.0.blocks.1.attention.position_bias" in names
