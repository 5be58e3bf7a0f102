"""Results in napari and FiftyOne: by the forms that these document, and by the packages where they are."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image
from results.found_shapes import CATEGORIES, SIZE, boxes, segments

import unimask
from unimask.errors import DataError
from unimask.results.result import Result


def semantic() -> Result:
    """Three segments of two categories that do not overlap, the second one without pixels."""
    one = segments()
    flat = one.prediction.layers.amax(dim=0, keepdim=True)
    return replace(one, task="semantic", prediction=replace(one.prediction, layers=flat))


# napari


def test_layers_of_labels_and_their_features() -> None:
    one = segments()
    first, second = one.to_napari(pixel_size=0.5)
    for number, (data, about, kind) in enumerate((first, second)):
        assert kind == "labels"
        assert about["name"] == f"one instance {number + 1}"
        assert np.array_equal(data, one.id_maps()[number])
        features = about["features"]
        assert "image" not in features
        (index,) = features["index"].tolist()
        assert features["category"].tolist() == [one[number].category]
        assert features["area"].tolist() == [(data == index).sum()]
        assert features["area_um2"].tolist() == [(data == index).sum() / 4]
    (layer,) = segments(empty=True).to_napari()
    assert not layer[0].any()
    assert len(layer[1]["features"]["index"]) == 0
    (layer,) = semantic().to_napari()
    assert layer[1]["name"] == "one semantic"
    assert layer[1]["features"]["index"].tolist() == [1, 3]


def test_boxes_are_rectangles_where_napari_has_them() -> None:
    """Its pixels have their centres at whole numbers, so that its image begins at -0.5."""
    ((corners, about, kind),) = boxes().to_napari()
    assert kind == "shapes"
    assert corners[0].tolist() == [[3.75, 3.0], [3.75, 20.0], [30.5, 20.0], [30.5, 3.0]]
    assert about["edge_color"][0] == pytest.approx(np.array([4, 5, 6]) / 255)
    assert about["features"]["category"].tolist() == ["dog", "cat"]


@pytest.mark.parametrize("one", [segments(), segments(empty=True), semantic(), boxes(), boxes(count=0)])
def test_napari_makes_these_layers(one: Result) -> None:
    layers = pytest.importorskip("napari.layers", reason="napari is not installed")
    for data, about, kind in one.to_napari():
        made = layers.Layer.create(data, about, kind)
        assert type(made).__name__.lower() == kind
        assert np.array_equal(np.asarray(made.data), data)
        assert list(made.features.columns) == list(about["features"])
        if kind == "labels" and data.any():
            row, column = np.argwhere(data)[0].tolist()
            shown = " ".join(made._get_properties((row, column)))
            assert f"category: {one[0].category if data[row, column] == 1 else 'cat'}" in shown


# FiftyOne


class Label(SimpleNamespace):
    """A label or a sample: keyword arguments become fields, and a sample's fields are its items, too."""

    def __setitem__(self, name: str, value: object) -> None:
        setattr(self, name, value)

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


class Dataset:
    """A dataset of FiftyOne without its database."""

    kept: ClassVar[dict[str | None, "Dataset"]] = {}

    def __init__(self, name: str | None = None) -> None:
        self.samples: list[Any] = []
        self.mask_targets: dict[str, object] = {}
        self.saved = False
        self.name = name
        self.kept[name] = self

    def add_samples(self, samples: Iterable[Any], num_samples: int) -> None:
        self.samples += samples
        assert len(self.samples) == num_samples

    def save(self) -> None:
        self.saved = True

    def delete(self) -> None:
        del self.kept[self.name]


@pytest.fixture(params=["stand-in", "package"])
def fiftyone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    if request.param == "package":
        module = pytest.importorskip("fiftyone", reason="fiftyone is not installed")
    else:
        module = ModuleType("fiftyone")
        for name in ("Detection", "Detections", "Segmentation", "Sample"):
            monkeypatch.setattr(module, name, Label, raising=False)
        monkeypatch.setitem(sys.modules, "fiftyone", module)
    monkeypatch.setattr(module, "Dataset", Dataset, raising=False)
    monkeypatch.setattr(Dataset, "kept", {})
    return module


def test_detections_with_masks(fiftyone: ModuleType) -> None:
    one = segments()
    found = one.to_fiftyone()
    assert isinstance(found, fiftyone.Detections)
    assert [each.label for each in found.detections] == ["dog", "cat"]
    assert [each.confidence for each in found.detections] == pytest.approx([0.9, 0.7])
    assert [each.index for each in found.detections] == [1, 3]
    height, width = SIZE
    for each, mask, area in zip(found.detections, one.masks, (755, 320), strict=True):
        assert each.area == area
        box = np.array(each.bounding_box) * (width, height, width, height)
        left, top, box_width, box_height = box.round().astype(int).tolist()
        assert np.allclose(box, [left, top, box_width, box_height])
        painted = np.zeros(SIZE, dtype=bool)
        painted[top : top + box_height, left : left + box_width] = each.mask
        assert np.array_equal(painted, mask)
    assert segments(empty=True).to_fiftyone().detections == []


def test_detections_of_boxes(fiftyone: ModuleType) -> None:
    first, second = boxes().to_fiftyone().detections
    assert np.array(first.bounding_box) == pytest.approx(np.array([3.5 / 59, 4.25 / 43, 17 / 59, 26.75 / 43]))
    assert (first.label, second.label, first.mask) == ("dog", "cat", None)


def test_categories_of_a_segmentation(fiftyone: ModuleType) -> None:
    one = semantic()
    found = one.to_fiftyone()
    assert isinstance(found, fiftyone.Segmentation)
    assert found.mask.dtype == np.uint8
    wanted = np.zeros(SIZE, dtype=int)
    for mask, label in zip(one.masks, one.labels, strict=True):
        wanted[mask] = label + 1
    assert np.array_equal(found.mask, wanted)


def save_images(folder: Path, results: Path, make: Callable[[], Result]) -> None:
    """Three images, of which two have results; two share a stem."""
    folder.mkdir()
    for file, name in (("one.png", "one_png"), ("one.tif", "one_tif"), ("two.png", "")):
        Image.fromarray(make().image.permute(1, 2, 0).numpy()).save(folder / file)
        if name:
            make().save(results, name)


@pytest.mark.parametrize("make", [segments, semantic, boxes])
def test_a_folder_becomes_a_dataset(fiftyone: ModuleType, tmp_path: Path, make: Callable[[], Result]) -> None:
    save_images(tmp_path / "images", tmp_path / "found", make)
    dataset = unimask.fiftyone_dataset(tmp_path / "found", tmp_path / "images", "photos", field="ours")
    assert dataset.name == "photos"
    files = [str(tmp_path / "images" / name) for name in ("one.png", "one.tif", "two.png")]
    assert [sample.filepath for sample in dataset.samples] == files
    for sample in dataset.samples[:2]:
        assert type(sample["ours"]) is type(make().to_fiftyone())
    assert not hasattr(dataset.samples[2], "ours")
    names = dict(enumerate(CATEGORIES.names, 1))
    assert dataset.mask_targets == ({"ours": names} if make is semantic else {})
    assert dataset.saved == (make is semantic)


def test_a_dataset_is_whole_or_absent(fiftyone: ModuleType, tmp_path: Path) -> None:
    save_images(tmp_path / "images", tmp_path / "found", segments)
    (tmp_path / "found" / "one_tif.json").write_text("{}")
    with pytest.raises(DataError, match=r"one_tif\.json: is no result of unimask"):
        unimask.fiftyone_dataset(tmp_path / "found", tmp_path / "images", "photos")
    with pytest.raises(
        DataError, match=r"none: has no result of an image in .*; expected for example one_png"
    ):
        unimask.fiftyone_dataset(tmp_path / "none", tmp_path / "images", "photos")
    assert Dataset.kept == {}
