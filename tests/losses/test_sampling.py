"""Comparing at every pixel: against dense masks and torch's own resizing."""

import pytest
import torch
from losses.loss_inputs import Generator, leaves, random_prediction, random_targets
from torch.nn import functional

from unimask.config.training import LossConfig
from unimask.losses import mask_comparison as masks_file
from unimask.losses.build import build_criterion
from unimask.losses.sampling import EveryPixel

SIZE, CANVAS = (11, 13), (47, 50)  # neither divides the other


def test_the_matcher_sees_the_nearest_pixels_of_the_targets() -> None:
    (target,) = random_targets((5,), CANVAS)
    assert len(target.layers) > 1  # they overlap
    embeddings, features = torch.randn(6, 7), torch.randn(7, *SIZE)
    logits, labels = EveryPixel().everyone(embeddings, features, target, Generator(0))
    torch.testing.assert_close(logits, torch.einsum("qc,chw->qhw", embeddings, features).flatten(1))
    expected = functional.interpolate(target.masks()[None].float(), SIZE, mode="nearest")[0].flatten(1)
    assert torch.equal(labels, expected)


def test_losses_compare_resized_masks_with_all_pixels_of_the_targets() -> None:
    (target,) = random_targets((5,), CANVAS)
    maps, numbers = torch.randn(3, *SIZE), torch.tensor([4, 1, 5])
    logits, labels = EveryPixel().pairs(maps, target.layers, numbers, ())
    resized = functional.interpolate(maps[None], CANVAS, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(logits, resized.flatten(1))
    assert torch.equal(labels, target.masks()[numbers - 1].float().flatten(1))


@pytest.mark.parametrize("counts", [(3, 4), (0, 0), (9, 1)], ids=str)
def test_the_size_of_the_groups_changes_nothing(
    counts: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    criterion = build_criterion(LossConfig(sampling="pixels", mask_term="focal"), 5)
    prediction, targets = random_prediction(2, 2, 6, SIZE), random_targets(counts, CANVAS)
    at_once = criterion(prediction, targets, Generator(0))
    wanted = torch.autograd.grad(at_once.total, leaves(prediction))
    monkeypatch.setattr(masks_file, "VALUES_AT_ONCE", 1)
    losses = criterion(prediction, targets, Generator(0))
    for name in losses.terms:
        torch.testing.assert_close(losses.terms[name], at_once.terms[name])
    for gradient, expected in zip(torch.autograd.grad(losses.total, leaves(prediction)), wanted, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
