"""Results in the words of other tools, each read back by the tool itself where it is installed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unimask.data.formats.label_studio import open_label_studio, unpack_brush
from unimask.data.formats.yolo import open_yolo
from unimask.errors import ConfigError
from unimask.ops.id_maps import pack_masks
from unimask.results.boxes import BoxResult
from unimask.results.segments import Result
from unimask.structures import Categories, Detections, Segments

SIZE = (43, 59)
CATEGORIES = Categories(
    names=("cat", "dog"), is_thing=(True, True), file_ids=(3, 7), colors=((1, 2, 3), (4, 5, 6))
)


def result(empty: bool = False) -> Result:
    """A ring with a hole and a part of its own, a square over it, and a segment without pixels."""
    masks = torch.zeros((3, *SIZE), dtype=torch.bool)
    if not empty:
        masks[0, 5:31, 7:37] = True
        masks[0, 12:19, 15:22] = False
        masks[0, 33:37, 41:47] = True
        masks[2, 25:41, 30:50] = True
    segments = Segments(
        layers=pack_masks(masks),
        labels=torch.tensor([1, 0, 0]),
        scores=torch.tensor([0.9, 0.8, 0.7]),
        is_crowd=torch.zeros(3, dtype=torch.bool),
    )
    image = torch.full((3, *SIZE), 128, dtype=torch.uint8)
    return Result(task="instance", name="one", image=image, prediction=segments, categories=CATEGORIES)


def dense(one: Result) -> np.ndarray:
    return one.prediction.masks().numpy()[[0, 2]]


def test_yolo_is_read_back_to_the_pixel(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    one = result()
    Image.fromarray(one.image.permute(1, 2, 0).numpy()).save(tmp_path / "images" / "one.png")
    (tmp_path / "labels" / "one.txt").write_text(one.to_yolo())
    sample = open_yolo(CATEGORIES.names, [tmp_path / "images"])[0]
    assert sample.truth.labels.tolist() == [1, 0]
    assert (sample.truth.masks().numpy() == dense(one)).all()
    assert result(empty=True).to_yolo() == ""


def coco_image() -> dict[str, object]:
    return {"id": 17, "file_name": "one.png", "height": SIZE[0], "width": SIZE[1]}


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools
def test_coco_results_are_read_by_pycocotools() -> None:
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed").COCO()
    one = result()
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
    boxes = torch.tensor([[3.5, 4.25, 20.5, 31.0], [-2.0, 0.0, 10.0, 12.5]])
    detections = Detections(
        boxes=boxes,
        labels=torch.tensor([1, 0]),
        scores=torch.tensor([0.75, 0.5]),
        areas=torch.tensor([454.75, 150.0]),
        is_crowd=torch.zeros(2, dtype=torch.bool),
    )
    one = BoxResult(name="one", image=result().image, prediction=detections, categories=CATEGORIES)
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
    one = result()
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
    one = result()
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
    assert len(result(empty=True).to_supervision()) == 0


def test_label_studio_is_read_back_to_the_pixel(tmp_path: Path) -> None:
    one = result()
    Image.fromarray(one.image.permute(1, 2, 0).numpy()).save(tmp_path / "one.png")
    task = one.to_label_studio("/data/local-files/?d=one.png")
    assert task["data"] == {"image": "/data/local-files/?d=one.png"}
    (tmp_path / "tasks.json").write_text(json.dumps([{"id": 1, **task, "annotations": task["predictions"]}]))
    sample = open_label_studio(tmp_path / "tasks.json")[0]
    assert (sample.truth.masks().numpy() == dense(one)).all()
    assert sample.truth.labels.tolist() == [1, 0]
    assert result(empty=True).to_label_studio()["predictions"][0]["result"] == []


def test_label_studio_brushes_are_read_by_its_sdk() -> None:
    brush = pytest.importorskip(
        "label_studio_sdk.converter.brush", reason="label-studio-sdk is not installed"
    )
    one = result()
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
    task = result().to_label_studio("one.png")
    assert config.validate_prediction(task["predictions"][0])


def test_geojson_in_pixels_and_on_the_map() -> None:
    one = result()
    found = one.to_geojson()
    assert [feature["geometry"]["type"] for feature in found["features"]] == ["MultiPolygon", "Polygon"]
    assert [len(part) for part in found["features"][0]["geometry"]["coordinates"]] == [2, 1]  # one has a hole
    assert found["features"][1]["properties"] == {
        "category": "cat", "category_id": 3, "score": 0.7, "pixels": 320
    }  # fmt: skip
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
    one = result()
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
