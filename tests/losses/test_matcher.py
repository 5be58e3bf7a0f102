import pytest
import torch
from losses.loss_inputs import (
    CLASSES,
    Generator,
    costs_of,
    matches_of,
    random_prediction,
    random_targets,
)
from torch.nn import functional

from unimask.config.training import LossConfig
from unimask.losses.build import build_criterion
from unimask.losses.criterion import Criterion
from unimask.losses.matcher import match
from unimask.losses.sampling import EveryCell
from unimask.structures import MaskPrediction

SIZE, CANVAS = (11, 13), (44, 52)


def criterion_with(points: int = 101) -> Criterion:
    return build_criterion(LossConfig(points=points), CLASSES)


def test_costs_are_the_weighted_sum_on_the_drawn_points() -> None:
    prediction, targets = random_prediction(1, 2, 6, SIZE), random_targets((3, 4), CANVAS)
    costs = costs_of(criterion_with(), prediction, 0, targets, Generator(3))
    uniform, logits = Generator(3), prediction.mask_logits(0)
    for image, target in enumerate(targets):
        grid = 2 * uniform((1, 101, 2))[:, None] - 1
        x = functional.grid_sample(logits[image][None], grid, align_corners=False)[0, :, 0]
        y = functional.grid_sample(target.masks()[None].float(), grid, align_corners=False)[0, :, 0]
        probabilities = prediction.class_logits[0, image].softmax(-1)
        for query in range(6):
            for index in range(len(target)):
                mask = functional.binary_cross_entropy_with_logits(x[query], y[index])
                p = x[query].sigmoid()
                dice = 1 - (2 * (p * y[index]).sum() + 1) / (p.sum() + y[index].sum() + 1)
                expected = -2 * probabilities[query, target.labels[index]] + 5 * mask + 5 * dice
                torch.testing.assert_close(costs[image][query, index], expected)


def test_perfect_queries_are_matched_to_their_targets() -> None:
    (target,) = random_targets((5,), CANVAS, seed=4)
    coarse = functional.interpolate(target.masks()[None].float(), SIZE, mode="area")[0]
    order = torch.tensor([3, 0, 4, 1, 2])
    embeddings = torch.zeros(1, 9, 5)
    embeddings[0, 2:7] = torch.eye(5)[order] * 20
    prediction = MaskPrediction(
        class_logits=torch.zeros(1, 1, 9, CLASSES + 1),
        mask_embeddings=embeddings[None],
        mask_features=coarse[None, None] - 0.5,
    )
    matches = matches_of(criterion_with(499), prediction, 0, (target,), Generator(0))
    assert matches.query.tolist() == [2, 3, 4, 5, 6]
    assert matches.target.tolist() == order.tolist()


def test_pairs_are_ordered_by_image_and_as_many_as_fit() -> None:
    targets = random_targets((3, 0, 9, 6), CANVAS)
    matches = matches_of(criterion_with(), random_prediction(1, 4, 6, SIZE), 0, targets, Generator(1))
    assert matches.image.tolist() == [0] * 3 + [2] * 6 + [3] * 6
    for image, target in enumerate(targets):
        here = matches.image == image
        assert matches.query[here].tolist() == sorted(set(matches.query[here].tolist()))
        assert len(set(matches.target[here].tolist())) == min(6, len(target))


def test_points_are_drawn_for_images_without_targets_too() -> None:
    shapes = []

    def uniform(shape: tuple[int, ...]) -> torch.Tensor:
        shapes.append(shape)
        return torch.rand(shape)

    matches_of(
        criterion_with(17), random_prediction(1, 3, 6, SIZE), 0, random_targets((0, 2, 0), CANVAS), uniform
    )
    assert shapes == [(1, 17, 2)] * 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_diverged_prediction_is_still_matched(bad: float) -> None:
    prediction, targets = random_prediction(1, 2, 6, SIZE), random_targets((3, 4), CANVAS)
    with torch.no_grad():
        prediction.mask_features[0, 0] = bad
        prediction.class_logits[:, 1, 2] = bad
    matches = matches_of(criterion_with(), prediction, 0, targets, Generator(1))
    assert len(matches.image) == 7
    assert 2 not in matches.query[matches.image == 1]


def test_matching_every_cell_draws_nothing() -> None:
    criterion = build_criterion(LossConfig(sampling="dense"), CLASSES)
    assert criterion.comparison.sampling == EveryCell()

    def uniform(shape: tuple[int, ...]) -> torch.Tensor:
        raise AssertionError("nothing is random here")

    matches = matches_of(
        criterion, random_prediction(1, 1, 6, SIZE), 0, random_targets((3,), CANVAS), uniform
    )
    assert len(matches.image) == 3


def test_matches_of_costs_without_targets() -> None:
    matches = match([torch.zeros(5, 0), torch.zeros(5, 0)])
    assert len(matches.image) == len(matches.query) == len(matches.target) == 0
    assert matches.query.dtype == torch.int64
