"""`predict --format`: files of other programs, per image and for the whole folder."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from cli.command_line import picture, refused, unimask
from PIL import Image
from pycocotools.coco import COCO

from unimask.data.open import open_dataset
from unimask.inference.loading import load
from unimask.inference.run import output_names, predict
from unimask.inference.segmenter import Segmenter
from unimask.results.folder import PARTS
from unimask.results.ledger import LEDGER_NAME
from unimask.results.writing import FORMATS


@pytest.fixture(scope="module")
def segmenter(model: Path) -> Segmenter:
    return load(model, device="cpu")


def folder_of(tmp_path: Path, count: int = 3) -> Path:
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(count):
        picture(31 + 4 * index, 37, seed=index).save(photos / f"{index}.png")
    return photos


def rows_in(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_every_format_at_once(model: Path, tmp_path: Path) -> None:
    photos, out = folder_of(tmp_path), tmp_path / "out"
    formats = ",".join(name for name in FORMATS if name != "png")
    given = ("predict", photos, "--weights", model, "--task", "instance", "--output", out)
    outcome = unimask(*given, "--format", formats, "--pixel-size", 0.5)
    assert outcome.code == 0, outcome.err
    each = ("{}.overlay.png", "{}.json", "{}.geojson", "{}.rois.zip", "labelme/{}.json", "yolo/labels/{}.txt")
    whole = {"segments.csv", "images.csv", "coco.json", "label_studio.json", "yolo/data.yaml"}
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert written - {LEDGER_NAME} == whole | {one.format(index) for one in each for index in range(3)}

    records = [json.loads((out / f"{index}.json").read_text())["segments"] for index in range(3)]
    rows = rows_in(out / "segments.csv")
    assert [(row["image"], int(row["segment"])) for row in rows] == [
        (str(index), one["id"]) for index, found in enumerate(records) for one in found
    ]
    for row, one in zip(rows, [one for found in records for one in found], strict=True):
        assert float(row["area"]) == one["area"]
        assert float(row["area_um2"]) == pytest.approx(one["area"] / 4)
        left, top, width, height = one["bbox"]
        edges = [float(row[name]) for name in ("left", "top", "right", "bottom")]
        assert edges == [left, top, left + width, top + height]
        assert float(row["score"]) == one["score"]
    counts = rows_in(out / "images.csv")
    assert sum(int(row["count"]) for row in counts) == len(rows)
    assert {row["image"] for row in counts} == {"0", "1", "2"}
    assert all(int(row["count"]) >= 1 for row in rows)
    assert len(json.loads((out / "label_studio.json").read_text())) == 3

    coco = COCO(str(out / "coco.json"))
    assert [one["file_name"] for one in coco.loadImgs(coco.getImgIds())] == ["0.png", "1.png", "2.png"]
    assert sorted(coco.anns) == list(range(1, len(rows) + 1))
    for number, found in enumerate(records, start=1):
        own = coco.loadAnns(coco.getAnnIds(imgIds=[number]))
        assert [one["score"] for one in own] == [one["score"] for one in found]


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools
def test_the_coco_file_is_data_to_train_on(model: Path, tmp_path: Path) -> None:
    """Corrected results are the ground truth of the next training; so they are read back as they are."""
    photos, out = folder_of(tmp_path, 1), tmp_path / "out"
    given = ("predict", photos, "--weights", model, "--task", "instance", "--output", out)
    assert unimask(*given, "--format", "coco,yolo,labelme").code == 0
    coco = COCO(str(out / "coco.json"))
    (photos / "instances.json").write_text((out / "coco.json").read_text())
    sample = open_dataset(photos / "instances.json", "all", "instance")[0]
    masks = sample.truth.masks().numpy()
    assert len(masks) == len(coco.anns) > 0
    assert (masks == np.stack([coco.annToMask(one) > 0 for one in coco.anns.values()])).all()
    drawn = open_dataset(out / "labelme", "all", "instance", follow_outside=True)[0].truth.masks().numpy()
    assert (drawn == masks).all()
    (out / "yolo" / "images").mkdir()
    (photos / "0.png").rename(out / "yolo" / "images" / "0.png")
    read = open_dataset(out / "yolo", "train", "instance")[0].truth.masks().numpy()
    assert (read == masks).all()


def test_panoptic_segments_as_coco(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ("predict", folder_of(tmp_path, 2), "--weights", model, "--task", "panoptic", "--output", out)
    assert unimask(*given, "--format", "coco").code == 0
    assert {path.name for path in out.glob("[!.]*")} == {"coco.json", "0.segments.png", "1.segments.png"}
    content = json.loads((out / "coco.json").read_text())
    assert [one["image_id"] for one in content["annotations"]] == [1, 2]
    for one in content["annotations"]:
        ids = np.asarray(Image.open(out / one["file_name"])).astype(int) @ [1, 256, 65536]
        assert {segment["id"] for segment in one["segments_info"]} == set(np.unique(ids)) - {0}


def test_files_of_the_folder_are_the_same_after_a_stop(
    segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written of images before a stop stays; a joined file is whole or absent."""
    photos, out = folder_of(tmp_path), tmp_path / "out"

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    predict(segmenter, [photos], out, "instance", formats=["csv", "coco"])
    whole = {path.name: path.read_bytes() for path in out.glob("[!.]*")}
    assert whole.keys() == {"segments.csv", "images.csv", "coco.json"}
    for path in out.iterdir():
        path.unlink()
    with pytest.raises(KeyboardInterrupt):
        predict(segmenter, [photos], out, "instance", stop, formats=["csv", "coco"], batch_size=1)
    assert {path.name for path in out.iterdir()} == {PARTS, LEDGER_NAME}
    assert {"0.csv", "0.coco.json", "1.csv", "1.coco.json"} <= {one.name for one in (out / PARTS).iterdir()}
    predict(segmenter, [photos], out, "instance", formats=["csv", "coco"])
    assert {path.name: path.read_bytes() for path in out.glob("[!.]*")} == whole


def test_images_without_segments_are_counted(segmenter: Segmenter, tmp_path: Path) -> None:
    photos, out = folder_of(tmp_path, 2), tmp_path / "out"
    predict(segmenter, [photos], out, "instance", formats=["csv", "coco", "label-studio"], threshold=1.0)
    assert rows_in(out / "images.csv") == [
        {"image": str(index), "category": "", "count": "0", "area": "0"} for index in range(2)
    ]
    assert rows_in(out / "segments.csv") == []
    assert (out / "segments.csv").read_text().startswith("image,segment,category,score,count,area,")
    assert json.loads((out / "coco.json").read_text())["annotations"] == []


def test_an_image_that_fails_is_in_no_file(model: Path, tmp_path: Path) -> None:
    photos, out = folder_of(tmp_path, 2), tmp_path / "out"
    (photos / "00.png").write_bytes(b"no picture")
    given = ("predict", photos, "--weights", model, "--task", "semantic", "--output", out)
    outcome = unimask(*given, "--format", "csv", "--format", "coco")
    assert outcome.code == 2
    assert {row["image"] for row in rows_in(out / "images.csv")} == {"0", "1"}
    assert len(json.loads((out / "coco.json").read_text())["images"]) == 2


def test_several_processes_make_one_file(
    segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two processes joins what both have written, in the order of the images."""
    photos, out = folder_of(tmp_path), tmp_path / "out"
    predict(segmenter, [photos], tmp_path / "alone", "instance", formats=["csv"])
    shares: list[object] = []

    def gather(mine: object) -> list[object]:
        shares.append(mine)
        return list(shares)

    monkeypatch.setattr("unimask.inference.run.gather", gather)
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setattr("unimask.processes.Team.speaks", rank == 0)
        predict(segmenter, [photos], out, "instance", formats=["csv"])
    alone = tmp_path / "alone"
    assert {one.name: one.read_bytes() for one in out.glob("[!.]*")} == {
        one.name: one.read_bytes() for one in alone.glob("[!.]*")
    }


def test_names_keep_off_the_files_of_the_folder() -> None:
    files = [Path("coco.png"), Path("a.png")]
    assert output_names(files) == ["coco", "a"]
    assert output_names(files, {"coco", "segments", "images"}) == ["coco_png", "a"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "csv,xls"), "format: 'xls' does not exist; there are: overlay, png, json, csv, coco"),
        (("--format", "png", "--task", "instance"), "format: png holds one segment per pixel"),
        (("--pixel-size", "0"), "pixel_size: must be above 0"),
        (("--pixel-size", "nan"), "pixel_size: must be above 0"),
        (("--every", "0"), "--every: must be at least 1"),
    ],
)
def test_impossible_formats(model: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    picture().save(tmp_path / "a.png")
    given = ("predict", tmp_path / "a.png", "--weights", model, "--output", tmp_path / "out")
    assert message in refused(*given, *arguments)
    assert not (tmp_path / "out").exists()
