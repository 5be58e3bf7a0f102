"""Where a token or a cell is, as a vector."""

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
    """Return a vector for each cell of a map: the first half of the channels encodes the row, the second the
    column.

    Rows and columns count from 1 and are divided by the last one, so every map spans (0, 2 pi], whatever its
    size. Even channels hold sines, odd ones cosines, in falling frequency.

    Raises:
        ValueError: `channels` is no multiple of 4.

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
    """`sine_positions` where part of each map is padding: rows and columns count valid cells only.

    The valid part spans (0, 2 pi]; where all is valid, every image has the positions of `sine_positions`.
    What stands at padding means nothing.

    Raises:
        ValueError: `channels` is no multiple of 4.

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
    """Sines in even channels, cosines in odd ones, in falling frequency."""
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
    """Return a vector for each place `first`, `first` + 1, ... of a sequence, which may be of any length.

    Wavelengths run geometrically from 2 pi to `temperature` x 2 pi. Even channels hold sines, odd ones
    cosines, as in the paper; with `halves` all sines come first and then all cosines, as in Marian.

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
    """Waves along x and y over a map: half a period, then one, two, four ... across it; sine and cosine.

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
