"""What a result holds, as arrays, as a sequence and as a picture."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from results.found_shapes import CATEGORIES, SIZE, boxes, segments
from serve.served import box_segmenter, color_segmenter, scene

from unimask.config.tasks import TASKS, Task
from unimask.errors import ConfigError
from unimask.results.result import Result


def test_arrays_have_an_entry_for_each_segment_with_pixels() -> None:
    one = segments()
    assert len(one) == len(one.segments) == 2
    assert one.masks.dtype == bool
    assert (one.masks == one.prediction.masks().numpy()[[0, 2]]).all()
    assert one.masks is one.masks  # made once
    assert one.boxes.dtype == np.float32
    assert one.boxes.tolist() == [[7, 5, 47, 37], [30, 25, 50, 41]]
    assert one.labels.dtype == np.int64
    assert one.labels.tolist() == [1, 0]
    assert one.names == ("dog", "cat")
    assert one.scores.dtype == np.float32
    assert one.scores.tolist() == pytest.approx([0.9, 0.7])
    assert [[len(part) for part in outline] for outline in one.polygons] == [[2, 1], [1]]  # a hole, a part
    assert one.polygons[1][0][0].tolist() == [[50, 25], [50, 41], [30, 41], [30, 25]]


def test_arrays_of_boxes() -> None:
    one = boxes()
    assert len(one) == 2
    assert one.boxes.tolist() == [[3.5, 4.25, 20.5, 31.0], [-2.0, 0.0, 10.0, 12.5]]
    assert one.names == ("dog", "cat")
    assert one.polygons[0][0][0].tolist() == [[3.5, 4.25], [20.5, 4.25], [20.5, 31.0], [3.5, 31.0]]
    for name in ("masks", "run_lengths"):
        with pytest.raises(ConfigError, match=f"{name}: boxes of detection have none"):
            getattr(one, name)


@pytest.mark.parametrize("one", [segments(), boxes()], ids=["segments", "boxes"])
def test_a_result_is_a_sequence(one: Result) -> None:
    assert list(one) == list(one.segments) == [one[0], one[1]]
    assert one[-1] == one.segments[-1]
    for which in (
        slice(1, None),
        [1],
        [False, True],
        np.array([False, True]),
        one.scores < 0.74,
        torch.tensor([1]),
    ):
        part = one[which]
        assert isinstance(part, Result)
        assert part.names == ("cat",)
        assert (part.boxes == one.boxes[1:]).all()
        assert part[0].id == 1  # numbered anew
        if one.task != "detection":
            assert (part.masks == one.masks[1:]).all()
    turned = one[::-1]
    assert turned.names == ("cat", "dog")
    assert (turned.boxes == one.boxes[::-1]).all()
    assert one[np.argsort(one.scores)].names == turned.names
    assert len(one[[]]) == len(one[one.scores > 1]) == 0
    assert (one.image == turned.image).all()
    with pytest.raises(IndexError):
        one[2]
    with pytest.raises(IndexError, match="take each once"):
        one[[0, 0]]
    with pytest.raises(IndexError):
        one[[True]]


@pytest.mark.parametrize("task", [*TASKS, "detection"])
def test_results_of_every_task_are_used_in_the_same_way(task: Task) -> None:
    pytest.importorskip("pandas", reason="pandas is not installed")
    segmenter = box_segmenter() if task == "detection" else color_segmenter()
    first, second = segmenter.predict([scene(1), scene(2)], task)
    assert len(first) > 1
    for one in (first, second, first[:1], first[[]]):
        frame = one.to_pandas()
        arrays = (one.segments, one.boxes, one.labels, one.names, one.scores, one.polygons, frame, list(one))
        assert [len(each) for each in arrays] == [len(one)] * len(arrays)
        assert (one.boxes.dtype, one.labels.dtype, one.scores.dtype) == (np.float32, np.int64, np.float32)
        assert one.names == tuple(one.categories.names[label] for label in one.labels)
        assert one.names == tuple(each.category for each in one) == tuple(frame.category)
        assert frame[["left", "top", "right", "bottom"]].to_numpy() == pytest.approx(one.boxes, abs=1e-3)
        for box, parts in zip(one.boxes, one.polygons, strict=True):
            corners = np.concatenate([ring for part in parts for ring in part])
            assert [*corners.min(axis=0), *corners.max(axis=0)] == pytest.approx(box.tolist(), abs=1e-3)
        if task != "detection":
            assert one.masks.shape == (len(one), 61, 83)
            assert one.masks.sum(axis=(1, 2)).tolist() == [each.area for each in one]
        assert repr(one).startswith(f"Result({one.name!r}, {task}, 83 x 61 pixels: ")
        with Image.open(io.BytesIO(one._repr_png_())) as shown:
            assert shown.size == (83, 61)


def test_one_line_says_what_was_found() -> None:
    assert repr(segments()) == "Result('one', instance, 59 x 43 pixels: 1 dog, 1 cat)"
    assert repr(segments(empty=True)) == "Result('one', instance, 59 x 43 pixels: none)"
    assert repr(boxes()) == "Result('one', detection, 59 x 43 pixels: 1 dog, 1 cat)"


def test_notebooks_show_the_picture() -> None:
    one = segments()
    with Image.open(io.BytesIO(one._repr_png_())) as shown:
        assert shown.format == "PNG"
        assert (np.asarray(shown) == np.asarray(one.plot())).all()
    large = replace(one, image=torch.zeros((3, 1300, 2400), dtype=torch.uint8), prediction=boxes().prediction)
    with Image.open(io.BytesIO(replace(large, task="detection")._repr_png_())) as shown:
        assert shown.size == (1200, 650)


# area, perimeter and centroid (x, y) of scikit-image 0.26: regionprops and perimeter_crofton
SCIKIT_IMAGE = (
    (755, 148.35734963134442, 22.426490066225167, 18.202649006622515),
    (320, 67.14955959119385, 39.5, 32.5),
)


def test_measures_are_those_of_scikit_image() -> None:
    image = torch.arange(3 * 43 * 59).reshape(3, *SIZE).remainder(251).to(torch.uint8)
    one = replace(segments(), image=image)
    table = one.to_table(pixel_size=0.5)
    for index, (area, perimeter, x, y) in enumerate(SCIKIT_IMAGE):
        assert table["area"][index] == area
        assert table["perimeter"][index] == pytest.approx(perimeter, abs=1e-5)
        assert table["centroid_x"][index] == pytest.approx(
            x + 0.5, abs=1e-5
        )  # from the corner, not the centre
        assert table["centroid_y"][index] == pytest.approx(y + 0.5, abs=1e-5)
        assert table["area_um2"][index] == pytest.approx(area / 4)
        assert table["perimeter_um"][index] == pytest.approx(perimeter / 2, abs=1e-5)
        inside = image.numpy()[:, one.masks[index]]
        assert table["mean_intensity"][index] == pytest.approx(inside.mean(), abs=1e-5)
        for name, channel in zip(("red", "green", "blue"), inside, strict=True):
            assert table[f"mean_{name}"][index] == pytest.approx(channel.mean(), abs=1e-5)
    assert table["right_um"] == [23.5, 25.0]
    assert table["count"] == [1, 1]
    assert len({len(column) for column in table.values()}) == 1
    assert {name for name in one.to_table() if name.endswith(("um", "um2"))} == set()


def test_measures_of_discs_dots_and_the_border() -> None:
    rows, columns = np.indices(SIZE)
    disc = (rows - 20) ** 2 + (columns - 30) ** 2 <= 13**2
    masks = np.stack([disc, (rows == 2) & (columns == 2), (rows < 3) & (columns > 54)])
    table = segments(masks=torch.from_numpy(masks)).to_table()
    # of scikit-image, as above; the last touches the border, which counts as its outline
    assert table["perimeter"] == pytest.approx(
        [83.5081680014271, 2.681517061334488, 12.162111551019688], abs=1e-5
    )
    assert table["perimeter"][0] == pytest.approx(2 * np.pi * 13.2, rel=0.01)


def test_measures_do_not_depend_on_how_many_rows_are_counted_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = segments().to_table()
    for rows in (1, 7):
        monkeypatch.setattr("unimask.results.measures.STRIP", rows * SIZE[1])
        assert segments().to_table() == whole


def test_boxes_are_measured_too() -> None:
    image = torch.arange(3 * 43 * 59).reshape(3, *SIZE).remainder(251).to(torch.uint8)
    table = replace(boxes(), image=image).to_table()
    assert table["area"] == [454.75, 150.0]
    assert table["perimeter"] == [87.5, 49.0]
    assert table["centroid_x"] == [12.0, 4.0]
    inside = image.numpy()[:, 4:31, 3:20]  # pixels whose centres lie in the box
    assert table["mean_intensity"][0] == pytest.approx(inside.mean(), abs=1e-5)
    assert boxes(count=0).to_table()["area"] == []


def test_pandas() -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = segments().to_pandas(pixel_size=2.0)
    assert isinstance(frame, pandas.DataFrame)
    assert frame.groupby("category").area.sum().to_dict() == {"cat": 320, "dog": 755}
    assert frame.area_um2.tolist() == [3020, 1280]
    assert list(segments(empty=True).to_pandas().columns) == list(segments().to_table())
    assert CATEGORIES.names == ("cat", "dog")
