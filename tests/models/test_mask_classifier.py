import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from unimask.config.models import PixelDecoderConfig, QueryDecoderConfig
from unimask.models.build import VISIBILITY, build_pixel_decoder, build_query_decoder
from unimask.models.mask_classifier import MaskClassifier

CHANNELS = {4: 8, 8: 8, 16: 16, 32: 16}


class Strided(nn.Module):
    """A backbone without weights worth mentioning: pooled pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({str(s): nn.Conv2d(3, c, 1) for s, c in CHANNELS.items()})

    def forward(self, pixels: Tensor) -> dict[int, Tensor]:
        pool = nn.functional.avg_pool2d
        return {s: self.layers[str(s)](pool(pixels, s, ceil_mode=True)) for s in CHANNELS}


def model(queries: int = 7, visibility: str = "masked") -> MaskClassifier:
    torch.manual_seed(6)
    pixel = PixelDecoderConfig(channels=32, mask_channels=16, layers=1, feedforward_channels=32)
    query = QueryDecoderConfig(queries=queries, channels=32, layers=3, feedforward_channels=32)
    return MaskClassifier(
        Strided(),
        build_pixel_decoder(pixel, CHANNELS),
        build_query_decoder(query, {32: 32, 16: 32, 8: 32}, 16, num_classes=5),
        VISIBILITY[visibility],
    )


class Largest(TorchDispatchMode):
    """Remembers the shape of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.shape: tuple[int, ...] = ()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor) and value.numel() > torch.Size(self.shape).numel() * bool(
                self.shape
            ):
                self.shape = tuple(value.shape)
        return result


@pytest.mark.parametrize("size", [(96, 160), (61, 131), (33, 1), (1, 1), (32, 500)])
def test_pictures_of_any_size(size: tuple[int, int]) -> None:
    prediction = model()(torch.randn(2, 3, *size))
    assert prediction.class_logits.shape == (4, 2, 7, 6)
    assert prediction.mask_embeddings.shape == (4, 2, 7, 16)
    assert prediction.mask_features.shape == (1, 2, 16, -(-size[0] // 4), -(-size[1] // 4))
    assert prediction.mask_logits().isfinite().all()
    assert prediction.class_logits.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_no_full_size_masks_are_made(training: bool) -> None:
    """Nothing as large as masks of all queries at stride 4, forward or backward."""
    queries, height, width = 211, 96, 160
    classifier = model(queries).train(training)
    pixels = torch.randn(2, 3, height, width)
    with Largest() as largest:
        prediction = classifier(pixels)
        (prediction.class_logits.square().sum() + prediction.mask_features.square().sum()).backward()
    assert torch.Size(largest.shape).numel() < 2 * queries * (height // 4) * (width // 4), largest.shape


@pytest.mark.parametrize("visibility", ["masked", "full"])
def test_bfloat16_autocast(visibility: str) -> None:
    classifier, pixels = model(visibility=visibility), torch.randn(2, 3, 61, 131)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = classifier(pixels)
    (
        prediction.class_logits.float().square().sum() + prediction.mask_logits().float().square().sum()
    ).backward()
    for name, parameter in classifier.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    if visibility == "full":  # masked attention may flip a cell, and is no continuous function
        exact = classifier(pixels)
        torch.testing.assert_close(prediction.class_logits.float(), exact.class_logits, atol=0.1, rtol=0.1)


def test_a_model_can_be_copied_and_pickled() -> None:
    classifier, pixels = model().eval(), torch.randn(1, 3, 64, 96)
    expected = classifier(pixels).class_logits
    assert torch.equal(copy.deepcopy(classifier)(pixels).class_logits, expected)
    assert torch.equal(pickle.loads(pickle.dumps(classifier))(pixels).class_logits, expected)


def test_double_precision() -> None:
    classifier = model().double()
    assert classifier(torch.randn(1, 3, 64, 96, dtype=torch.float64)).mask_logits().dtype == torch.float64
