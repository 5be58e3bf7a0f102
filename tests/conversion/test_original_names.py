"""The rules for the original's names against its numbers: equal shapes alone would not show a swap."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from unimask.config.models import PixelDecoderConfig, QueryDecoderConfig
from unimask.conversion import original
from unimask.conversion.checkpoint_format import relative_position_index
from unimask.conversion.rules import to_ours
from unimask.models.build import VISIBILITY, build_pixel_decoder, build_query_decoder
from unimask.models.mask_classifier import MaskClassifier
from unimask.nn.swin import Swin


class Stored(nn.Module):
    """A backbone that gives stored maps."""

    def __init__(self, maps: dict[int, Tensor]) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, pixels: Tensor) -> dict[int, Tensor]:
        return self.maps


def weights(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "state_dict."
    theirs = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
    renamed = to_ours(theirs, original.MASK2FORMER.rules)
    assert all(key.endswith("relative_position_index") for key in renamed.unknown)
    return renamed.tensors


def maps(stored: dict[str, Tensor], prefix: str) -> dict[int, Tensor]:
    return {2**index: stored[f"{prefix}.res{index}"] for index in range(2, 6)}


def test_head(golden: Path) -> None:
    stored = load_file(golden / "mask2former_head_small.safetensors")
    features = maps(stored, "input")
    pixel = PixelDecoderConfig(channels=64, mask_channels=64, layers=3, feedforward_channels=128)
    query = QueryDecoderConfig(queries=20, channels=64, layers=4, feedforward_channels=128)
    model = MaskClassifier(
        Stored(features),
        build_pixel_decoder(pixel, {stride: values.shape[1] for stride, values in features.items()}),
        build_query_decoder(query, {32: 64, 16: 64, 8: 64}, 64, 11),
        VISIBILITY["masked"],
    )
    model.load_state_dict(weights(stored))
    with torch.inference_mode():
        prediction = model.eval()(torch.zeros(2, 3, 149, 203))
    for index in range(5):
        torch.testing.assert_close(
            prediction.class_logits[index], stored[f"pred.{index}.class_logits"], atol=1e-4, rtol=0
        )
        torch.testing.assert_close(
            prediction.mask_logits(index), stored[f"pred.{index}.mask_logits"], atol=1e-4, rtol=0
        )


@pytest.mark.parametrize(
    ("name", "channels", "depths", "heads", "window"),
    [
        ("swin_tiny_small", 24, (2, 2, 2, 2), (2, 2, 4, 4), 7),
        ("swin_window4_small", 8, (2, 1, 3, 1), (1, 2, 4, 2), 4),
    ],
)
def test_swin(
    golden: Path, name: str, channels: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int
) -> None:
    stored = load_file(golden / f"{name}.safetensors")
    swin = Swin(embed_channels=channels, depths=depths, heads=heads, window=window, drop_path_rate=0.0)
    swin.load_state_dict({key.removeprefix("backbone."): value for key, value in weights(stored).items()})
    with torch.inference_mode():
        found = swin.eval()(stored["input.image"])
    for stride, expected in maps(stored, "output").items():
        torch.testing.assert_close(found[stride], expected, atol=2e-5, rtol=0)
    for key, tensor in stored.items():
        if key.endswith("relative_position_index"):
            assert torch.equal(relative_position_index((2 * window - 1) ** 2), tensor)
