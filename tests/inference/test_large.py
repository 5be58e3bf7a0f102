"""Pictures that do not fit into memory, against the same picture seen at once."""

import csv
import json
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.command_line import CATEGORIES, refused, save_tiny_model, unimask
from jaxtyping import UInt8
from torch import Tensor

from unimask.checkpoints.images import ModelFile
from unimask.config.tasks import Task
from unimask.data.windows import InMemory, open_large
from unimask.errors import DataError
from unimask.inference.joining import categories_united
from unimask.inference.large import segment_large
from unimask.inference.loading import load
from unimask.inference.segmenter import Segmenter
from unimask.inference.stitching import Stitcher
from unimask.inference.storage import DiskStorage
from unimask.inference.tiles import tiling_of
from unimask.ops.id_maps import pack_masks
from unimask.presets.own_data import tiny
from unimask.results.folder import join_parts
from unimask.results.measures import MEASURES, measure_layers
from unimask.structures import Segments

tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")


class Blobs(Segmenter):
    """Finds connected bright spots, each an object; what a tile's border cuts off it sees in part."""

    def __init__(self) -> None:
        about = ModelFile(
            experiment=tiny(), task="panoptic", categories=CATEGORIES, licence="", provenance=""
        )
        super().__init__(torch.nn.Identity(), about)

    def find(
        self,
        images: Iterable[UInt8[Tensor, "3 _height _width"]],
        task: Task,
        *,
        threshold: float | None = None,
        batch_size: int = 8,
    ) -> Iterator[Segments]:
        from scipy import ndimage

        for image in images:
            numbers, count = ndimage.label(image[0].numpy() > 128)
            masks = torch.from_numpy(numbers[None] == np.arange(1, count + 1)[:, None, None])
            yield Segments(
                layers=pack_masks(masks),
                labels=torch.zeros(count, dtype=torch.int64),
                scores=masks.flatten(1).sum(1).float() / 10_000,
                is_crowd=torch.zeros(count, dtype=torch.bool),
            )


def spots(height: int, width: int, step: int = 41, radius: int = 14) -> UInt8[Tensor, "3 height width"]:
    """Discs on a skewed grid, some of them on every border between tiles."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    skewed = x + y // 5
    inside = ((y % step - step // 2) ** 2 + (skewed % step - step // 2) ** 2) < radius**2
    return (inside.to(torch.uint8) * 255).expand(3, -1, -1).contiguous()


@pytest.mark.parametrize("task", ["panoptic", "instance"])
@pytest.mark.parametrize(("side", "overlap"), [(128, 48), (97, 61)])
def test_tiles_give_what_the_whole_gives(tmp_path: Path, task: Task, side: int, overlap: int) -> None:
    """An object on a border between tiles is one object, also where an overlap reaches over two tiles."""
    image = spots(307, 401)
    blobs = Blobs()
    (whole,) = blobs.find([image], task)
    result = segment_large(blobs.with_tiles(side, overlap), InMemory(image), task, tmp_path, "map")
    found = tifffile.imread(tmp_path / "map.segments.tif")
    assert found.dtype == np.uint32
    assert len(result.segments) == len(whole) == found.max()
    joint = whole.layers[0].long() * 10_000 + torch.from_numpy(found.astype(np.int64))
    assert len(joint.unique()) == len(whole) + 1  # one to one, and so is the background
    areas = np.bincount(found.ravel(), minlength=len(result.segments) + 1)
    for segment in result.segments:
        rows, columns = np.nonzero(found == segment.id)
        assert areas[segment.id] == segment.area
        assert segment.bbox == (
            columns.min(), rows.min(), columns.max() - columns.min() + 1, rows.max() - rows.min() + 1
        )  # fmt: skip
    assert {path.name for path in tmp_path.glob("[!.]*")} == {"map.segments.tif", "map.json"}


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_a_category_without_objects_is_one_segment_over_all_tiles(tmp_path: Path, task: Task) -> None:
    """Of a category that reaches a tile's core with a few pixels only, too: no border cuts it off."""

    class Halves(Blobs):
        def find(self, images: Iterable[Tensor], *arguments: object, **options: object) -> Iterator[Segments]:
            for image in images:
                bright = (image[0] > 128).to(torch.int16)
                yield Segments(
                    layers=2 - bright[None],
                    labels=torch.tensor([2, 1 if task == "semantic" else 2]),
                    scores=torch.tensor([0.5, 0.9]),
                    is_crowd=torch.zeros(2, dtype=torch.bool),
                )

    image = torch.zeros(3, 150, 211, dtype=torch.uint8)
    image[:, 70:76, 80:140] = 255  # in the overlap of all tiles
    result = segment_large(Halves().with_tiles(120, 60), InMemory(image), task, tmp_path, "map")
    found = tifffile.imread(tmp_path / "map.segments.tif")
    assert (found > 0).all()
    areas = [360, 150 * 211 - 360] if task == "semantic" else [150 * 211]
    assert sorted(one.area for one in result.segments) == areas
    if task == "semantic":
        assert (found == found[72, 100]).sum() == 360


@pytest.mark.parametrize("layout", ["strips", "tiles", "grey"])
def test_windows_of_a_tiff(tmp_path: Path, layout: str) -> None:
    pytest.importorskip("zarr", reason="zarr is not installed")
    pixels = np.random.default_rng(0).integers(0, 256, (203, 157, 3), dtype=np.uint8)
    options = {"strips": {"rowsperstrip": 16}, "tiles": {"tile": (64, 64), "compression": "zlib"}, "grey": {}}
    stored = pixels[..., 0] if layout == "grey" else pixels
    tifffile.imwrite(tmp_path / "a.tif", stored, **options[layout])
    with open_large(tmp_path / "a.tif") as picture:
        assert picture.size == (203, 157)
        window = picture.read(slice(50, 141), slice(13, 157))
    expected = pixels[50:141, 13:157, :1].repeat(3, 2) if layout == "grey" else pixels[50:141, 13:157]
    assert (window.numpy() == expected.transpose(2, 0, 1)).all()


def test_tiffs_of_other_pixels_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("zarr", reason="zarr is not installed")
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((20, 30), dtype=np.float32))
    with pytest.raises(DataError, match=r"a\.tif: is a TIFF of shape \(20, 30\) and type float32"):
        open_large(tmp_path / "a.tif").__enter__()
    (tmp_path / "b.tif").write_bytes(b"II*\0 broken")
    with pytest.raises(DataError, match=r"b\.tif: the TIFF cannot be read"):
        open_large(tmp_path / "b.tif").__enter__()


def test_a_table_of_an_image_larger_than_memory(tmp_path: Path) -> None:
    """It is measured in the id map a few rows at a time, as one that fits is measured at once."""
    image = spots(307, 401)
    segment_large(
        Blobs().with_tiles(128, 48), InMemory(image), "instance", tmp_path, "map", table=True, pixel_size=0.5
    )
    ids = tifffile.imread(tmp_path / "map.segments.tif").astype(np.int64)
    join_parts(tmp_path, ["map"], ["csv"])
    assert {path.name for path in tmp_path.glob("[!.]*")} == {
        "map.segments.tif", "map.json", "segments.csv", "images.csv"
    }  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "segments.csv").read_text().splitlines()))
    measured = measure_layers(ids[None], image.numpy(), len(rows))
    for row, column in zip(rows, measured.T, strict=True):
        assert [float(row[name]) for name in MEASURES] == pytest.approx(column.tolist(), abs=1e-5)
        assert float(row["perimeter_um"]) == pytest.approx(float(row["perimeter"]) / 2, abs=1e-5)


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_the_command_line_takes_large_tiffs(
    tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("zarr", reason="zarr is not installed")
    model = save_tiny_model(tmp_path / "model")
    image = np.kron(np.random.default_rng(0).integers(0, 256, (5, 7, 3)), np.ones((29, 31, 1))).astype(
        np.uint8
    )
    tifffile.imwrite(tmp_path / "slide.tif", image, tile=(64, 64))
    monkeypatch.setattr("unimask.inference.stream.MOST_PIXELS", 20_000)
    outcome = unimask(
        "predict", tmp_path / "slide.tif", "--weights", model, "--output", tmp_path / "out",
        "--task", task, "--tile", 96, "--overlap", 32,
    )  # fmt: skip
    assert outcome.code == 0, outcome
    about = json.loads((tmp_path / "out" / "slide.json").read_text())
    numbers = tifffile.imread(tmp_path / "out" / "slide.segments.tif")
    assert numbers.shape == image.shape[:2] == (about["height"], about["width"])
    areas = np.bincount(numbers.ravel(), minlength=len(about["segments"]) + 1)
    assert [one["area"] for one in about["segments"]] == areas[1:].tolist()
    refusal = refused(
        "predict", tmp_path / "slide.tif", "--weights", model, "--output", tmp_path / "other",
        "--task", task, "--tile", 96, "--overlap", 32, "--format", "csv,geojson",
    )  # fmt: skip
    assert "slide.tif: is too large for --format geojson; there are png,json,csv" in refusal
    if task == "semantic":
        names = [one["category"] for one in about["segments"]]
        assert len(set(names)) == len(names)
        assert areas[0] == 0


def test_memory_does_not_grow_with_the_picture(tmp_path: Path) -> None:
    """Images that are made up as they are read; the larger one has 9 times the pixels.

    The pixels of the larger one would be 22 MB, its id map 30 MB and the segments of its tiles 19 MB.
    """

    class Dots(Blobs):
        def find(self, images: Iterable[Tensor], *arguments: object, **options: object) -> Iterator[Segments]:
            for image in images:
                layers = np.zeros((1, *image.shape[1:]), dtype=np.int16)  # of NumPy, so that it is counted
                layers[0, 100:110, 100:110] = 1
                none = torch.zeros(1, dtype=torch.bool)
                label, score = torch.zeros(1, dtype=torch.int64), torch.ones(1)
                yield Segments(layers=torch.from_numpy(layers), labels=label, scores=score, is_crowd=none)

    class Endless:
        def __init__(self, height: int, width: int) -> None:
            self.size = (height, width)

        def read(self, rows: slice, columns: slice) -> Tensor:
            shape = (3, rows.stop - rows.start, columns.stop - columns.start)
            return torch.zeros(shape, dtype=torch.uint8)

    peaks: list[int] = []
    for height, width in ((928, 928), (2_720, 2_720)):
        tracemalloc.start()
        segmenter = Dots().with_tiles(256, 32)
        result = segment_large(segmenter, Endless(height, width), "instance", tmp_path, "map")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(result.segments) == ((height - 32) // 224) ** 2
        with tifffile.TiffFile(tmp_path / "map.segments.tif") as file:
            assert file.pages[0].shape == (height, width)
    assert peaks[1] < peaks[0] + 8e6  # 256 rows of the map, and of what is made of them


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_memory_and_disk_join_to_the_same_segments(tmp_path: Path, task: Task) -> None:
    """A real model with random weights, whose tiles do not agree: the size of an image decides nothing."""
    segmenter = load(save_tiny_model(tmp_path / "model"), device="cpu").with_tiles(64, 24)
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (23, 31, 3), dtype=np.uint8).repeat(9, 0).repeat(8, 1)
    image = torch.from_numpy(coarse).permute(2, 0, 1).contiguous()
    threshold = None if task == "semantic" else 0.3
    (whole,) = segmenter.find([image], task, threshold=threshold)
    assert len(whole) > 2

    tiles = tiling_of((207, 248), segmenter.model_file.experiment.data).tiles
    storage = DiskStorage(tmp_path)
    unites = categories_united(segmenter.categories, task)
    stitcher = Stitcher((207, 248), unites, overlapping=task == "instance", storage=storage)
    windows = (image[:, *tile.window] for tile in tiles)
    for tile, found in zip(tiles, segmenter.find(windows, task, threshold=threshold), strict=True):
        stitcher.add(tile, found)
    on_disk = stitcher.stitch().segments()
    storage.close()
    assert all(torch.equal(one, other) for one, other in zip(vars(on_disk).values(), vars(whole).values()))

    result = segment_large(segmenter, InMemory(image), task, tmp_path, "map", threshold=threshold)
    numbers = tifffile.imread(tmp_path / "map.segments.tif").astype(np.int64)
    layers = whole.layers.long()
    best = torch.where(layers > 0, layers, len(whole) + 1).amin(dim=0)  # numbered by falling score
    shown = best[best <= len(whole)].unique()
    table = torch.zeros(len(whole) + 2, dtype=torch.int64)
    table[shown] = torch.arange(1, len(shown) + 1)
    assert torch.equal(torch.from_numpy(numbers), table[best])
    scores = [one.score for one in result.segments]
    assert scores == pytest.approx(whole.scores[shown - 1].tolist(), abs=1e-6)


def test_tiles_are_checked() -> None:
    with pytest.raises(Exception, match="below the size"):
        Blobs().with_tiles(10, 10)
