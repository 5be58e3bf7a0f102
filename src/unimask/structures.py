"""Every data type that passes between packages: frozen, keyword-only, no optional fields.

One polarity: a boolean mask is True where something is visible or valid. Sizes are (height, width).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int16, Int64, UInt8
from torch import Tensor
from torch.nn import functional

Size = tuple[int, int]
Data = TypeVar("Data")


def map_tensors(data: Data, change: Callable[[Tensor], Tensor]) -> Data:
    """Apply `change` to every tensor of a tuple or dataclass, however deep; everything else stays."""
    found: Any = data
    if isinstance(found, Tensor):
        found = change(found)
    elif isinstance(found, tuple):
        found = tuple(map_tensors(part, change) for part in found)
    elif is_dataclass(found) and not isinstance(found, type):
        parts = {field.name: map_tensors(getattr(found, field.name), change) for field in fields(found)}
        found = replace(found, **parts)
    return found


@dataclass(frozen=True, kw_only=True)
class Categories:
    """The K real classes of a data set or a model; a label is an index into them, no-object is index K."""

    names: tuple[str, ...]
    is_thing: tuple[bool, ...]
    file_ids: tuple[int, ...]  # the ids that annotation files use
    colors: tuple[tuple[int, int, int], ...]  # RGB, 0..255

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, kw_only=True)
class Segments:
    """The segments of one image: ground truth and result alike.

    `layers` maps pixels to 1..N, 0 is none; segment n (1-based) has `labels[n - 1]`. Each segment lies in
    exactly one layer, and segments of one layer do not overlap. Panoptic and semantic: L = 1. Overlapping
    instances are packed into the few layers they need (`ops.id_maps.pack_masks`). A segment may be empty.

    `stated_areas` are those that a file of ground truth states of its objects (COCO), and empty where it
    states none. They only decide what counts as small, medium and large.
    """

    layers: Int16[Tensor, "layers height width"]
    labels: Int64[Tensor, " segments"]
    scores: Float[Tensor, " segments"]
    is_crowd: Bool[Tensor, " segments"]
    stated_areas: Float[Tensor, " stated"] = field(default_factory=lambda: torch.empty(0))

    def __len__(self) -> int:
        return self.labels.shape[0]

    def cpu(self) -> "Segments":
        """Return the same segments on the CPU."""
        return map_tensors(self, Tensor.cpu)

    @property
    def size(self) -> Size:
        """(height, width) of the image."""
        return self.layers.shape[1], self.layers.shape[2]

    def areas(self) -> Int64[Tensor, " segments"]:
        """Pixels of each segment."""
        counts = torch.bincount(self.layers.flatten().long(), minlength=len(self) + 1)
        return counts[1 : len(self) + 1]

    def object_areas(self) -> Float[Tensor, " segments"]:
        """Return the areas that make objects small or large: those that are stated, else their pixels."""
        return self.stated_areas if len(self.stated_areas) else self.areas().float()

    def masks(self) -> Bool[Tensor, "segments height width"]:
        """Dense masks, for users; the library itself never makes them."""
        numbers = torch.arange(1, len(self) + 1, device=self.layers.device, dtype=self.layers.dtype)
        dense = torch.zeros((len(self), *self.size), dtype=torch.bool, device=self.layers.device)
        for layer in self.layers:
            dense |= layer == numbers[:, None, None]
        return dense


@dataclass(frozen=True, kw_only=True)
class Detections:
    """The boxes of one image, in pixels of the file: ground truth and result alike.

    `areas` are those of the objects where a file states them (COCO: of their masks), else of the boxes. They
    only decide what counts as small, medium and large.
    """

    boxes: Float[Tensor, "boxes 4"]  # xyxy
    labels: Int64[Tensor, " boxes"]
    scores: Float[Tensor, " boxes"]
    areas: Float[Tensor, " boxes"]
    is_crowd: Bool[Tensor, " boxes"]

    def __len__(self) -> int:
        return self.labels.shape[0]

    def cpu(self) -> "Detections":
        """Return the same boxes on the CPU."""
        return map_tensors(self, Tensor.cpu)

    def select(self, which: Tensor) -> "Detections":
        """Some of the boxes: those of a boolean mask, or of indices in their order."""
        return map_tensors(self, lambda values: values[which])


Truth = Segments | Detections
"""The ground truth of an image: masks or boxes."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where an image lies on the canvas that the model sees: the only record of a resize.

    The image of size `original` is resized to `resized` and put into the upper left corner of `canvas`.
    """

    original: Size
    resized: Size
    canvas: Size

    @staticmethod
    def fit(original: Size, resized: Size, divisor: int) -> "Placement":
        """Return a placement on `resized`, rounded up to a multiple of `divisor` on both sides."""
        height, width = (-(-side // divisor) * divisor for side in resized)
        return Placement(original=original, resized=resized, canvas=(height, width))

    def restore(self, maps: Float[Tensor, "maps height width"]) -> Float[Tensor, "maps out_height out_width"]:
        """Resize maps that cover the canvas, at any stride, to the original size.

        Bilinear to the canvas, crop of the padding, bilinear to the original size (align_corners=False).
        Linear in `maps`, so it commutes with every product over the leading dimension.
        """
        if tuple(maps.shape[-2:]) != self.canvas:
            maps = functional.interpolate(maps[None], self.canvas, mode="bilinear", align_corners=False)[0]
        maps = maps[:, : self.resized[0], : self.resized[1]]
        if self.resized != self.original:
            maps = functional.interpolate(maps[None], self.original, mode="bilinear", align_corners=False)[0]
        return maps


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image with its ground truth. `image_id` is the stem of its file or its id, for messages."""

    image: UInt8[Tensor, "3 height width"]
    truth: Segments | Detections
    image_id: str
    left_out: int = 0  # objects of its file that cover no pixel, and are not in `truth`
    covered: int = 0  # objects that others cover wholly, and are not in the `truth` of one layer


@runtime_checkable  # the tests check argument types at run time
class Dataset(Protocol):
    """Samples by index, at the size of their files: what readers return, and what you may write.

    Anything with `categories`, a length and samples by index is one (`make_categories`, `make_sample`); it
    need not inherit from this. A sample is asked for more than once, by several processes in any order, and
    must be the same each time.
    """

    @property
    def categories(self) -> Categories:
        """The categories that the labels of the samples index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@dataclass(frozen=True, kw_only=True)
class ImageBatch:
    """Images on one canvas, normalised; padding is 0 after normalisation, as in the original."""

    pixels: Float[Tensor, "batch 3 height width"]
    valid: Bool[Tensor, "batch height width"]
    placements: tuple[Placement, ...]


@dataclass(frozen=True, kw_only=True)
class BoxTargets:
    """The boxes that a model is to find in one image: cxcywh in [0, 1] of its valid part, without crowd."""

    boxes: Float[Tensor, "boxes 4"]
    labels: Int64[Tensor, " boxes"]

    def __len__(self) -> int:
        return self.labels.shape[0]


@dataclass(frozen=True, kw_only=True)
class BoxMaskTargets:
    """The segments that a model of boxes and masks is to find in one image, without crowd."""

    segments: Segments  # on the canvas
    boxes: Float[Tensor, "boxes 4"]  # around each of them; cxcywh in [0, 1] of the valid part of the image

    @property
    def labels(self) -> Int64[Tensor, " boxes"]:
        """The labels of the segments."""
        return self.segments.labels

    def __len__(self) -> int:
        return len(self.segments)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a training step takes. Segments live on the canvas: their layers have its size."""

    images: ImageBatch
    targets: tuple[Segments, ...] | tuple[BoxTargets, ...] | tuple[BoxMaskTargets, ...]
    image_ids: tuple[str, ...]

    def pin_memory(self) -> "Batch":
        """Return the same batch in page-locked memory; torch's data loader calls this."""
        return map_tensors(self, Tensor.pin_memory)


@dataclass(frozen=True, kw_only=True)
class MaskPrediction:
    """What a mask classifier predicts, factorised.

    Mask logits are `mask_embeddings @ mask_features`, made only where they are needed. The first dimension
    runs over predictions in order of depth: index -1 is the final one. All predictions may share one set of
    mask features, which then has a first dimension of 1; `features` gives those of any prediction.

    In per-pixel classification a pixel belongs to one category: query k stands for category k, and mask
    probabilities are a softmax over the queries instead of a sigmoid of each.
    """

    class_logits: Float[Tensor, "predictions batch queries classes_and_none"]
    mask_embeddings: Float[Tensor, "predictions batch queries channels"]
    mask_features: Float[Tensor, "#predictions batch channels height width"]  # at stride 4
    per_pixel: bool = False  # per-pixel classification

    def finite(self) -> Bool[Tensor, " batch"]:
        """Return which images have only finite numbers."""
        return (
            torch.isfinite(self.class_logits).flatten(2).all(2).all(0)
            & torch.isfinite(self.mask_embeddings).flatten(2).all(2).all(0)
            & torch.isfinite(self.mask_features).flatten(2).all(2).all(0)
        )

    def features(self, prediction: int = -1) -> Float[Tensor, "batch channels height width"]:
        """Return the mask features of one prediction."""
        return self.mask_features[prediction % len(self.mask_features)]

    def mask_logits(self, prediction: int = -1) -> Float[Tensor, "batch queries height width"]:
        """Full mask logits of one prediction at stride 4: for tests and export, never inside the library."""
        return torch.einsum("bqc,bchw->bqhw", self.mask_embeddings[prediction], self.features(prediction))


@dataclass(frozen=True, kw_only=True)
class BoxPrediction:
    """What a detection model predicts; boxes are cxcywh in [0, 1] of the valid part of the image."""

    class_logits: Float[Tensor, "predictions batch queries classes_and_none"]
    boxes: Float[Tensor, "predictions batch queries 4"]

    def finite(self) -> Bool[Tensor, " batch"]:
        """Return which images have only finite numbers."""
        numbers = torch.cat((self.class_logits, self.boxes), dim=-1)
        return torch.isfinite(numbers).flatten(2).all(2).all(0)


@dataclass(frozen=True, kw_only=True)
class BoxMaskPrediction:
    """What a detection model with a mask head predicts: a `BoxPrediction`, and masks of the final queries."""

    class_logits: Float[Tensor, "predictions batch queries classes_and_none"]
    boxes: Float[Tensor, "predictions batch queries 4"]
    mask_logits: Float[Tensor, "batch queries height width"]  # at stride 4

    def finite(self) -> Bool[Tensor, " batch"]:
        """Return which images have only finite numbers."""
        return self.of_boxes().finite() & torch.isfinite(self.mask_logits).flatten(1).all(1)

    def of_boxes(self) -> BoxPrediction:
        """Return the prediction without its masks."""
        return BoxPrediction(class_logits=self.class_logits, boxes=self.boxes)

    def of_masks(self) -> MaskPrediction:
        """Return the final classes and masks as a mask classifier's: a query's features are its own mask."""
        batch, queries = self.mask_logits.shape[:2]
        own = torch.eye(queries, device=self.mask_logits.device, dtype=self.mask_logits.dtype)
        return MaskPrediction(
            class_logits=self.class_logits[-1:],
            mask_embeddings=own.expand(1, batch, queries, queries),
            mask_features=self.mask_logits[None],
        )


Prediction = MaskPrediction | BoxPrediction | BoxMaskPrediction
"""What a model of images predicts."""


@dataclass(frozen=True, kw_only=True)
class SequenceBatch:
    """Sequences to learn from. Padding is 0 and at the ends; `source_valid`, `target_valid` mark the rest.

    A source is token ids or vectors. A target ends with the end token and has no begin token.
    """

    source: Int64[Tensor, "batch places"] | Float[Tensor, "batch places features"]
    source_valid: Bool[Tensor, "batch places"]
    target: Int64[Tensor, "batch tokens"]
    target_valid: Bool[Tensor, "batch tokens"]
    names: tuple[str, ...]  # of the pairs, for messages


@dataclass(frozen=True, kw_only=True)
class Special:
    """The tokens that are not text. Begin and padding may be one token."""

    padding: int
    begin: int
    end: int


@dataclass(frozen=True, kw_only=True)
class AttentionMaps:
    """How much each token attends to each other, per layer: `[layer][sequence, head, query, key]`.

    The weights of a query add up to 1.
    """

    encoder: tuple[Float[Tensor, "batch heads places places"], ...]
    decoder: tuple[Float[Tensor, "batch heads tokens tokens"], ...]  # masked: 0 above the diagonal
    cross: tuple[Float[Tensor, "batch heads tokens places"], ...]


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Which query of which image predicts which of its targets; M pairs, ordered by image."""

    image: Int64[Tensor, " pairs"]
    query: Int64[Tensor, " pairs"]
    target: Int64[Tensor, " pairs"]


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Each term's loss per prediction (as deep as the prediction's first dimension), before weighting."""

    terms: Mapping[str, Float[Tensor, " predictions"]]
    weights: Mapping[str, float]

    @property
    def total(self) -> Float[Tensor, ""]:
        """The weighted sum over terms and predictions, which is differentiated."""
        return torch.stack([self.weights[name] * values.sum() for name, values in self.terms.items()]).sum()


Uniform = Callable[[tuple[int, ...]], Tensor]
"""Draws float32 numbers uniformly from [0, 1) in a given shape, on the device it was made for."""
