"""Id maps (packing of masks, boxes, renumbering), and pairwise mask costs for the matcher.

An id map holds a segment number for each pixel: 1..N, or 0 for none (`structures.Segments`).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int16, Int64
from torch import Tensor
from torch.nn import functional

from unimask.structures import Segments, Size

MOST_SEGMENTS = torch.iinfo(torch.int16).max


def pack_masks(masks: Bool[Tensor, "segments height width"]) -> Int16[Tensor, "layers height width"]:
    """Return the id map of dense masks: mask n (from 0) gets the number n + 1.

    Greedy: each mask is put into the first layer where it overlaps no other, so masks without overlap need
    one layer. There is at least one layer, also without masks. The number of an empty mask is not used.

    Raises:
        ValueError: there are more masks than an int16 can number (32767).
    """
    count, height, width = masks.shape
    if count > MOST_SEGMENTS:
        raise ValueError(f"{count} segments in one image; an id map numbers at most {MOST_SEGMENTS}")
    packer = LayerPacker((height, width), masks.device)
    boxes = _boxes_from_presence(masks.any(dim=2), masks.any(dim=1)).tolist()
    for index, (left, top, box_width, box_height) in enumerate(boxes):
        window = (slice(top, top + box_height), slice(left, left + box_width))
        packer.add(index + 1, [(masks[index][window], window)])
    return packer.layers()


Pieces = Sequence[tuple[Bool[Tensor, "_rows _columns"], tuple[slice, slice]]]
"""Parts of a segment: each a mask, and the window (rows, columns) of the image that it fills."""

COARSE = 8
BLOCK = 2**25
"""Layers are allocated in blocks of more bytes than this, which are returned to the system when freed."""


class LayerPacker:
    """Packs segments that may overlap into layers: each into the first one where it overlaps no other."""

    def __init__(self, size: Size, device: torch.device) -> None:
        self._layers = [torch.zeros(size, dtype=torch.int16, device=device)]
        self._spare: list[Tensor] = []  # allocated, not yet used
        self._coarse = [self._layers[0][::COARSE, ::COARSE] > 0]  # occupied pixels, subsampled

    def add(self, number: int, pieces: Pieces, first: int = 0) -> int:
        """Add the segment `number`, given by its pieces, and return the index of its layer.

        Layers before `first` are skipped. A later segment with the same pixels (at least one) fits into no
        layer up to the returned one.
        """
        coarse = [_coarse(mask, window) for mask, window in pieces]
        for index in range(first, len(self._layers)):
            if not _overlap(coarse, self._coarse[index]) and not _overlap(pieces, self._layers[index]):
                break
        else:
            index = len(self._layers)
            self._layers.append(self._new_layer())
            self._coarse.append(torch.zeros_like(self._coarse[0]))
        layer, taken = self._layers[index], self._coarse[index]
        for (mask, window), (few, coarse_window) in zip(pieces, coarse, strict=True):
            layer[window].masked_fill_(mask, number)
            taken[coarse_window].logical_or_(few)
        return index

    def layers(self) -> Int16[Tensor, "layers height width"]:
        """Return the layers, at least one; the packer cannot be used afterwards."""
        self._spare.clear()
        if len(self._layers) == 1:
            return self._layers.pop()[None]
        result = self._layers[0].new_empty((len(self._layers), *self._layers[0].shape))
        for layer in result:
            layer.copy_(self._layers.pop(0))
        return result

    def _new_layer(self) -> Tensor:
        if not self._spare:
            first = self._layers[0]
            count = BLOCK // max(1, first.numel() * first.element_size()) + 1
            self._spare = list(first.new_empty((min(count, MOST_SEGMENTS), *first.shape)))
        return self._spare.pop(0).zero_()


def _overlap(pieces: Pieces, taken: Tensor) -> bool:
    """Return whether any of the masks covers a pixel of `taken` that is not 0."""
    both = (mask & taken[window].bool() for mask, window in pieces if mask.numel())
    return any(int(meeting.view(torch.uint8).max()) for meeting in both)  # much faster than any() on the CPU


def _coarse(mask: Tensor, window: tuple[slice, slice]) -> tuple[Tensor, tuple[slice, slice]]:
    """Return the mask at every eighth row and column of the image, and its window in the coarse map."""
    rows, columns = window
    few = mask[-rows.start % COARSE :: COARSE, -columns.start % COARSE :: COARSE]
    start_row, start_column = -(-rows.start // COARSE), -(-columns.start // COARSE)
    return few, (
        slice(start_row, start_row + few.shape[0]),
        slice(start_column, start_column + few.shape[1]),
    )


def boxes_from_layers(layers: Int16[Tensor, "layers height width"], count: int) -> Int64[Tensor, "{count} 4"]:
    """Return the tight box of each of `count` segments: (left, top, width, height) in pixels.

    The box of an empty segment is (0, 0, 0, 0).
    """
    height, width = layers.shape[1:]
    rows = torch.zeros((count + 1, height), dtype=torch.bool, device=layers.device)
    columns = torch.zeros((count + 1, width), dtype=torch.bool, device=layers.device)
    layer, y, x = layers.nonzero(as_tuple=True)
    numbers = layers[layer, y, x].long()
    rows[numbers, y] = True
    columns[numbers, x] = True
    return _boxes_from_presence(rows[1:], columns[1:])


def _boxes_from_presence(
    rows: Bool[Tensor, "segments height"], columns: Bool[Tensor, "segments width"]
) -> Int64[Tensor, "segments 4"]:
    if rows.shape[0] == 0 or rows.shape[1] == 0 or columns.shape[1] == 0:
        return torch.zeros((rows.shape[0], 4), dtype=torch.int64, device=rows.device)
    starts_and_sizes = []
    for presence in (columns, rows):
        flags = presence.to(torch.uint8)
        start = flags.argmax(dim=1)
        stop = presence.shape[1] - flags.flip(1).argmax(dim=1)
        size = torch.where(presence.any(dim=1), stop - start, 0)
        starts_and_sizes.append((start, size))
    (left, box_width), (top, box_height) = starts_and_sizes
    return torch.stack([left, top, box_width, box_height], dim=1)


def renumber(segments: Segments, keep: Bool[Tensor, " segments"]) -> Segments:
    """Return the segments where `keep` is True, numbered 1..M in their old order; pixels of others become 0.

    Layers that become empty are dropped, but at least one layer remains.
    """
    return chosen(segments, keep.nonzero()[:, 0])


def chosen(segments: Segments, indices: Int64[Tensor, " chosen"]) -> Segments:
    """Return the segments of these indices, numbered 1..M in the order of the indices; no index may repeat.

    Otherwise as `renumber`.
    """
    table = torch.zeros(len(segments) + 1, dtype=torch.int16, device=segments.layers.device)
    table[indices + 1] = torch.arange(1, len(indices) + 1, dtype=torch.int16, device=table.device)
    layers = table[segments.layers.long()]
    occupied = layers.flatten(1).any(dim=1)
    occupied[0] |= ~occupied.any()
    return Segments(
        layers=layers[occupied],
        labels=segments.labels[indices],
        scores=segments.scores[indices],
        is_crowd=segments.is_crowd[indices],
        stated_areas=segments.stated_areas[indices] if len(segments.stated_areas) else segments.stated_areas,
    )


def pairwise_binary_cross_entropy(
    logits: Float[Tensor, "queries points"], labels: Float[Tensor, "targets points"]
) -> Float[Tensor, "queries targets"]:
    """Return the mean binary cross-entropy over the points, of every query with every target.

    Labels may be fractions. Expanded as softplus(x) - x y, so that no (queries, targets, points) tensor is
    needed.

    Source: Mask2Former (2112.01527), Sec. 3.3; computed as in the matcher of the original code.
    """
    always = functional.softplus(logits).sum(dim=1, keepdim=True)
    return (always - logits @ labels.T) / logits.shape[1]


def pairwise_focal(
    logits: Float[Tensor, "queries points"],
    labels: Float[Tensor, "targets points"],
    alpha: float,
    gamma: float,
) -> Float[Tensor, "queries targets"]:
    """Return the mean focal loss over the points, of every query with every target.

    A fractional label y weights the loss of the foreground with y and that of the background with 1 - y.

    Source: RetinaNet (1708.02002), Eq. 5; computed as in the matcher of MaskFormer's code.
    """
    probabilities = logits.sigmoid()
    foreground = alpha * (1 - probabilities) ** gamma * functional.softplus(-logits)
    background = (1 - alpha) * probabilities**gamma * functional.softplus(logits)
    always = background.sum(dim=1, keepdim=True)
    return (always + (foreground - background) @ labels.T) / logits.shape[1]


def pairwise_dice(
    logits: Float[Tensor, "queries points"], labels: Float[Tensor, "targets points"]
) -> Float[Tensor, "queries targets"]:
    """Return 1 minus the Dice coefficient over the points, of every query's probabilities with every target.

    1 is added to numerator and denominator, so an empty mask with an empty target costs 0.

    Source: V-Net (1606.04797), Eq. 3, with the denominator not squared and the +1 of the original code.
    """
    probabilities = logits.sigmoid()
    overlap = probabilities @ labels.T
    total = probabilities.sum(dim=1)[:, None] + labels.sum(dim=1)[None, :]
    return 1 - (2 * overlap + 1) / (total + 1)
