import pytest
import torch

from unimask.config.overrides import override
from unimask.models.build import build_model
from unimask.presets.own_data import tiny
from unimask.results.attention_drawing import CELL, GAP, MARGIN, draw_attention, draw_attention_masks


def test_maps_are_drawn() -> None:
    shares = torch.zeros(2, 3, 5)
    shares[0, 1, 4] = 1.0
    sheet = draw_attention(shares, ["a", "b", "c"], ["v", "w", "x", "y", "z"])
    assert sheet.size == (MARGIN + 2 * (5 * CELL + GAP), MARGIN + 3 * CELL + GAP)
    assert sheet.getpixel((MARGIN + 4 * CELL + 3, MARGIN + CELL + 3)) == (12, 70, 140)
    assert sheet.getpixel((MARGIN + 3 * CELL + 3, MARGIN + CELL + 3)) == (255, 255, 255)
    above = [sheet.crop((MARGIN + i * CELL, 0, MARGIN + (i + 1) * CELL, MARGIN)) for i in range(5)]
    assert all(min(one.convert("L").getextrema()) < 128 for one in above)  # each word stands in its column
    with pytest.raises(ValueError, match="words for a map"):
        draw_attention(shares, ["a"], ["v"])


def test_the_masks_of_a_mask_model_are_drawn() -> None:
    experiment = override(tiny(), {"model.query_decoder.queries": 5})
    torch.manual_seed(3)
    model = build_model(experiment.model, 4).eval()
    masks = model.attention_masks(torch.randn(2, 3, 64, 96))
    assert len(masks) == experiment.model.query_decoder.layers
    sizes = [(64 // s, 96 // s) for s in experiment.model.query_decoder.memory_strides]
    for index, mask in enumerate(masks):
        assert mask.shape == (2, 5, *sizes[index % len(sizes)])
        assert bool(mask.flatten(2).any(2).all())
    everything = build_model(override(experiment, {"model.query_decoder.visibility": "full"}).model, 4).eval()
    assert all(bool(mask.all()) for mask in everything.attention_masks(torch.randn(1, 3, 64, 96)))
    image = torch.full((3, 37, 53), 200, dtype=torch.uint8)
    sheet = draw_attention_masks(image, torch.tensor([[[True, False]]] * 3), columns=2)
    assert sheet.size == (2 * 53 + GAP, 2 * 37 + GAP)
    assert sheet.getpixel((1, 1)) == (200, 200, 200)
    assert sheet.getpixel((52, 1)) == (40, 40, 40)
