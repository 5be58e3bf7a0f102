"""Statistics of a split of a data set, also as its images reach a model."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unimask.config.data import DataConfig, Tiles
from unimask.config.tasks import Task
from unimask.data.placing import placement_for
from unimask.ops.boxes import box_areas, boxes_around
from unimask.structures import Dataset, Detections, Sample, Segments


@dataclass(frozen=True, kw_only=True)
class SplitCheck:
    """What one split holds, as the ground truth of a task."""

    images: int  # that the annotations name
    read: int  # that were read; fewer where time ran out or files are broken
    image_size: tuple[int, int]  # (height, width), the medians; (0, 0) where none was read
    objects: dict[str, int]  # category -> segments or boxes, without crowd
    images_of: dict[str, int]  # category -> images that show it
    crowd: int  # regions that are left out of the training and neither right nor wrong in an evaluation
    without_objects: int  # images
    void_share: float  # of the pixels: neither object nor background nor crowd
    tiny: int  # objects of at most one pixel on the model's canvas
    sizes: dict[str, float]  # 10 %, 50 % and 90 % of the objects have a shorter side below; canvas pixels
    most_objects: int  # in one view: the image, or a tile
    left_out: tuple[str, ...]  # what the folder holds and is not read
    broken: tuple[str, ...]  # a sentence per file
    duplicates: tuple[tuple[str, str], ...]  # images with the same pixels
    repeated: int  # objects that lie exactly on another one of their category
    dropped: int  # objects that cover no pixel of their image
    covered: int  # objects that others cover wholly, where each pixel has one segment
    empty: int  # objects of at most one pixel of their file
    decided: tuple[str, ...]  # how images are read, and why

    @property
    def whole(self) -> bool:
        """Return whether every image was read, or tried."""
        return self.read + len(self.broken) == self.images


class Looked:
    """What was read of a split: sums, and the sizes of images and objects, as they are in the files."""

    def __init__(self, dataset: Dataset, task: Task) -> None:
        self.names, self.images, self.task = dataset.categories.names, len(dataset), task
        self.left_out: tuple[str, ...] = ()
        self.decided: tuple[str, ...] = ()
        self.objects, self.images_of = Counter[int](), Counter[int]()
        self.read = self.crowd = self.without = self.repeated = self.dropped = self.covered = 0
        self.void = self.pixels = 0
        self.corners: list[Tensor] = []  # of the objects of each image, in pixels of the file
        self.areas: list[Tensor] = []
        self.image_sizes: list[tuple[int, int]] = []
        self.broken: list[str] = []
        self.same: dict[bytes, str] = {}
        self.duplicates: list[tuple[str, str]] = []

    def add(self, sample: Sample) -> None:
        """Count one sample."""
        truth, size = sample.truth, (sample.image.shape[1], sample.image.shape[2])
        self.read += 1
        self.image_sizes.append(size)
        real = truth.labels[~truth.is_crowd].tolist()
        self.objects.update(real)
        self.images_of.update(set(real))
        self.crowd += int(truth.is_crowd.sum())
        self.without += not real
        boxes = truth if isinstance(truth, Detections) else boxes_around(truth)
        corners = boxes.boxes[~boxes.is_crowd]
        self.corners.append(corners)
        self.repeated += _repeated(boxes)
        self.dropped += sample.left_out
        self.covered += sample.covered
        own = truth.areas()[~truth.is_crowd] if isinstance(truth, Segments) else box_areas(corners)
        self.areas.append(own)
        if isinstance(truth, Segments) and self.task in ("panoptic", "semantic"):
            self.void += int((truth.layers == 0).all(dim=0).sum())
            self.pixels += size[0] * size[1]
        digest = hashlib.sha256(sample.image.numpy().tobytes()).digest()
        if digest in self.same:
            self.duplicates.append((self.same[digest], sample.image_id))
        self.same.setdefault(digest, sample.image_id)

    def result(self, config: DataConfig) -> SplitCheck:
        """Return the statistics for a model that images reach in this way."""
        all_sides, tiny, most = [torch.empty(0)], 0, 0
        for size, corners, areas in zip(self.image_sizes, self.corners, self.areas, strict=True):
            placement = placement_for(size, config)
            down, right = (new / old for new, old in zip(placement.resized, placement.original))
            width, height = (corners[:, 2:] - corners[:, :2]).unbind(1)
            all_sides.append(torch.minimum(width * right, height * down))
            tiny += int((areas * down * right <= 1).sum())
            most = max(most, _most_in_a_view(corners, config))
        sides = torch.cat(all_sides)
        shares = {"10 %": 0.1, "50 %": 0.5, "90 %": 0.9}
        return SplitCheck(
            images=self.images,
            read=self.read,
            image_size=_medians(self.image_sizes),
            objects={name: self.objects[label] for label, name in enumerate(self.names)},
            images_of={name: self.images_of[label] for label, name in enumerate(self.names)},
            crowd=self.crowd,
            without_objects=self.without,
            void_share=self.void / self.pixels if self.pixels else 0.0,
            tiny=tiny,
            sizes={name: _quantile(sides, share) for name, share in shares.items()} if len(sides) else {},
            most_objects=most,
            left_out=self.left_out,
            broken=tuple(self.broken),
            duplicates=tuple(self.duplicates),
            repeated=self.repeated,
            dropped=self.dropped,
            covered=self.covered,
            empty=sum(int((areas <= 1).sum()) for areas in self.areas),
            decided=self.decided,
        )


def _repeated(boxes: Detections) -> int:
    """Return how many objects have the category, the box and the area of another one."""
    numbers = (boxes.boxes, boxes.labels[:, None], boxes.areas[:, None])
    rows = torch.cat([one.double() for one in numbers], dim=1)[~boxes.is_crowd]
    return len(rows) - len(rows.unique(dim=0))


def _most_in_a_view(boxes: Float[Tensor, "boxes 4"], config: DataConfig) -> int:
    """Return the most objects in one view of the model; in tiles, those whose centres lie in one tile."""
    if not isinstance(config.view, Tiles) or not len(boxes):
        return len(boxes)
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    _, counts = (middles // config.view.size).unique(dim=0, return_counts=True)
    return int(counts.max())


def _medians(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    if not sizes:
        return 0, 0
    heights, widths = zip(*sizes)
    return sorted(heights)[len(sizes) // 2], sorted(widths)[len(sizes) // 2]


def _quantile(values: Tensor, share: float) -> float:
    ordered = values.sort().values
    return round(float(ordered[min(len(ordered) - 1, int(share * len(ordered)))]), 1)
