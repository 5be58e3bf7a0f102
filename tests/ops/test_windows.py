import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unimask.ops.windows import restoration
from unimask.structures import Placement

PLACEMENTS = [
    Placement(original=(53, 71), resized=(53, 71), canvas=(64, 96)),  # padding only
    Placement(original=(97, 131), resized=(59, 83), canvas=(64, 96)),  # enlarged
    Placement(original=(31, 23), resized=(61, 47), canvas=(64, 64)),  # made smaller
    Placement(original=(1, 1), resized=(29, 29), canvas=(32, 32)),
    Placement(original=(307, 3), resized=(128, 1), canvas=(128, 32)),
]


@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda placement: str(placement.original))
@pytest.mark.parametrize("side", [7, 1000])
def test_windows_together_are_the_restored_maps(placement: Placement, side: int):
    size = placement.canvas[0] // 4, placement.canvas[1] // 4
    maps = torch.randn(3, *size, generator=torch.Generator().manual_seed(3)) * 5
    windows = restoration(placement, size)
    assert windows.size == placement.original
    result = torch.full((3, *placement.original), float("nan"))
    for rows, columns in windows.tiles(side):
        cells = windows.source(rows, columns)
        result[:, rows, columns] = windows.resize(maps[:, *cells], rows, columns)
    torch.testing.assert_close(result, placement.restore(maps), atol=2e-5, rtol=0)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 64),
    st.integers(1, 64),
    st.integers(0, 2**16),
)
def test_outside_of_the_reach_of_cells_they_have_no_weight(
    height: int, width: int, resized_height: int, resized_width: int, seed: int
):
    placement = Placement.fit((height, width), (resized_height, resized_width), 32)
    size = placement.canvas[0] // 4, placement.canvas[1] // 4
    generator = torch.Generator().manual_seed(seed)
    low = [int(torch.randint(0, side, (), generator=generator)) for side in size]
    high = [
        int(torch.randint(start + 1, side + 1, (), generator=generator)) for start, side in zip(low, size)
    ]
    maps = torch.zeros(1, *size)
    maps[:, low[0] : high[0], low[1] : high[1]] = 1
    rows, columns = restoration(placement, size).reach(slice(low[0], high[0]), slice(low[1], high[1]))
    restored = placement.restore(maps)[0]
    inside = torch.zeros_like(restored, dtype=torch.bool)
    inside[rows, columns] = True
    assert (restored[~inside] == 0).all()
