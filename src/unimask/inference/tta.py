"""Test-time augmentation: one prediction from several versions of an image.

Masks are factorised, so versions add up without a mask being made: the mask features of every version are
brought to the same grid and stacked along the channels, and each query has zeros for the channels of the
other versions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from unimask.errors import ConfigError, choices
from unimask.structures import MaskPrediction, Placement

KNOWN = ("flip", "scales")
SCALES = (0.75, 1.25)
DUPLICATE_IOU = 0.5  # queries of one class that overlap more are the same object, seen in several versions


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """A version of an image: mirrored left to right or not, and resized by a factor of its usual size."""

    flip: bool
    scale: float


PLAIN = Augmentation(flip=False, scale=1.0)


def augmentations_of(names: Sequence[str]) -> tuple[Augmentation, ...]:
    """Return the augmentations that `flip` and `scales` stand for, each once; the plain one comes first.

    Raises:
        ConfigError: there is no such name.
    """
    unknown = sorted(set(names) - set(KNOWN))
    if unknown:
        raise ConfigError("tta", f"{', '.join(unknown)} does not exist; {choices(unknown[0], KNOWN)}")
    scales = (1.0, *(SCALES if "scales" in names else ()))
    flips = (False, True) if "flip" in names else (False,)
    return tuple(Augmentation(flip=flip, scale=scale) for scale in scales for flip in flips)


def augmented_placement(placement: Placement, augmentation: Augmentation, divisor: int) -> Placement:
    """Return where the augmented image lies on its canvas, given where the plain image lies on its own."""
    if augmentation.scale == 1:
        return placement
    height, width = (max(1, round(side * augmentation.scale)) for side in placement.resized)
    return Placement.fit(placement.original, (height, width), divisor)


def augment(
    image: UInt8[Tensor, "3 height width"], augmentation: Augmentation
) -> UInt8[Tensor, "3 height width"]:
    """Return the image, mirrored if the augmentation says so; its scale is part of the placement."""
    return image.flip(2) if augmentation.flip else image


def combine(
    predictions: Sequence[MaskPrediction],
    placements: Sequence[Sequence[Placement]],
    augmentations: Sequence[Augmentation],
) -> MaskPrediction:
    """Combine the final predictions of all versions of a batch, on the grid of the first (plain) version.

    `placements` has a row per version. Postprocessed to semantic segments, it is the mean over the versions.
    To panoptic segments or instances, all versions propose theirs; `postprocess.distinct` then leaves one of
    each.
    """
    plain = predictions[0].features()
    features = [plain]
    for prediction, rows, augmentation in zip(
        predictions[1:], placements[1:], augmentations[1:], strict=True
    ):
        grids = [
            _grid(plain, reference, own, augmentation.flip)
            for reference, own in zip(placements[0], rows, strict=True)
        ]
        features.append(_sample(prediction.features(), torch.stack(grids)))
    embeddings = [prediction.mask_embeddings[-1] for prediction in predictions]
    blocks = [
        functional.pad(block, (index * block.shape[2], (len(embeddings) - 1 - index) * block.shape[2]))
        for index, block in enumerate(embeddings)
    ]
    return MaskPrediction(
        class_logits=torch.cat([prediction.class_logits[-1] for prediction in predictions], dim=1)[None],
        mask_embeddings=torch.cat(blocks, dim=1)[None],
        mask_features=torch.cat(features, dim=1)[None],
        per_pixel=predictions[0].per_pixel,
    )


def _sample(
    features: Float[Tensor, "batch channels height width"],
    grid: Float[Tensor, "batch out_height out_width 2"],
) -> Float[Tensor, "batch channels out_height out_width"]:
    """Return bilinear values at the places, the nearest cell's outside of the map."""
    return functional.grid_sample(
        features, grid.to(features.dtype), padding_mode="border", align_corners=False
    )


def _grid(
    plain: Tensor, reference: Placement, own: Placement, flip: bool
) -> Float[Tensor, "out_height out_width 2"]:
    """Return for each cell of the plain map the place of the same spot in that of a version, from -1 to 1."""
    places = []
    for axis, cells in ((0, plain.shape[2]), (1, plain.shape[3])):
        centers = (torch.arange(cells, device=plain.device, dtype=torch.float32) + 0.5) / cells
        share = centers * (reference.canvas[axis] / reference.resized[axis])  # of the image, without padding
        mirrored = 1 - share if flip and axis == 1 else share
        places.append(2 * mirrored * (own.resized[axis] / own.canvas[axis]) - 1)
    y, x = torch.meshgrid(places[0], places[1], indexing="ij")
    return torch.stack((x, y), dim=-1)
