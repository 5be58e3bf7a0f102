from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unimask.data.rasterise import LayerPainter, truth_segments
from unimask.data.views import as_instance, as_panoptic, as_semantic, match_categories, view
from unimask.errors import DataError
from unimask.structures import Categories, Sample, Segments


def categories(things: str = "cat dog", stuff: str = "") -> Categories:
    names = (*things.split(), *stuff.split())
    count = len(things.split())
    return Categories(
        names=names,
        is_thing=tuple(index < count for index in range(len(names))),
        file_ids=tuple(range(1, len(names) + 1)),
        colors=((0, 0, 0),) * len(names),
    )


@dataclass(frozen=True)
class Listed:
    categories: Categories
    segments: list[Segments]

    def __len__(self) -> int:
        return len(self.segments)

    def __getitem__(self, index: int) -> Sample:
        segments = self.segments[index]
        return Sample(
            image=torch.zeros((3, *segments.size), dtype=torch.uint8), truth=segments, image_id=str(index)
        )


def paint(masks: Tensor, labels: list[int], crowd: list[bool] | None = None) -> Segments:
    painter = LayerPainter((masks.shape[1], masks.shape[2]))
    for mask in masks:
        painter.add(mask.flatten().nonzero()[:, 0].numpy())
    return truth_segments(painter.result(), labels, crowd or [False] * len(labels))


def rows(*spans: tuple[int, int], height: int = 7, width: int = 5) -> Tensor:
    masks = torch.zeros((len(spans), height, width), dtype=torch.bool)
    for index, (first, last) in enumerate(spans):
        masks[index, first:last] = True
    return masks


def test_panoptic_gives_overlaps_to_the_smaller_segment() -> None:
    segments = paint(rows((0, 4), (3, 5), (6, 7)), [0, 1, 0])
    result = as_panoptic(Listed(categories(), [segments]), background=False)[0].truth
    assert result.layers[0, :, 2].tolist() == [1, 1, 1, 2, 2, 0, 3]
    assert result.labels.tolist() == [0, 1, 0]


def test_panoptic_background_covers_what_is_free_but_not_crowds() -> None:
    segments = paint(rows((0, 2), (1, 4)), [0, 1], [False, True])
    dataset = as_panoptic(Listed(categories(), [segments]))
    assert dataset.categories.names == ("cat", "dog", "background")
    assert dataset.categories.is_thing == (True, True, False)
    assert dataset.categories.file_ids == (1, 2, 3)
    result = dataset[0].truth
    assert result.layers[0, :, 0].tolist() == [1, 1, 2, 2, 3, 3, 3]
    assert result.labels.tolist() == [0, 1, 2]
    assert result.is_crowd.tolist() == [False, True, False]


def test_a_picture_without_segments_is_background() -> None:
    dataset = as_panoptic(Listed(categories(), [paint(rows()[:0], [])]))
    assert dataset[0].truth.labels.tolist() == [2]
    assert bool((dataset[0].truth.layers == 1).all())


def test_crowds_lose_even_when_they_are_small_and_covered_segments_go() -> None:
    segments = paint(rows((0, 6), (2, 3), (2, 3), (6, 7)), [0, 1, 0, 0], [False, True, False, False])
    result = as_panoptic(Listed(categories(), [segments]), background=False)[0].truth
    assert result.layers[0, :, 0].tolist() == [1, 1, 2, 1, 1, 1, 3]
    assert result.labels.tolist() == [0, 0, 0]
    assert not bool(result.is_crowd.any())


def test_data_with_stuff_keeps_its_void_and_merges_its_stuff() -> None:
    segments = paint(rows((0, 1), (1, 2), (3, 4), (5, 6)), [0, 2, 2, 0])
    dataset = as_panoptic(Listed(categories("cat dog", "grass"), [segments]))
    assert dataset.categories.names == ("cat", "dog", "grass")
    assert dataset[0].truth.layers[0, :, 0].tolist() == [1, 2, 0, 2, 0, 3, 0]
    assert dataset[0].truth.labels.tolist() == [0, 2, 0]


def test_semantic_merges_everything_crowds_too() -> None:
    segments = paint(rows((0, 1), (1, 2), (2, 4)), [1, 0, 1], [False, False, True])
    dataset = as_semantic(Listed(categories(), [segments]))
    result = dataset[0].truth
    assert dataset.categories.names == ("cat", "dog", "background")
    assert result.layers[0, :, 0].tolist() == [1, 2, 1, 1, 3, 3, 3]
    assert result.labels.tolist() == [1, 0, 2]
    assert not bool(result.is_crowd.any())
    assert as_semantic(Listed(categories(), [segments]), background=False)[0].truth.labels.tolist() == [
        1,
        0,
    ]


def test_instance_keeps_things_and_overlaps_and_renumbers_categories() -> None:
    mixed = Categories(
        names=("sky", "cat", "grass", "dog"),
        is_thing=(False, True, False, True),
        file_ids=(4, 5, 6, 9),
        colors=((1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 4, 4)),
    )
    segments = paint(rows((0, 7), (0, 3), (2, 5), (5, 7)), [0, 1, 3, 2], [False, True, False, False])
    dataset = as_instance(Listed(mixed, [segments]))
    assert dataset.categories.names == ("cat", "dog")
    assert dataset.categories.file_ids == (5, 9)
    assert dataset.categories.colors == ((2, 2, 2), (4, 4, 4))
    result = dataset[0].truth
    assert result.labels.tolist() == [0, 1]
    assert result.is_crowd.tolist() == [True, False]
    assert torch.equal(result.masks(), segments.masks()[1:3])
    assert result.layers.shape[0] == 2
    with pytest.raises(DataError, match="only stuff"):
        as_instance(Listed(categories("", "sky sea"), []))


def test_a_category_called_background_does_not_clash() -> None:
    dataset = as_panoptic(Listed(categories("background cat"), []))
    assert dataset.categories.names == ("background", "cat", "unlabelled")


def test_view_chooses_by_task() -> None:
    dataset = Listed(categories(), [paint(rows((0, 4), (3, 5)), [0, 0])])
    assert view(dataset, "instance")[0].truth.layers.shape[0] == 2
    assert len(view(dataset, "panoptic")[0].truth) == 3
    assert len(view(dataset, "panoptic", background=False)[0].truth) == 2
    assert len(view(dataset, "semantic")[0].truth) == 2


def test_match_categories_relabels_by_name() -> None:
    dataset = Listed(categories("cat dog", "grass"), [paint(rows((0, 1), (1, 2), (2, 3)), [0, 1, 2])])
    model = Categories(
        names=("grass", "bird", "dog", "cat"),
        is_thing=(False, True, True, True),
        file_ids=(1, 2, 3, 4),
        colors=((0, 0, 0),) * 4,
    )
    matched = match_categories(dataset, model, "panoptic")
    assert matched.categories == model
    assert matched[0].truth.labels.tolist() == [3, 2, 0]
    assert torch.equal(matched[0].truth.layers, dataset[0].truth.layers)
    with pytest.raises(
        DataError, match=r"1 category that the model does not know: grass; the model knows: cat, dog"
    ):
        match_categories(dataset, categories("cat dog"), "panoptic")
    with pytest.raises(DataError, match="'grass' is stuff in the data and a thing in the model"):
        match_categories(dataset, categories("cat dog grass"), "panoptic")
    assert match_categories(dataset, categories("cat dog grass"), "semantic")[0].truth.labels.tolist() == [
        0,
        1,
        2,
    ]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 9), st.booleans())
def test_views_preserve_pixels(seed: int, count: int, background: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand((count, 11, 13), generator=generator) < 0.3
    labels = torch.randint(0, 4, (count,), generator=generator).tolist()
    crowd = (torch.rand(count, generator=generator) < 0.2).tolist()
    listed = Listed(categories("a b", "c d"), [paint(masks, labels, crowd)])
    covered = masks.any(0)
    panoptic = as_panoptic(listed, background=background)[0].truth
    assert panoptic.layers.shape[0] == 1
    assert torch.equal(panoptic.layers[0] > 0, covered)
    assert bool((panoptic.areas() > 0).all())
    for mask, label in zip(panoptic.masks(), panoptic.labels.tolist()):
        same = [index for index in range(count) if labels[index] == label]
        assert not bool((mask & ~masks[same].any(0)).any())
    semantic = as_semantic(listed, background=background)[0].truth
    assert torch.equal(semantic.layers[0] > 0, covered)
    assert len(set(semantic.labels.tolist())) == len(semantic)
    flat = torch.full((11, 13), -1)
    for number, label in enumerate(panoptic.labels.tolist(), 1):
        flat[panoptic.layers[0] == number] = label
    for mask, label in zip(semantic.masks(), semantic.labels.tolist()):
        assert torch.equal(mask, flat == label)
    instance = as_instance(listed)[0].truth
    things = [index for index in range(count) if labels[index] < 2]
    assert torch.equal(instance.masks(), masks[things])
    assert instance.labels.tolist() == [labels[index] for index in things]
