"""Random EoMT models of transformers and ours of the same weights give equal logits in every prediction."""

import pytest
import torch
from parity.eomt_models import CLASSES, SIZE, Kind, our_config, our_names, their_model
from torch import Tensor, nn

from unimask.models.build import build_eomt
from unimask.models.eomt import AnnealedAttention, Eomt


def pair(kind: Kind, attention: str, probability: float, queries: int = 11) -> tuple[nn.Module, Eomt]:
    theirs = their_model(kind, 5, probability, queries)
    ours = build_eomt(our_config(kind, attention, queries), CLASSES)
    ours.load_state_dict(our_names(theirs.state_dict(), kind))
    return theirs, ours.eval()


def their_predictions(model: nn.Module, pixels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Class and mask logits of every prediction, which only the final one is returned of."""
    found: list[tuple[Tensor, Tensor]] = []
    predict = model.predict

    def keeping(tokens: Tensor) -> tuple[Tensor, Tensor]:
        masks, classes = predict(tokens)
        found.append((classes, masks))
        return masks, classes

    model.predict = keeping
    with torch.inference_mode():
        model(pixel_values=pixels)
    return found


@pytest.mark.parametrize("kind", ["dinov2", "dinov3"])
@pytest.mark.parametrize(
    ("attention", "probability", "predictions"), [("masked", 1.0, 4), ("open", 0.0, 1), ("annealed", 0.0, 1)]
)
@pytest.mark.parametrize("queries", [11, 61], ids=["product as features", "features"])
def test_every_prediction_is_theirs(
    kind: Kind, attention: str, probability: float, predictions: int, queries: int
) -> None:
    theirs, ours = pair(kind, attention, probability, queries)
    pixels = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    expected = their_predictions(theirs, pixels)
    with torch.inference_mode():
        found = ours(pixels)
    assert len(expected) == len(found.class_logits) == predictions
    for index, (classes, masks) in enumerate(expected):
        torch.testing.assert_close(found.class_logits[index], classes, atol=1e-4, rtol=0)
        torch.testing.assert_close(found.mask_logits(index), masks, atol=1e-4, rtol=0)
        assert masks.std() > 0.1
        assert 0.02 < (masks > 0).float().mean() < 0.98


@pytest.mark.parametrize("kind", ["dinov2", "dinov3"])
def test_the_attention_rules_differ(kind: Kind) -> None:
    """At chances of 1 and 0 annealing is masked and open attention; between them it is neither."""
    _, ours = pair(kind, "masked", 1.0)
    pixels = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(4))

    def uniform(shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=torch.Generator().manual_seed(6))

    def annealed(chance: float) -> Tensor:
        rule = AnnealedAttention(chances=(chance,) * 3, uniform=uniform)
        prediction = ours.predict(pixels, rule)
        assert len(prediction.class_logits) == 4
        return prediction.mask_logits()

    open_model = build_eomt(our_config(kind, "open"), CLASSES)
    open_model.load_state_dict(ours.state_dict())
    with torch.inference_mode():
        masked, opened = ours(pixels).mask_logits(), open_model.eval()(pixels).mask_logits()
        torch.testing.assert_close(annealed(1.0), masked, atol=1e-5, rtol=0)
        torch.testing.assert_close(annealed(0.0), opened, atol=1e-4, rtol=0)
        between = annealed(0.5)
    assert (masked - opened).abs().max() > 1e-2
    assert (between - masked).abs().max() > 1e-3
    assert (between - opened).abs().max() > 1e-3


def test_rotary_positions_take_other_sizes_and_learned_ones_do_not() -> None:
    _, ours = pair("dinov3", "masked", 1.0)
    with torch.inference_mode():
        assert ours(torch.zeros(1, 3, 64, 112)).mask_logits().shape == (1, 11, 16, 28)
    _, ours = pair("dinov2", "masked", 1.0)
    with pytest.raises(ValueError, match="positions were learned"):
        ours(torch.zeros(1, 3, 64, 112))
