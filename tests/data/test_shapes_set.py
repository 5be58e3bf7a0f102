import pytest
import torch

from unimask.data.formats.shapes import shapes_dataset


def test_a_picture_is_a_function_of_seed_and_index() -> None:
    first, again, other = (shapes_dataset(size=(37, 53), count=9, seed=seed) for seed in (4, 4, 5))
    for index in range(9):
        assert torch.equal(first[index].image, again[index].image)
        assert torch.equal(first[index].truth.layers, again[index].truth.layers)
        assert not torch.equal(first[index].image, other[index].image)
    assert first[3].image_id == first.image_ids[3] == "shapes_4_00003"
    assert torch.equal(shapes_dataset(size=(37, 53), count=900, seed=4)[3].image, first[3].image)


def test_truth_covers_the_picture_once() -> None:
    dataset = shapes_dataset(size=(64, 96), count=60)
    seen = set()
    for index in range(60):
        segments = dataset[index].truth
        assert segments.layers.shape == (1, 64, 96)
        assert bool((segments.layers > 0).all())
        assert int(segments.areas().min()) > 0
        labels = segments.labels.tolist()
        stuff = [label for label in labels if label > 2]
        assert 1 <= len(stuff) == len(set(stuff))
        assert len(labels) - len(stuff) <= 6
        seen |= set(labels)
    assert seen == set(range(6))
    assert any(bool((dataset[index].truth.labels > 2).all()) for index in range(60))


def test_things_have_one_color_and_their_shape() -> None:
    dataset = shapes_dataset(size=(64, 96), count=40, most=1)
    for index in range(40):
        sample = dataset[index]
        for mask, label in zip(sample.truth.masks(), sample.truth.labels.tolist()):
            if label > 2:
                continue
            assert float(sample.image[:, mask].float().std(1).max()) < 12
            rows, columns = mask.nonzero().T
            inside = min(rows.min(), columns.min()) > 0 and rows.max() < 63 and columns.max() < 95
            if inside and label == 0:
                height, width = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
                assert abs(height - width) <= 1
                assert int(mask.sum()) == pytest.approx(3.1416 / 4 * height * width, rel=0.12)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 401), (401, 5)])
def test_any_size(size: tuple[int, int]) -> None:
    dataset = shapes_dataset(size=size, count=12)
    for index in range(12):
        assert dataset[index].image.shape == (3, *size)
        assert bool((dataset[index].truth.layers > 0).all())


def test_index_out_of_range() -> None:
    with pytest.raises(IndexError):
        shapes_dataset(count=3)[3]
    assert len(list(iter(shapes_dataset(size=(5, 5), count=3)))) == 3
