"""DETR's costs, matches, losses and gradients against the original's."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from unimask.config.training import LossConfig
from unimask.losses.build import build_criterion
from unimask.losses.matcher import match
from unimask.structures import BoxPrediction, BoxTargets

NAMES = (
    "two_images",
    "one_image_without_objects",
    "all_images_without_objects",
    "more_targets_than_queries",
    "with_masks",
)
CONFIG = LossConfig(class_weight=1.0)
TERMS = {"class": "loss_ce", "box": "loss_bbox", "overlap": "loss_giou"}


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def nothing_is_random(shape: tuple[int, ...]) -> Tensor:
    raise AssertionError("nothing is random here")


@pytest.fixture(scope="module")
def stored(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "detr_loss_cases.safetensors")


@pytest.fixture(scope="module")
def facts(golden: Path) -> dict[str, dict]:
    return {case["name"]: case for case in json.loads((golden / "detr_loss_cases.json").read_text())["cases"]}


def read_case(
    stored: dict[str, Tensor], facts: dict, name: str
) -> tuple[BoxPrediction, tuple[BoxTargets, ...]]:
    def stack(what: str) -> Tensor:
        layers = [stored[f"{name}.{what}.{layer}"] for layer in range(facts["num_layers"])]
        return torch.stack(layers).requires_grad_()

    targets = tuple(
        BoxTargets(boxes=stored[f"{name}.targets.{b}.boxes"], labels=stored[f"{name}.targets.{b}.labels"])
        for b in range(facts["B"])
    )
    return BoxPrediction(class_logits=stack("class_logits"), boxes=stack("boxes")), targets


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients(stored: dict[str, Tensor], facts: dict[str, dict], name: str) -> None:
    case = facts[name]
    prediction, targets = read_case(stored, case, name)
    losses = build_criterion(CONFIG, case["K"], kind="boxes")(prediction, targets, nothing_is_random)
    suffixes = [f"_{layer}" for layer in range(case["num_layers"] - 1)] + [""]
    for term, theirs in TERMS.items():
        expected = torch.tensor([case["losses_unweighted"][theirs + suffix] for suffix in suffixes])
        close(losses.terms[term], expected)
    if not case["with_masks"]:
        close(losses.total, torch.tensor(case["total_weighted"]))
    losses.total.backward()
    for layer in range(case["num_layers"]):
        close(prediction.class_logits.grad[layer], stored[f"{name}.grad.class_logits.{layer}"])
        close(prediction.boxes.grad[layer], stored[f"{name}.grad.boxes.{layer}"])


@pytest.mark.parametrize("name", NAMES)
def test_costs_and_matches(stored: dict[str, Tensor], facts: dict[str, dict], name: str) -> None:
    case = facts[name]
    prediction, targets = read_case(stored, case, name)
    criterion = build_criterion(CONFIG, case["K"], kind="boxes")
    compared = criterion.comparison(prediction, targets, nothing_is_random)
    for layer in range(case["num_layers"]):
        logits = prediction.class_logits[layer].detach()
        costs = criterion.matcher.costs(logits, targets, compared.costs(layer))
        matches = match(costs)
        for image in range(case["B"]):
            close(costs[image], stored[f"{name}.cost.{layer}.{image}"])
            here = matches.image == image
            assert matches.query[here].tolist() == stored[f"{name}.match.{layer}.{image}.query"].tolist()
            assert matches.target[here].tolist() == stored[f"{name}.match.{layer}.{image}.target"].tolist()
