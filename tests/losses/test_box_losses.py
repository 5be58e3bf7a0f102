import pytest
import torch

from unimask.config.training import LossConfig
from unimask.errors import ConfigError
from unimask.losses.build import build_criterion
from unimask.losses.terms import BoxOverlapTerm, BoxTerm
from unimask.structures import BoxPrediction, BoxTargets

CLASSES = 5


def boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 4, generator=generator) * 0.4 + 0.1


def random_prediction(layers: int = 2, batch: int = 3, queries: int = 7) -> BoxPrediction:
    generator = torch.Generator().manual_seed(3)
    return BoxPrediction(
        class_logits=torch.randn(layers, batch, queries, CLASSES + 1, generator=generator).requires_grad_(),
        boxes=boxes(layers * batch * queries, 4).view(layers, batch, queries, 4).requires_grad_(),
    )


def targets(*counts: int) -> tuple[BoxTargets, ...]:
    return tuple(
        BoxTargets(boxes=boxes(count, 10 + index), labels=torch.arange(count) % CLASSES)
        for index, count in enumerate(counts)
    )


def uniform(shape: tuple[int, ...]) -> torch.Tensor:
    raise AssertionError("nothing is random here")


@pytest.mark.parametrize("term", [BoxTerm(weight=5.0), BoxOverlapTerm(weight=2.0)])
def test_the_loss_of_a_pair_is_its_cost(term: BoxTerm | BoxOverlapTerm) -> None:
    said, wanted = boxes(6, 0), boxes(6, 1)
    constant = 6.0 if isinstance(term, BoxOverlapTerm) else 0.0  # 1 of each pair, left out of the cost
    expected = (term.cost(said, wanted).diagonal().sum() + constant) / 4
    torch.testing.assert_close(term.loss(said, wanted, torch.tensor(4.0)), expected)
    assert term.cost(said, boxes(0, 2)).shape == (6, 0)


def test_perfect_boxes_cost_nothing() -> None:
    wanted = targets(3)
    logits = torch.full((1, 1, 3, CLASSES + 1), -20.0)
    logits[0, 0, [0, 1, 2], [0, 1, 2]] = 20.0
    prediction = BoxPrediction(class_logits=logits, boxes=wanted[0].boxes[None, None])
    losses = build_criterion(LossConfig(class_weight=1.0), CLASSES, kind="boxes")(prediction, wanted, uniform)
    assert losses.total.item() == pytest.approx(0.0, abs=1e-5)
    assert losses.weights == {"class": 1.0, "box": 5.0, "overlap": 2.0}


def test_without_targets_boxes_have_a_gradient_of_zero() -> None:
    prediction = random_prediction()
    losses = build_criterion(LossConfig(), CLASSES, kind="boxes")(prediction, targets(0, 0, 0), uniform)
    losses.total.backward()
    assert losses.terms["box"].tolist() == losses.terms["overlap"].tolist() == [0.0, 0.0]
    assert prediction.boxes.grad is not None
    assert not prediction.boxes.grad.any()
    assert prediction.class_logits.grad is not None
    assert prediction.class_logits.grad.any()


def test_box_terms_are_divided_by_the_mean_number_of_targets() -> None:
    prediction, wanted = random_prediction(), targets(2, 0, 4)
    alone = build_criterion(LossConfig(), CLASSES, kind="boxes")(prediction, wanted, uniform)
    shared = build_criterion(LossConfig(), CLASSES, average=lambda count: count / 2, kind="boxes")(
        prediction, wanted, uniform
    )
    for name in ("box", "overlap"):
        torch.testing.assert_close(shared.terms[name], 2 * alone.terms[name])
    assert torch.equal(shared.terms["class"], alone.terms["class"])
    last = build_criterion(LossConfig(deep_supervision=False), CLASSES, kind="boxes")(
        prediction, wanted, uniform
    )
    assert torch.equal(last.terms["box"], alone.terms["box"][-1:])


@pytest.mark.parametrize("name", ["box_weight", "overlap_weight"])
def test_weights_are_not_negative(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        build_criterion(LossConfig(**{name: -1.0}), CLASSES, kind="boxes")


def test_costs_of_a_picture_do_not_depend_on_the_others() -> None:
    comparison = build_criterion(LossConfig(), CLASSES, kind="boxes").comparison
    prediction, wanted = random_prediction(), targets(3, 0, 2)
    together = comparison(prediction, wanted, uniform).costs(1)
    for image, cost in enumerate(together):
        one = BoxPrediction(
            class_logits=prediction.class_logits[:, image : image + 1],
            boxes=prediction.boxes[:, image : image + 1],
        )
        alone = comparison(one, wanted[image : image + 1], uniform).costs(1)
        torch.testing.assert_close(cost, alone[0])
        assert cost.shape == (7, len(wanted[image]))
