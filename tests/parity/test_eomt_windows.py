"""Sliding windows against the image processor of transformers: where they lie, and how they are averaged."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import EomtImageProcessor

from unimask.config.data import DataConfig, ShortSide, SlidingWindow
from unimask.inference.joining import AveragedWindows
from unimask.inference.predictions import TilePrediction
from unimask.inference.tiles import sliding_windows, tile_placement, tiling_of
from unimask.structures import MaskPrediction, Placement

SIDE = 32
CONFIG = DataConfig(
    resize=ShortSide(size=SIDE, longest=100 * SIDE), view=SlidingWindow(size=SIDE), divisor=16
)
THEIRS = EomtImageProcessor(
    size={"shortest_edge": SIDE, "longest_edge": None}, do_split_image=True, do_resize=False
)


def predictions(count: int) -> MaskPrediction:
    """A random prediction for each of some windows, as a batch."""
    generator = torch.Generator().manual_seed(count)
    return MaskPrediction(
        class_logits=3 * torch.randn(1, count, 7, 5, generator=generator),
        mask_embeddings=2 * torch.randn(1, count, 7, 6, generator=generator),
        mask_features=torch.randn(1, count, 6, SIDE // 4, SIDE // 4, generator=generator),
    )


@pytest.mark.parametrize(
    ("size", "resized"),
    [((32, 32), (32, 32)), ((32, 83), (32, 83)), ((141, 32), (141, 32)), ((64, 150), (32, 75))],
    ids=str,
)
def test_windows_and_averages_are_those_of_transformers(
    size: tuple[int, int], resized: tuple[int, int]
) -> None:
    image = torch.randint(0, 256, (3, *resized), dtype=torch.uint8)
    split = THEIRS(image, return_tensors=None, do_normalize=False, do_rescale=False)
    tiling = tiling_of(size, CONFIG)
    assert tiling.frame == Placement(original=size, resized=resized, canvas=resized)
    for tile, patch in zip(tiling.tiles, split["pixel_values"], strict=True):
        assert torch.equal(image[:, *tile.window].float(), patch.float())
    given = predictions(len(tiling.tiles))
    joiner = AveragedWindows()
    for index, tile in enumerate(tiling.tiles):
        one = MaskPrediction(
            class_logits=given.class_logits[:, index : index + 1],
            mask_embeddings=given.mask_embeddings[:, index : index + 1],
            mask_features=given.mask_features[:, index : index + 1],
        )
        placement = tile_placement(tile.size, CONFIG)
        assert placement == Placement(original=tile.size, resized=tile.size, canvas=(SIDE, SIDE))
        joiner.add(
            TilePrediction(image=0, frame=tiling.frame, tile=tile, placement=placement, prediction=one)
        )
    found = joiner.result()
    outputs = SimpleNamespace(
        masks_queries_logits=given.mask_logits(),
        class_queries_logits=given.class_logits[-1],
        patch_offsets=[offsets.tolist() for offsets in split["patch_offsets"]],
    )
    (expected,) = THEIRS.post_process_semantic_segmentation(
        outputs, [size], size={"shortest_edge": SIDE, "longest_edge": None}
    )
    assert torch.equal(found.labels[found.layers[0].long() - 1], expected)


@pytest.mark.parametrize(("side", "rounded_down"), [(512, False), (500, True), (640, True)])
def test_windows_cover_every_length_and_lie_as_in_the_original(side: int, rounded_down: bool) -> None:
    differences = set()
    for length in range(1, 12 * side, 3):
        windows = [tile.window[1] for tile in sliding_windows((side, length), side, 0)]
        count = math.ceil(length / side)
        assert (len(windows), windows[0].start, windows[-1].stop) == (count, 0, length)
        step = side - (count * side - length) / (count - 1) if count > 1 else 0  # a rounded number
        theirs = [int(index * step) for index in range(count)]
        differences |= {ours.start - start for ours, start in zip(windows, theirs, strict=True)}
    assert differences == ({0, 1} if rounded_down else {0})
