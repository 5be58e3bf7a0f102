from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from unimask.data.items import ItemDataset
from unimask.data.open import FORMATS, LAYOUTS
from unimask.data.rasterise import truth_segments
from unimask.data.reading import PLAIN, Reading
from unimask.data.views import view
from unimask.errors import DataError
from unimask.ops.boxes import boxes_around
from unimask.structures import Categories, Sample, Size

CATEGORIES = Categories(names=("cat",), is_thing=(True,), file_ids=(1,), colors=((0, 0, 0),))


@dataclass(frozen=True)
class Counted:
    """Counts how often it is read."""

    image_id: str
    of_boxes: bool = False
    reads: list[int] = field(default_factory=list)
    files: tuple[Path, ...] = ()

    def stated_size(self) -> tuple[Size, ...]:
        return ()

    def read(self, reading: Reading = PLAIN) -> Sample:
        self.reads.append(1)
        segments = truth_segments(torch.ones((1, 3, 5), dtype=torch.int16), [0], [False])
        truth = boxes_around(segments) if self.of_boxes else segments
        return Sample(image=torch.zeros((3, 3, 5), dtype=torch.uint8), truth=truth, image_id=self.image_id)


def test_only_what_is_asked_for_is_read() -> None:
    items = tuple(Counted(name) for name in "abcd")
    dataset = ItemDataset(categories=CATEGORIES, items=items)
    part = dataset.part([3, 1])
    assert (len(dataset), dataset.image_ids, part.image_ids) == (4, tuple("abcd"), ("d", "b"))
    assert not any(item.reads for item in items)
    assert part[1].image_id == "b"
    assert [len(item.reads) for item in items] == [0, 1, 0, 0]
    with pytest.raises(IndexError):
        part[2]


@pytest.mark.parametrize("task", ["panoptic", "semantic"])
def test_boxes_are_no_ground_truth_of_segmentation(task: str) -> None:
    dataset = ItemDataset(categories=CATEGORIES, items=(Counted("a", of_boxes=True),))
    assert view(dataset, "detection")[0].truth.boxes.tolist() == [[0, 0, 5, 3]]
    with pytest.raises(DataError, match="has boxes, but no masks"):
        view(dataset, task)[0]


def test_every_format_says_what_it_expects() -> None:
    for format_ in FORMATS:
        assert format_.layouts in LAYOUTS
        assert all(line.startswith("  ") and len(line) <= 110 for line in format_.layouts.splitlines())
    assert len({format_.layouts for format_ in FORMATS}) == len(FORMATS)
