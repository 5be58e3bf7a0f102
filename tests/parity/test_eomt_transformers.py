"""Random EoMT models of transformers and ours of the same weights give equal logits in every prediction."""

from collections.abc import Callable

import pytest
import torch
from parity.eomt_models import CLASSES, SIZE, Kind, our_config, our_names, their_model
from torch import Tensor, nn

from unimask.config.training import LossConfig
from unimask.losses.build import build_criterion
from unimask.models.build_eomt import build_eomt
from unimask.models.eomt import AnnealedAttention, Eomt
from unimask.structures import Segments


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


@pytest.mark.parametrize("kind", ["dinov2", "dinov3"])
def test_the_loss_is_theirs_at_the_same_points(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = pair(kind, "open", 0.0)
    generator = torch.Generator().manual_seed(11)
    pixels = torch.randn(2, 3, SIZE, SIZE, generator=generator)
    drawn: list[Tensor] = []
    layers = torch.zeros(2, 1, SIZE, SIZE, dtype=torch.int16)
    layers[0, 0, 10:40, 5:60], layers[0, 0, 50:, 30:], layers[1, 0, :33, :47] = 1, 2, 1
    labels = [torch.tensor([4, 0]), torch.tensor([2])]
    targets = tuple(
        Segments(
            layers=layer,
            labels=label,
            scores=torch.ones(len(label)),
            is_crowd=torch.zeros(len(label), dtype=torch.bool),
        )
        for layer, label in zip(layers, labels, strict=True)
    )
    with torch.no_grad():
        losses = build_criterion(LossConfig(), CLASSES)(ours(pixels), targets, recording(drawn))
    replayed = iter(drawn)

    def replay(*shape: int, device: object = None) -> Tensor:
        numbers = next(replayed)
        assert numbers.shape == shape
        return numbers

    monkeypatch.setattr(torch, "rand", replay)
    with torch.no_grad():
        found = theirs(
            pixel_values=pixels,
            mask_labels=[target.masks().float() for target in targets],
            class_labels=labels,
        )
    assert next(replayed, None) is None
    torch.testing.assert_close(losses.total, found.loss, atol=1e-4, rtol=1e-5)


def recording(drawn: list[Tensor]) -> Callable[[tuple[int, ...]], Tensor]:
    generator = torch.Generator().manual_seed(12)

    def uniform(shape: tuple[int, ...]) -> Tensor:
        drawn.append(torch.rand(shape, generator=generator))
        return drawn[-1]

    return uniform
