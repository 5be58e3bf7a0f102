"""Costs, matches, losses and gradients of the original Mask2Former matcher and criterion."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from unimask.config.training import LossConfig
from unimask.losses.build import build_criterion
from unimask.losses.matcher import match
from unimask.losses.terms import ClassTerm, DiceTerm, MaskTerm
from unimask.ops.assignment import assign
from unimask.ops.id_maps import pack_masks
from unimask.structures import MaskPrediction, Segments

DENSE = ("several_targets", "one_target", "no_target", "more_targets_than_queries", "fractional_labels")
WHOLE = (
    "two_images",
    "one_image_without_objects",
    "single_image_without_objects",
    "more_targets_than_queries",
)


def read_tensors(folder: Path, prefix: str) -> dict[str, Tensor]:
    with safe_open(folder / "loss_cases.safetensors", framework="pt") as file:
        return {
            name.removeprefix(prefix): file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118 (it is no dict)
            if name.startswith(prefix)
        }


def read_facts(folder: Path, kind: str, name: str) -> dict:
    cases = json.loads((folder / "loss_cases.json").read_text())[f"{kind}_cases"]
    return next(case for case in cases if case["name"] == name)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Equal to 1e-5 relative; entries that nearly cancel, to 1e-6 of the largest."""
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6 * largest)


@pytest.mark.parametrize("name", DENSE)
def test_costs_and_losses_on_given_points(golden: Path, name: str) -> None:
    case, facts = read_tensors(golden, f"dense.{name}."), read_facts(golden, "dense", name)
    logits, labels = case["mask_point_logits"], case["mask_point_targets"]
    class_term = ClassTerm(facts["K"], 0.1, 2.0)
    mask_term, dice_term = MaskTerm(weight=5.0), DiceTerm(weight=5.0)
    costs = {
        "class": class_term.cost(case["class_logits"], case["labels"]),
        "mask": mask_term.cost(logits, labels),
        "dice": dice_term.cost(logits, labels),
    }
    for term, cost in costs.items():
        assert_close(cost, case[f"cost_{term}"])
    total = 2.0 * costs["class"] + 5.0 * costs["mask"] + 5.0 * costs["dice"]
    assert_close(total, case["cost_total"])
    query, target = assign(total)
    assert query.tolist() == case["match_query"].tolist()
    assert target.tolist() == case["match_target"].tolist()
    num_masks = torch.tensor(float(facts["num_masks"]))
    for term in (mask_term, dice_term):
        pair_logits = logits[query].requires_grad_()
        loss = term.loss(pair_logits, labels[target], num_masks)
        assert_close(loss, torch.tensor(facts[f"loss_{term.name}_on_matched_pairs"]))
        if len(query) > 0:
            (gradient,) = torch.autograd.grad(loss, pair_logits)
            assert_close(gradient, case[f"grad_loss_{term.name}"])


class Replay:
    """Gives the recorded draws in their order and insists on their shapes."""

    def __init__(self, draws: list[Tensor]) -> None:
        self.draws = draws

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        draw = self.draws.pop(0)
        assert tuple(draw.shape) == shape
        return draw


def factorise(case: dict[str, Tensor], layers: int) -> MaskPrediction:
    """The mask logits as a product: channels are (layer, query), embeddings a unit matrix."""
    logits = torch.stack([case[f"mask_logits.{layer}"] for layer in range(layers)])
    _, batch, queries = logits.shape[:3]
    unit = torch.eye(layers * queries).unflatten(0, (layers, 1, queries)).expand(-1, batch, -1, -1)
    return MaskPrediction(
        class_logits=torch.stack([case[f"class_logits.{layer}"] for layer in range(layers)]).requires_grad_(),
        mask_embeddings=unit.clone().requires_grad_(),
        mask_features=logits.transpose(0, 1).flatten(1, 2)[None].clone().requires_grad_(),
    )


def read_targets(case: dict[str, Tensor], batch: int) -> tuple[Segments, ...]:
    targets = []
    for image in range(batch):
        labels = case[f"targets.{image}.labels"]
        targets.append(
            Segments(
                layers=pack_masks(case[f"targets.{image}.masks"].bool()),
                labels=labels,
                scores=torch.ones(len(labels)),
                is_crowd=torch.zeros(len(labels), dtype=torch.bool),
            )
        )
    return tuple(targets)


def draws_of(case: dict[str, Tensor]) -> list[Tensor]:
    return [case[name] for name in sorted(name for name in case if name.startswith("draw."))]


def criterion_for(facts: dict):
    config = LossConfig(points=facts["num_points"], oversampling=facts["oversample_ratio"])
    return build_criterion(config, facts["K"])


@pytest.mark.parametrize("name", WHOLE)
def test_whole_criterion(golden: Path, name: str) -> None:
    case, facts = read_tensors(golden, f"criterion.{name}."), read_facts(golden, "criterion", name)
    layers = facts["num_layers"]
    prediction, targets = factorise(case, layers), read_targets(case, facts["B"])
    draws = draws_of(case)
    losses = criterion_for(facts)(prediction, targets, Replay(draws))
    assert draws == []
    original_names = {"class": "loss_ce", "mask": "loss_mask", "dice": "loss_dice"}
    for term, original in original_names.items():
        suffixes = [f"_{layer}" for layer in range(layers - 1)] + [""]
        expected = torch.tensor([facts["losses_unweighted"][original + suffix] for suffix in suffixes])
        assert losses.terms[term].shape == (layers,)
        assert_close(losses.terms[term], expected)
    assert_close(losses.total, torch.tensor(facts["total_weighted"]))
    losses.total.backward()
    features_gradient = prediction.mask_features.grad[0].unflatten(1, (layers, facts["Q"]))
    for layer in range(layers):
        assert_close(prediction.class_logits.grad[layer], case[f"grad.class_logits.{layer}"])
        assert_close(features_gradient[:, layer], case[f"grad.mask_logits.{layer}"])


@pytest.mark.parametrize("name", WHOLE)
def test_costs_matches_and_points_of_each_layer(golden: Path, name: str) -> None:
    case, facts = read_tensors(golden, f"criterion.{name}."), read_facts(golden, "criterion", name)
    layers = facts["num_layers"]
    prediction, targets = factorise(case, layers), read_targets(case, facts["B"])
    criterion, replay = criterion_for(facts), Replay(draws_of(case))
    for layer in [layers - 1, *range(layers - 1)]:
        compared = criterion.comparison(prediction, targets, replay)
        costs = criterion.matcher.costs(prediction.class_logits[layer], targets, compared.costs(layer))
        matches = match(costs)
        for image in range(facts["B"]):
            assert_close(costs[image], case[f"cost.{layer}.{image}"])
            here = matches.image == image
            assert matches.query[here].tolist() == case[f"match.{layer}.{image}.query"].tolist()
            assert matches.target[here].tolist() == case[f"match.{layer}.{image}.target"].tolist()
        maps = prediction.mask_logits(layer).detach()[matches.image, matches.query]
        sampling = criterion.comparison.sampling
        points = sampling.choose(maps, sampling.draw(len(maps), replay))
        for chosen, expected in zip(points, case[f"points.{layer}"], strict=True):
            assert sorted(chosen.tolist()) == sorted(expected.tolist())
