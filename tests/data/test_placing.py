"""Images are resized to the bits of torchvision's resize, however their channels lie."""

import pytest
import torch
from torchvision.transforms.v2 import functional

from unimask.data import placing
from unimask.data.placing import resize_image


@pytest.mark.parametrize("has_bytes", [placing._HAS_BYTES, False])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("size", "new"),
    [((60, 80), (90, 120)), ((60, 80), (20, 27)), ((9, 1), (5, 2)), ((1, 1), (7, 3)), ((5, 7), (5, 2))],
)
def test_bits_are_those_of_torchvision(
    size: tuple[int, int],
    new: tuple[int, int],
    channels_last: bool,
    has_bytes: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(placing, "_HAS_BYTES", has_bytes)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    if channels_last:
        image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    if has_bytes:
        expected = functional.resize_image(image, list(new), antialias=True)
    else:
        expected = functional.resize_image(image.float(), list(new), antialias=True).round().to(torch.uint8)
    resized = resize_image(image, new)
    assert torch.equal(resized, expected)
    assert resized.dtype == torch.uint8


def test_one_column_is_near_that_of_floats() -> None:
    image = torch.randint(0, 256, (3, 40, 30), dtype=torch.uint8)
    mean = image.float().mean((1, 2))
    assert (resize_image(image, (1, 1)).float().flatten() - mean).abs().max() < 12
