"""Results in the words of other tools, each read back by the tool itself where it is installed."""

import base64
import csv
import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from results.found_shapes import CATEGORIES, SIZE, boxes, segments

from unimask.data.formats.label_studio import open_label_studio, unpack_brush
from unimask.data.formats.labelme import open_labelme
from unimask.data.formats.yolo import open_yolo
from unimask.errors import ConfigError, DataError
from unimask.results.result import Result
from unimask.results.writing import FORMATS


def dense(one: Result) -> np.ndarray:
    return one.prediction.masks().numpy()[[0, 2]]


def test_yolo_is_read_back_to_the_pixel(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    one = segments()
    Image.fromarray(one.image.permute(1, 2, 0).numpy()).save(tmp_path / "images" / "one.png")
    (tmp_path / "labels" / "one.txt").write_text(one.to_yolo())
    sample = open_yolo(CATEGORIES.names, [tmp_path / "images"])[0]
    assert sample.truth.labels.tolist() == [1, 0]
    assert (sample.truth.masks().numpy() == dense(one)).all()
    assert segments(empty=True).to_yolo() == ""


def coco_image() -> dict[str, object]:
    return {"id": 17, "file_name": "one.png", "height": SIZE[0], "width": SIZE[1]}


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools
def test_coco_results_are_read_by_pycocotools() -> None:
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed").COCO()
    one = segments()
    coco.dataset = {
        "images": [coco_image()],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [],
    }
    coco.createIndex()
    written = json.loads(json.dumps(one.to_coco(image_id=17)))
    without_boxes = [{key: value for key, value in each.items() if key != "bbox"} for each in written]
    for records in (written, without_boxes):
        found = coco.loadRes(records)
        read = found.loadAnns(found.getAnnIds(imgIds=[17]))
        assert [record["category_id"] for record in read] == [7, 3]
        assert [record["score"] for record in read] == pytest.approx([0.9, 0.7])
        for record, mask, box in zip(read, dense(one), [[7, 5, 40, 32], [30, 25, 20, 16]], strict=True):
            assert (found.annToMask(record) == mask).all()
            assert list(record["bbox"]) == box
            # where a box is given, pycocotools takes its area for that of the result
            assert record["area"] == (box[2] * box[3] if records is written else mask.sum())


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_boxes_are_read_by_pycocotools() -> None:
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed").COCO()
    one = boxes()
    coco.dataset = {
        "images": [coco_image()],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [],
    }
    coco.createIndex()
    found = coco.loadRes(json.loads(json.dumps(one.to_coco(image_id=17))))
    records = found.loadAnns(found.getAnnIds(imgIds=[17]))
    assert [record["bbox"] for record in records] == [[3.5, 4.25, 17.0, 26.75], [-2.0, 0.0, 12.0, 12.5]]
    assert [record["category_id"] for record in records] == [7, 3]


def test_yolo_is_read_by_supervision(tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    one = segments()
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.fromarray(one.image.permute(1, 2, 0).numpy()).save(tmp_path / "images" / "one.png")
    (tmp_path / "labels" / "one.txt").write_text(one.to_yolo())
    (tmp_path / "data.yaml").write_text("nc: 2\nnames: [cat, dog]\n")
    dataset = supervision.DetectionDataset.from_yolo(
        str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "data.yaml"), force_masks=True
    )
    _, _, found = dataset[0]
    assert found.class_id.tolist() == [1, 0]
    for mine, theirs in zip(dense(one), found.mask, strict=True):
        # OpenCV paints the border of a polygon as well, and so the bridges
        assert (theirs | ~mine).all()
        assert (theirs & ~mine).sum() < 0.2 * mine.sum()


def test_supervision_detections() -> None:
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    one = segments()
    found = one.to_supervision()
    assert isinstance(found, supervision.Detections)
    assert (found.mask == dense(one)).all()
    assert found.xyxy.tolist() == [[7, 5, 47, 37], [30, 25, 50, 41]]
    assert found.class_id.tolist() == [1, 0]
    assert found.data["class_name"].tolist() == ["dog", "cat"]
    assert found.confidence == pytest.approx([0.9, 0.7])
    assert found[found.confidence > 0.8].area.tolist() == [dense(one)[0].sum()]
    picture = one.image.permute(1, 2, 0).numpy().copy()
    assert (supervision.MaskAnnotator().annotate(picture.copy(), found) != picture).any()
    assert len(segments(empty=True).to_supervision()) == 0


def test_label_studio_is_read_back_to_the_pixel(tmp_path: Path) -> None:
    one = segments()
    Image.fromarray(one.image.permute(1, 2, 0).numpy()).save(tmp_path / "one.png")
    task = one.to_label_studio("/data/local-files/?d=one.png")
    assert task["data"] == {"image": "/data/local-files/?d=one.png"}
    (tmp_path / "tasks.json").write_text(json.dumps([{"id": 1, **task, "annotations": task["predictions"]}]))
    sample = open_label_studio(tmp_path / "tasks.json")[0]
    assert (sample.truth.masks().numpy() == dense(one)).all()
    assert sample.truth.labels.tolist() == [1, 0]
    assert segments(empty=True).to_label_studio()["predictions"][0]["result"] == []


def test_label_studio_brushes_are_read_by_its_sdk() -> None:
    brush = pytest.importorskip(
        "label_studio_sdk.converter.brush", reason="label-studio-sdk is not installed"
    )
    one = segments()
    results = one.to_label_studio()["predictions"][0]["result"]
    for mask, found in zip(dense(one), results, strict=True):
        values = brush.decode_rle(found["value"]["rle"])
        assert (values.reshape(*SIZE, 4)[:, :, 3] == mask * 255).all()
        assert (unpack_brush(found["value"]["rle"], 4 * mask.size)[3::4].reshape(SIZE) == mask * 255).all()


def test_label_studio_prediction_fits_a_labelling_interface() -> None:
    interface = pytest.importorskip(
        "label_studio_sdk.label_interface", reason="label-studio-sdk is not installed"
    )
    config = interface.LabelInterface(
        '<View><Image name="image" value="$image"/><BrushLabels name="label" toName="image">'
        '<Label value="cat"/><Label value="dog"/></BrushLabels></View>'
    )
    task = segments().to_label_studio("one.png")
    assert config.validate_prediction(task["predictions"][0])


def test_geojson_in_pixels_and_on_the_map() -> None:
    one = segments()
    found = one.to_geojson()
    assert [feature["geometry"]["type"] for feature in found["features"]] == ["MultiPolygon", "Polygon"]
    assert [len(part) for part in found["features"][0]["geometry"]["coordinates"]] == [2, 1]  # one has a hole
    assert found["features"][1]["properties"] == {
        "category": "cat",
        "category_id": 3,
        "score": 0.7,
        "pixels": 320,
        "objectType": "annotation",
        "classification": {"name": "cat", "color": [1, 2, 3]},
        "measurements": {"score": 0.7},
    }
    utm = one.to_geojson((0.5, 0, 400_000, 0, -0.5, 5_000_000), crs="urn:ogc:def:crs:EPSG::32633")
    assert utm["crs"]["properties"]["name"].endswith("32633")
    ring = np.array(utm["features"][1]["geometry"]["coordinates"][0])
    assert ring.min(axis=0).tolist() == [400_015, 4_999_979.5]
    assert ring.max(axis=0).tolist() == [400_025, 4_999_987.5]
    with pytest.raises(ConfigError, match=r"transform: .* leaves no area"):
        one.to_geojson((1.0, 0.0, 0.0, 2.0, 0.0, 0.0))


@pytest.mark.parametrize(
    "transform", [(1, 0, 0, 0, 1, 0), (0.5, 0, 400_000, 0, -0.5, 5_000_000), (0, 2, 1, 2, 0, 1)]
)
def test_geojson_is_valid(transform: tuple[float, ...]) -> None:
    geojson = pytest.importorskip("geojson", reason="geojson is not installed")
    shapely = pytest.importorskip("shapely", reason="shapely is not installed")
    one = segments()
    text = json.dumps(one.to_geojson(tuple(map(float, transform))))
    assert geojson.loads(text).is_valid
    a, b, _, d, e, _ = transform
    for feature, mask in zip(json.loads(text)["features"], dense(one), strict=True):
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.is_valid
        assert shape.area == pytest.approx(mask.sum() * abs(a * e - b * d))
        for part in getattr(shape, "geoms", [shape]):
            assert part.exterior.is_ccw
            assert not any(hole.is_ccw for hole in part.interiors)


def test_yolo_boxes_are_read_back(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    one = boxes(count=1)
    own = torch.tensor([[3.25, 4.25, 20.25, 31.0]])
    one = replace(one, prediction=replace(one.prediction, boxes=own))
    Image.fromarray(one.image.permute(1, 2, 0).numpy()).save(tmp_path / "images" / "one.png")
    (tmp_path / "labels" / "one.txt").write_text(one.to_yolo())
    (rows,) = [line.split() for line in one.to_yolo().splitlines()]
    wanted = [1, 11.75 / 59, 17.625 / 43, 17 / 59, 26.75 / 43]
    assert [float(value) for value in rows] == pytest.approx(wanted, abs=1e-7)
    sample = open_yolo(CATEGORIES.names, [tmp_path / "images"])[0]
    assert sample.truth.labels.tolist() == [1]
    place = sample.truth.masks()[0].nonzero()
    assert (place.amin(dim=0).tolist(), place.amax(dim=0).tolist()) == ([4, 3], [30, 19])


@pytest.mark.parametrize("inside", [True, False])
def test_labelme_is_read_back_to_the_pixel(tmp_path: Path, inside: bool) -> None:
    one = segments()
    image = Image.fromarray(one.image.permute(1, 2, 0).numpy())
    image.save(tmp_path / "one.png")
    content = one.to_labelme("" if inside else "one.png")
    (tmp_path / "one.json").write_text(json.dumps(content))
    sample = open_labelme(("cat", "dog"), [tmp_path / "one.json"])[0]
    assert (sample.truth.masks().numpy() == dense(one)).all()
    assert sample.truth.labels.tolist() == [1, 0]
    if inside:  # LabelMe shows it without a file
        with Image.open(io.BytesIO(base64.b64decode(content["imageData"]))) as kept:
            assert (np.asarray(kept) == np.asarray(image)).all()
    assert segments(empty=True).to_labelme()["shapes"] == []


def test_rectangles_of_label_studio() -> None:
    task = boxes(count=1).to_label_studio("one.png")
    (found,) = task["predictions"][0]["result"]
    assert found["type"] == "rectanglelabels"
    assert found["value"]["rectanglelabels"] == ["dog"]
    assert found["value"]["x"] == pytest.approx(100 * 3.5 / 59)
    assert found["value"]["height"] == pytest.approx(100 * 26.75 / 43)


def inside(ring: np.ndarray) -> np.ndarray:
    """The pixels whose centres lie in a polygon, by the even-odd rule."""
    y, x = np.indices(SIZE) + 0.5
    crossings = np.zeros(SIZE, dtype=int)
    for (x1, y1), (x2, y2) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if y1 != y2:
            crosses = (min(y1, y2) < y) & (y < max(y1, y2))
            crossings += crosses & (x1 + (y - y1) / (y2 - y1) * (x2 - x1) > x)
    return crossings % 2 == 1


@pytest.mark.parametrize("one", [segments(), boxes()], ids=["segments", "boxes"])
def test_rois_are_read_by_roifile(one: Result, tmp_path: Path) -> None:
    roifile = pytest.importorskip("roifile", reason="roifile is not installed")
    (path,) = one.save(tmp_path, formats=("imagej-roi",))
    assert path.name == "one.rois.zip"
    rois = roifile.roiread(path)
    assert [roi.name for roi in rois] == [f"{found.id:04}-{found.category}" for found in one]
    assert [roi.stroke_color for roi in rois] == [b"\xff\4\5\6", b"\xff\1\2\3"]
    for roi, box, outline in zip(rois, one.boxes, one.polygons, strict=True):
        assert [roi.left, roi.top, roi.right, roi.bottom] == [*np.floor(box[:2]), *np.ceil(box[2:])]
        rings = roi.coordinates(multi=True)
        mine = [ring for part in outline for ring in part]
        assert len(rings) == len(mine)
        for theirs, ring in zip(rings, mine, strict=True):
            assert np.allclose(theirs[: len(ring)], ring)
    if one.task == "instance":
        assert [roi.roitype.name for roi in rois] == ["RECT", "POLYGON"]  # composite ROIs are of this type
        for roi, mask in zip(rois, dense(one), strict=True):
            covered = np.logical_xor.reduce([inside(ring) for ring in roi.coordinates(multi=True)])
            assert (covered == mask).all()


def test_rois_end_where_the_format_has_no_more_room(tmp_path: Path) -> None:
    pytest.importorskip("roifile", reason="roifile is not installed")
    far = boxes(count=1)
    far = replace(far, prediction=replace(far.prediction, boxes=torch.tensor([[1.0, 2.0, 40_000.0, 9.0]])))
    with pytest.raises(DataError, match="ends at pixel 32,767"):
        far.save(tmp_path, formats=("imagej-roi",))
    assert list(tmp_path.iterdir()) == []


def test_no_rois_are_an_empty_list(tmp_path: Path) -> None:
    pytest.importorskip("roifile", reason="roifile is not installed")
    (path,) = segments(empty=True).save(tmp_path, formats=("imagej-roi",))
    with zipfile.ZipFile(path) as rois:
        assert rois.namelist() == []


def test_formats_of_one_result(tmp_path: Path) -> None:
    one = segments()
    formats = tuple(name for name in FORMATS if name != "png")
    paths = one.save(tmp_path, "x", formats, image=str(tmp_path / "in" / "a.png"))
    assert {path.relative_to(tmp_path).as_posix() for path in paths} == {
        "x.overlay.png",
        "x.json",
        "x.csv",
        "x.coco.json",
        "x.geojson",
        "x.rois.zip",
        "labelme/x.json",
        "x.label_studio.json",
        "yolo/labels/x.txt",
        "yolo/data.yaml",
    }
    assert json.loads((tmp_path / "labelme" / "x.json").read_text())["imagePath"] == "../in/a.png"
    rows = list(csv.DictReader((tmp_path / "x.csv").read_text().splitlines()))
    shown = [(row["image"], row["segment"], row["area"]) for row in rows]
    assert shown == [("x", "1", "755"), ("x", "3", "320")]
    assert yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text())["names"] == {0: "cat", 1: "dog"}


def test_formats_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="format: 'jpg' does not exist; is it overlay\\? there are: overlay, png, json, csv"
    ):
        segments().save(tmp_path, formats=("json", "jpg"))
    with pytest.raises(ConfigError, match="format: png holds one segment per pixel"):
        segments().save(tmp_path, formats=("png",))
    assert list(tmp_path.iterdir()) == []
