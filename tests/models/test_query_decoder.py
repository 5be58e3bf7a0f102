import pytest
import torch
from torch import Tensor
from torch.nn import functional

from unimask.config.models import QueryDecoderConfig
from unimask.models.build import build_query_decoder
from unimask.models.query_decoder import (
    QueryDecoder,
    attend_everywhere,
    foreground,
    full_visibility,
    masked_visibility,
)

SIZES = {32: (2, 3), 16: (3, 5), 8: (5, 9)}
MEMORY = {32: 32, 16: 32, 8: 32}  # stride -> channels


def decoder(**settings: object) -> QueryDecoder:
    torch.manual_seed(4)
    defaults = {"queries": 7, "channels": 32, "feedforward_channels": 17, "layers": 4}
    return build_query_decoder(QueryDecoderConfig(**(defaults | settings)), MEMORY, 13, num_classes=5)


def memory(batch: int = 2) -> dict[int, Tensor]:
    return {stride: torch.randn(batch, 32, *size) for stride, size in SIZES.items()}


def test_foreground_is_cut_at_zero_and_an_empty_mask_sees_everything() -> None:
    mask_logits = torch.tensor(
        [[[-1.0, 0.0, 2.0], [-3.0, -0.1, -2.0], [1.0, -1e-30, -1.0]]], requires_grad=True
    )
    visible = foreground(mask_logits)
    assert visible.tolist() == [[[False, True, True], [True, True, True], [True, False, False]]]
    assert not visible.requires_grad


def test_masked_visibility_equals_resizing_every_mask() -> None:
    features, embeddings = torch.randn(2, 13, 11, 17), torch.randn(2, 7, 13)
    look = masked_visibility(features, SIZES)
    full = torch.einsum("bqc,bchw->bqhw", embeddings.double(), features.double())
    for stride, size in SIZES.items():
        resized = functional.interpolate(full, size, mode="bilinear", align_corners=False).flatten(2)
        assert resized.abs().min() > 1e-5  # no cell is a matter of rounding
        expected = (resized >= 0) | (resized < 0).all(-1, keepdim=True)
        assert torch.equal(look(stride, embeddings), expected)


def test_full_visibility_restricts_nothing() -> None:
    assert full_visibility is not masked_visibility
    assert full_visibility(torch.randn(1, 3, 5, 7), SIZES) is attend_everywhere
    assert attend_everywhere(32, torch.randn(1, 7, 13)) is None


@pytest.mark.parametrize(("before", "predictions"), [(True, 5), (False, 4)])
def test_one_prediction_per_layer_and_one_before(before: bool, predictions: int) -> None:
    class_logits, embeddings = decoder(predict_before_layers=before)(memory(), attend_everywhere)
    assert class_logits.shape == (predictions, 2, 7, 6)
    assert embeddings.shape == (predictions, 2, 7, 13)


@pytest.mark.parametrize(("before", "expected"), [(True, [32, 16, 8, 32]), (False, [16, 8, 32])])
def test_the_latest_prediction_guides_the_next_layer(before: bool, expected: list[int]) -> None:
    asked: list[tuple[int, Tensor]] = []

    def look(stride: int, embeddings: Tensor) -> None:
        asked.append((stride, embeddings))

    _, embeddings = decoder(predict_before_layers=before)(memory(), look)
    assert [stride for stride, _ in asked] == expected
    for index, (_, given) in enumerate(asked):
        assert torch.equal(given, embeddings[index])


def test_what_no_query_sees_changes_nothing() -> None:
    maps = memory()

    def look(stride: int, embeddings: Tensor) -> Tensor:
        visible = torch.zeros(2, 7, SIZES[stride][0] * SIZES[stride][1], dtype=torch.bool)
        visible[..., :2] = True
        return visible

    query_decoder = decoder()
    before, _ = query_decoder(maps, look)
    for level in maps.values():
        level.flatten(2)[..., 2:].normal_()
    after, _ = query_decoder(maps, look)
    assert torch.equal(before, after)
    everything, _ = query_decoder(maps, attend_everywhere)
    assert not torch.allclose(before, everything)


def test_zeros_as_query_features_are_not_learned() -> None:
    query_decoder = decoder(query_features="zeros")
    assert "query_features.weight" not in query_decoder.state_dict()
    class_logits, _ = query_decoder(memory(), attend_everywhere)
    torch.testing.assert_close(class_logits[0, :, 1:], class_logits[0, :, :-1])  # all queries say the same
    assert not torch.allclose(class_logits[1, :, 1:], class_logits[1, :, :-1])  # until their positions count


def test_a_width_of_its_own() -> None:
    query_decoder = decoder(channels=64, memory_strides=(16, 8))
    assert set(query_decoder.projections) == {"16", "8"}
    class_logits, _ = query_decoder(memory(), attend_everywhere)
    assert class_logits.isfinite().all()


def test_pictures_of_a_batch_do_not_touch() -> None:
    maps, features = memory(), torch.randn(2, 13, 11, 17)
    query_decoder = decoder().eval()
    together, _ = query_decoder(maps, masked_visibility(features, SIZES))
    alone, _ = query_decoder(
        {s: level[1:] for s, level in maps.items()}, masked_visibility(features[1:], SIZES)
    )
    torch.testing.assert_close(together[:, 1:], alone, atol=1e-5, rtol=1e-5)
