"""Predictions and targets at random, and the losses by the slow way: dense masks, full logits."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from unimask.losses.criterion import Criterion
from unimask.losses.matcher import match
from unimask.ops.id_maps import pack_masks
from unimask.structures import MaskPrediction, Matches, Segments

CLASSES = 5


def random_targets(counts: tuple[int, ...], size: tuple[int, int], seed: int = 0) -> tuple[Segments, ...]:
    """Overlapping rectangles."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.arange(size[0])[:, None] / size[0], torch.arange(size[1]) / size[1]
    targets = []
    for count in counts:
        ends = torch.rand((count, 4, 1, 1), generator=generator)
        masks = (y >= ends[:, 0] / 2) & (y <= 0.5 + ends[:, 1] / 2)
        masks = masks & (x >= ends[:, 2] / 2) & (x <= 0.5 + ends[:, 3] / 2)
        targets.append(
            Segments(
                layers=pack_masks(masks),
                labels=torch.randint(0, CLASSES, (count,), generator=generator),
                scores=torch.ones(count),
                is_crowd=torch.zeros(count, dtype=torch.bool),
            )
        )
    return tuple(targets)


def stripes(count: int, size: tuple[int, int]) -> Segments:
    """Upright stripes, none of which overlap, with void between them."""
    number = torch.arange(size[1]) * count // size[1] + 1
    layer = torch.where(torch.arange(size[1]) % 5 == 0, 0, number).to(torch.int16).expand(size)
    return Segments(
        layers=layer[None].contiguous(),
        labels=torch.arange(count) % CLASSES,
        scores=torch.ones(count),
        is_crowd=torch.zeros(count, dtype=torch.bool),
    )


def random_prediction(
    predictions: int, batch: int, queries: int, size: tuple[int, int], channels: int = 7, seed: int = 0
) -> MaskPrediction:
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).requires_grad_()

    return MaskPrediction(
        class_logits=leaf(predictions, batch, queries, CLASSES + 1),
        mask_embeddings=leaf(predictions, batch, queries, channels),
        mask_features=leaf(1, batch, channels, *size),
    )


def leaves(prediction: MaskPrediction) -> tuple[Tensor, Tensor, Tensor]:
    return prediction.class_logits, prediction.mask_embeddings, prediction.mask_features


@dataclass
class Generator:
    """A source of uniform numbers that starts anew from its seed."""

    seed: int

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=self.generator)


def grid_sample(maps: Tensor, points: Tensor) -> Tensor:
    return functional.grid_sample(maps[:, None], 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]


def slow_losses(
    criterion: Criterion, prediction: MaskPrediction, targets: tuple[Segments, ...], uniform: Generator
) -> dict[str, Tensor]:
    """As the original computes them, from full mask logits and dense masks; for RandomPoints."""
    last = len(prediction.class_logits) - 1
    terms: dict[str, dict[int, Tensor]] = {"class": {}, "mask": {}, "dice": {}}
    for index in [last, *range(last)]:
        class_logits, logits = prediction.class_logits[index], prediction.mask_logits(index)
        labels = torch.full(class_logits.shape[:2], CLASSES)
        maps, masks = [], []
        matches = matches_of(criterion, prediction, index, targets, uniform)
        for image, query, target in zip(matches.image, matches.query, matches.target, strict=True):
            labels[image, query] = targets[image].labels[target]
            maps.append(logits[image, query])
            masks.append(targets[image].masks()[target].float())
        weights = torch.tensor([1.0] * CLASSES + [0.1])
        terms["class"][index] = functional.cross_entropy(class_logits.transpose(1, 2), labels, weights)
        all_maps = torch.stack(maps)
        sampling = criterion.comparison.sampling
        points = sampling.choose(all_maps.detach(), sampling.draw(len(matches.image), uniform))
        x, y = grid_sample(all_maps, points), grid_sample(torch.stack(masks), points)
        num_masks = sum(len(target) for target in targets)
        terms["mask"][index] = functional.binary_cross_entropy_with_logits(
            x, y, reduction="none"
        ).mean(1).sum() / num_masks  # fmt: skip
        p = x.sigmoid()
        dice = 1 - (2 * (p * y).sum(1) + 1) / (p.sum(1) + y.sum(1) + 1)
        terms["dice"][index] = dice.sum() / num_masks
    return {name: torch.stack([values[i] for i in range(last + 1)]) for name, values in terms.items()}


def costs_of(criterion: Criterion, prediction: MaskPrediction, index: int, targets, uniform) -> list[Tensor]:
    compared = criterion.comparison(prediction, targets, uniform)
    return criterion.matcher.costs(prediction.class_logits[index], targets, compared.costs(index))


def matches_of(criterion: Criterion, prediction: MaskPrediction, index: int, targets, uniform) -> Matches:
    return match(costs_of(criterion, prediction, index, targets, uniform))
