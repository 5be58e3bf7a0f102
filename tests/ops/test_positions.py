import math

import pytest
import torch

from unimask.ops.positions import (
    cell_centers,
    fourier_positions,
    padded_sine_positions,
    sine_positions,
)


def test_sine_positions_follow_the_formula() -> None:
    height, width, channels = 5, 7, 12
    positions = sine_positions(height, width, channels)
    assert positions.shape == (height, width, channels)
    half = channels // 2
    for row in range(height):
        for column in range(width):
            for place, length, first in ((row, height, 0), (column, width, half)):
                angle = (place + 1) / (length + 1e-6) * 2 * math.pi
                for channel in range(half):
                    scaled = angle / 10_000 ** (2 * (channel // 2) / half)
                    expected = math.cos(scaled) if channel % 2 else math.sin(scaled)
                    assert positions[row, column, first + channel].item() == pytest.approx(expected, abs=1e-5)


def test_sine_positions_of_one_cell_and_of_other_types() -> None:
    assert sine_positions(1, 1, 4).shape == (1, 1, 4)
    double = sine_positions(3, 11, 8, dtype=torch.float64)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), sine_positions(3, 11, 8))


@pytest.mark.parametrize("channels", [1, 2, 6, 31])
def test_sine_positions_need_a_multiple_of_four(channels: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of 4 channels, not {channels}"):
        sine_positions(2, 3, channels)


def test_cell_centers_run_row_by_row() -> None:
    centers = cell_centers(2, 5)
    assert centers.shape == (10, 2)
    torch.testing.assert_close(centers[0], torch.tensor([0.1, 0.25]))
    torch.testing.assert_close(centers[4], torch.tensor([0.9, 0.25]))
    torch.testing.assert_close(centers[5], torch.tensor([0.1, 0.75]))


def test_fourier_positions_follow_the_formula() -> None:
    positions = fourier_positions(3, 5, 2, device="cpu", dtype=torch.float64)
    assert positions.shape == (8, 3, 5)
    x, y = 3.5 / 5, 1.5 / 3
    angles = [math.pi * x, 2 * math.pi * x, math.pi * y, 2 * math.pi * y]
    expected = [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    assert positions[:, 1, 3].tolist() == pytest.approx(expected)


def test_padded_positions_count_valid_cells() -> None:
    valid = torch.zeros(2, 5, 7, dtype=torch.bool)
    valid[0], valid[1, :3, :4] = True, True
    found = padded_sine_positions(valid, 12)
    torch.testing.assert_close(found[0], sine_positions(5, 7, 12))
    torch.testing.assert_close(found[1, :3, :4], sine_positions(3, 4, 12))
    with pytest.raises(ValueError, match="multiple of 4"):
        padded_sine_positions(valid, 6)
