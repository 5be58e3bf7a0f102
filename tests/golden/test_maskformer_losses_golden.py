"""Costs, matches, losses and gradients of the original MaskFormer matcher and criterion."""

import json
from pathlib import Path

import pytest
import torch
from golden.test_losses_golden import assert_close, factorise, read_targets
from safetensors import safe_open
from torch import Tensor

from unimask.config.training import LossConfig
from unimask.losses.build import build_criterion
from unimask.losses.matcher import match
from unimask.losses.sampling import EveryPixel
from unimask.losses.terms import ClassTerm, DiceTerm, FocalTerm
from unimask.ops.assignment import assign

NAME = "loss_cases_maskformer_v1"
CONFIG = LossConfig(class_weight=1.0, mask_term="focal", mask_weight=20.0, dice_weight=1.0, sampling="pixels")
DENSE = ("several_targets", "one_target", "no_target", "more_targets_than_queries", "fractional_labels")
WHOLE = ("two_images", "one_image_without_objects", "single_image_without_objects")


def read(golden: Path, kind: str, name: str) -> tuple[dict[str, Tensor], dict]:
    with safe_open(golden / f"{NAME}.safetensors", framework="pt") as file:
        prefix = f"{kind}.{name}."
        tensors = {
            key.removeprefix(prefix): file.get_tensor(key)
            for key in file.keys()  # noqa: SIM118 (it is no dict)
            if key.startswith(prefix)
        }
    cases = json.loads((golden / f"{NAME}.json").read_text())[f"{kind}_cases"]
    return tensors, next(case for case in cases if case["name"] == name)


def nothing_is_random(shape: tuple[int, ...]) -> Tensor:
    raise AssertionError(shape)


@pytest.mark.parametrize("name", DENSE)
def test_costs_and_losses_on_given_points(golden: Path, name: str) -> None:
    case, facts = read(golden, "dense", name)
    logits, labels = case["mask_point_logits"], case["mask_point_targets"]
    class_term = ClassTerm(facts["K"], 0.1, 1.0)
    mask_term, dice_term = FocalTerm(weight=20.0), DiceTerm(weight=1.0)
    costs = {
        "class": class_term.cost(case["class_logits"], case["labels"]),
        "mask": mask_term.cost(logits, labels),
        "dice": dice_term.cost(logits, labels),
    }
    for term, cost in costs.items():
        assert_close(cost, case[f"cost_{term}"])
    total = costs["class"] + 20.0 * costs["mask"] + costs["dice"]
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


@pytest.mark.parametrize("name", WHOLE)
def test_whole_criterion(golden: Path, name: str) -> None:
    case, facts = read(golden, "criterion", name)
    layers = facts["num_layers"]
    prediction, targets = factorise(case, layers), read_targets(case, facts["B"])
    criterion = build_criterion(CONFIG, facts["K"])
    assert criterion.comparison.sampling == EveryPixel()
    losses = criterion(prediction, targets, nothing_is_random)
    original_names = {"class": "loss_ce", "mask": "loss_mask", "dice": "loss_dice"}
    for term, original in original_names.items():
        suffixes = [f"_{layer}" for layer in range(layers - 1)] + [""]
        expected = torch.tensor([facts["losses_unweighted"][original + suffix] for suffix in suffixes])
        assert_close(losses.terms[term], expected)
    assert_close(losses.total, torch.tensor(facts["total_weighted"]))
    losses.total.backward()
    features_gradient = prediction.mask_features.grad[0].unflatten(1, (layers, facts["Q"]))
    for layer in range(layers):
        assert_close(prediction.class_logits.grad[layer], case[f"grad.class_logits.{layer}"])
        assert_close(features_gradient[:, layer], case[f"grad.mask_logits.{layer}"])


@pytest.mark.parametrize("name", WHOLE)
def test_costs_and_matches_of_each_layer(golden: Path, name: str) -> None:
    case, facts = read(golden, "criterion", name)
    prediction, targets = factorise(case, facts["num_layers"]), read_targets(case, facts["B"])
    criterion = build_criterion(CONFIG, facts["K"])
    compared = criterion.comparison(prediction, targets, nothing_is_random)
    for layer in range(facts["num_layers"]):
        costs = criterion.matcher.costs(prediction.class_logits[layer], targets, compared.costs(layer))
        matches = match(costs)
        for image in range(facts["B"]):
            assert_close(costs[image], case[f"cost.{layer}.{image}"])
            here = matches.image == image
            assert matches.query[here].tolist() == case[f"match.{layer}.{image}.query"].tolist()
            assert matches.target[here].tolist() == case[f"match.{layer}.{image}.target"].tolist()
