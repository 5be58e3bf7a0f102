"""The images of an evaluation that are kept, a folder of them, and the figure of what was taken for what."""

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from unimask.data.formats.shapes import shapes_dataset
from unimask.data.views import view
from unimask.errors import DataError
from unimask.inference.measures import TaskMetrics
from unimask.metrics.confusion import Confusion
from unimask.results.album import Album
from unimask.results.confusion_figure import MOST_CATEGORIES, confusion_figure
from unimask.results.figure import Dot, Line, Part, Rectangle, Text, as_image, as_svg, beside
from unimask.results.gallery import MOST, Gallery, shrink, shrink_truth, spread

SHAPES = shapes_dataset(size=(43, 61), count=12, seed=3)


def test_the_same_images_and_the_worst_ones_are_kept() -> None:
    whole, parts = Gallery([2, 5]), [Gallery([2, 5]), Gallery([2, 5])]
    for index in range(len(SHAPES)):
        quality = (7 * index % 12) / 12
        for gallery in (whole, parts[index % 2]):
            gallery.add(index, SHAPES[index], SHAPES[index].truth, quality)
    parts[0].merge(parts[1])
    for gallery in (whole, parts[0]):
        assert [example.index for example in gallery.same()] == [2, 5]
        worst = gallery.worst()
        assert [example.index for example in worst] == sorted(range(12), key=lambda k: 7 * k % 12)[:MOST]
        assert [example.quality for example in worst] == [k / 12 for k in range(MOST)]
    assert spread(3) == [0, 1, 2]
    assert spread(1) == [0]
    assert spread(100) == [0, 14, 28, 42, 57, 71, 85, 99]


@pytest.mark.parametrize(
    ("side", "size"), [(30, (21, 30)), (61, (43, 61)), (130, (86, 122)), (900, (172, 244))]
)
def test_images_are_kept_small(side: int, size: tuple[int, int]) -> None:
    sample = SHAPES[0]
    small = shrink(sample, side)
    assert small.image.shape[1:] == size == small.truth.size
    boxes = view(SHAPES, "detection")[0]
    moved = shrink_truth(boxes.truth, boxes, side)
    scale = torch.tensor([size[1] / 61, size[0] / 43] * 2)
    assert torch.allclose(moved.boxes, boxes.truth.boxes * scale)
    if side == 130:  # every pixel twice in both directions
        assert torch.equal(small.image[:, ::2, ::2], sample.image)
        assert torch.equal(small.truth.layers[:, 1::2, 1::2], sample.truth.layers)


def test_a_folder_of_an_evaluation(tmp_path: Path) -> None:
    data = view(SHAPES, "semantic")
    album, metrics = (
        Album(tmp_path / "new", data.categories, "mIoU"),
        TaskMetrics("semantic", data.categories, 0.5),
    )
    for index, name in enumerate(("a/b", "A_b", "..", "c")):
        sample = replace(data[index], image_id=name)
        album.add(index, sample, sample.truth, metrics.update(sample.truth, sample.truth))
    album.finish(metrics.table())
    written = sorted(str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*.*"))
    images = [f"images/{name}.png" for name in ("A_b_2", "a_b", "c", "image")]
    assert written == ["confusion.json", "confusion.png", *images, "worst.png"]
    table = json.loads((tmp_path / "new" / "confusion.json").read_text())
    assert (table["unit"], len(table["matrix"])) == ("pixels", len(data.categories) + 1)
    with Image.open(tmp_path / "new" / "images" / "c.png") as drawn:
        left, right = np.array(drawn)[40:, :256], np.array(drawn)[40:, 256:512]
    assert drawn.width == 2 * (244 + 12) + 12
    assert (left == right).mean() > 0.9  # the truth was found


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    album = Album(tmp_path / "file", SHAPES.categories, "mIoU")
    with pytest.raises(DataError, match="cannot be written"):
        album.add(0, SHAPES[0], SHAPES[0].truth, 1.0)


def confusion(categories: int, unit: str = "segments") -> Confusion:
    matrix = np.eye(categories + 1, dtype=int) * 50
    matrix[0, -1] = 7
    matrix[-1, -1] = 0
    outcomes = {"right": 50 * categories, "confused": 0, "missed": 7, "false": 0}
    by_size = (
        {}
        if unit == "pixels"
        else {"small": outcomes, "medium": dict.fromkeys(outcomes, 0), "large": outcomes}
    )
    names = tuple(f"<category {number}>" for number in range(categories))
    return Confusion(unit=unit, names=names, matrix=tuple(map(tuple, matrix.tolist())), by_size=by_size)


@pytest.mark.parametrize(("categories", "unit"), [(1, "boxes"), (4, "segments"), (40, "pixels")])
def test_the_figure_of_what_was_taken_for_what(categories: int, unit: str) -> None:
    part = confusion_figure(confusion(categories, unit), "after step 3")
    drawing = ElementTree.fromstring(as_svg(part))
    words = ["".join(element.itertext()) for element in drawing.iter() if element.tag.endswith("text")]
    named = min(categories, MOST_CATEGORIES)
    assert sum(word.startswith("<category") for word in words) == 2 * named
    assert {"88", "12"} <= set(words) or categories > 20  # percent of the first row
    assert ("missed" in words) == (unit != "pixels") == (f"{unit} by size" in words)
    assert as_image(part).size == (2 * part.width, 2 * part.height)
    confusion_figure(Confusion(unit="boxes", names=("a",), matrix=((0, 0), (0, 0)), by_size={}), "nothing")


def test_one_figure_as_svg_and_as_an_image() -> None:
    red = Part([Rectangle(10, 20, 30, 10, "#ff0000"), Text((5, 15), "a<b", bold=True)], 60, 40)
    blue = Part([Dot((30, 20), 8, "#0000ff"), Line(((0, 5), (60, 5)), "#00ff00", 2)], 60, 40)
    both = beside([red, blue], columns=2)
    assert (both.width, both.height) == (120, 40)
    pixels = np.array(as_image(both))
    assert pixels.shape == (80, 240, 3)
    assert (pixels[41:59, 21:79] == (255, 0, 0)).all()
    assert (pixels[40, 180] == (0, 0, 255)).all()
    assert (pixels[10, 121:239] == (0, 255, 0)).all()
    drawing = as_svg(both)
    ElementTree.fromstring(drawing)
    assert '<rect x="10.0" y="20.0" width="30.0" height="10.0" fill="#ff0000"/>' in drawing
    assert "a&lt;b" in drawing
    assert "translate" not in drawing
    assert as_svg(beside([red, blue], columns=1)).count("<rect") == 2  # the paper and the box
