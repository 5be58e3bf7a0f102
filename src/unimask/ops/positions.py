"""Position encodings of the cells of a map and of the tokens of a sequence."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def sine_positions(
    height: int,
    width: int,
    channels: int,
    *,
    temperature: float = 10_000.0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "height width channels"]:
    """Return the sine encoding of the position of each cell of a map.

    The first half of the channels encodes the row, the second half the column. Rows and columns are counted
    from 1 and divided by the last one, so every map spans (0, 2 pi], whatever its size. Even channels hold
    sines, odd channels cosines, from high to low frequency.

    Raises:
        ValueError: `channels` is not a multiple of 4.

    Source: DETR, Sec. A.3 (normalised as in its code); Attention Is All You Need, Sec. 3.5.
    """
    half = _half(channels)
    rows = _waves(_angles(height, device, dtype), half, temperature)[:, None].expand(height, width, half)
    columns = _waves(_angles(width, device, dtype), half, temperature)[None].expand(height, width, half)
    return torch.cat((rows, columns), dim=-1)


def padded_sine_positions(
    valid: Bool[Tensor, "batch height width"],
    channels: int,
    *,
    temperature: float = 10_000.0,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "batch height width channels"]:
    """Return `sine_positions` of maps with padding: rows and columns count valid cells only.

    The valid part spans (0, 2 pi]; where all cells are valid, the result equals `sine_positions`. Values at
    cells that are not valid are undefined.

    Raises:
        ValueError: `channels` is not a multiple of 4.

    Source: DETR, as in its code.
    """
    half = _half(channels)
    rows, columns = valid.cumsum(1, dtype=dtype), valid.cumsum(2, dtype=dtype)
    y = rows / (rows[:, -1:] + _NOT_ZERO) * (2 * math.pi)
    x = columns / (columns[:, :, -1:] + _NOT_ZERO) * (2 * math.pi)
    return torch.cat((_waves(y, half, temperature), _waves(x, half, temperature)), dim=-1)


_NOT_ZERO = 1e-6


def _half(channels: int) -> int:
    if channels % 4:
        raise ValueError(f"sine positions need a multiple of 4 channels, not {channels}")
    return channels // 2


def _angles(length: int, device: torch.device | str, dtype: torch.dtype) -> Float[Tensor, " length"]:
    steps = torch.arange(1, length + 1, device=device, dtype=dtype)
    return steps * (2 * math.pi / (length + _NOT_ZERO))


def _waves(
    angles: Float[Tensor, "*cells"], channels: int, temperature: float
) -> Float[Tensor, "*cells {channels}"]:
    """Return sines in even channels and cosines in odd channels, from high to low frequency."""
    exponents = torch.arange(0, channels, 2, device=angles.device, dtype=angles.dtype) / channels
    waves = angles[..., None] * temperature**-exponents
    return torch.stack((waves.sin(), waves.cos()), dim=-1).flatten(-2)


def sequence_positions(
    first: int,
    count: int,
    channels: int,
    *,
    halves: bool = False,
    temperature: float = 10_000.0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "count channels"]:
    """Return the sine encoding of the positions `first`, `first` + 1, ... of a sequence, of any length.

    Wavelengths grow geometrically from 2 pi to `temperature` x 2 pi. Even channels hold sines and odd
    channels cosines, as in the paper; with `halves` all sines come first and then all cosines, as in Marian.

    Raises:
        ValueError: `channels` is odd.

    Source: Attention Is All You Need, Sec. 3.5.
    """
    if channels % 2:
        raise ValueError(f"positions of a sequence need an even number of channels, not {channels}")
    exponents = torch.arange(0, channels, 2, device=device, dtype=torch.float64) / channels
    places = torch.arange(first, first + count, device=device, dtype=torch.float64)
    angles = places[:, None] * temperature**-exponents
    waves = torch.stack((angles.sin(), angles.cos()), dim=1 if halves else 2)
    return waves.flatten(1).to(dtype)


def fourier_positions(
    height: int, width: int, octaves: int, *, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "{4*octaves} height width"]:
    """Return Fourier features of the cells of a map: all sines along x, along y, then all cosines.

    The map spans half a period of the first octave, one period of the second, two of the third, and so on.

    Source: NeRF (2003.08934), Sec. 5.1, Eq. 4; here the map spans [0, 1].
    """
    frequencies = math.pi * 2.0 ** torch.arange(octaves, device=device, dtype=dtype)
    x, y = cell_centers(height, width, device=device, dtype=dtype).unflatten(0, (height, width)).unbind(-1)
    angles = torch.stack((x, y))[:, None] * frequencies[None, :, None, None]
    return torch.cat((angles.sin(), angles.cos())).flatten(0, 1)


def cell_centers(
    height: int, width: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Float[Tensor, "cells 2"]:
    """Return the centre (x, y) of each cell of a map, row by row; the map spans [0, 1] in both directions."""
    y = (torch.arange(height, device=device, dtype=dtype) + 0.5) / height
    x = (torch.arange(width, device=device, dtype=dtype) + 0.5) / width
    return torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=-1).flatten(0, 1)
