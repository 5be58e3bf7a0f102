import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from cli.command_line import picture, refused, unimask
from PIL import Image
from pycocotools import mask as coco_mask

from unimask.inference.predictor import Predictor
from unimask.inference.run import output_names
from unimask.inference.segmenter import Segmenter
from unimask.structures import ImageBatch, Prediction

TASKS = ("panoptic", "instance", "semantic")


def encoded(image: Image.Image, kind: str, share: float = 1.0) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind)
    data = buffer.getvalue()
    return data[: int(len(data) * share)]


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def ids_in(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        pixels = np.array(image).astype(int)
    return pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools
@pytest.mark.parametrize("task", TASKS)
def test_the_files_of_a_picture_agree(model: Path, tmp_path: Path, task: str) -> None:
    picture().save(tmp_path / "photo.jpg")
    outcome = unimask(
        "predict", tmp_path / "photo.jpg", "--task", task, "--weights", model, "--output", tmp_path / "out"
    )
    assert outcome.code == 0, outcome.err
    written = {path.name for path in (tmp_path / "out").glob("[!.]*")}
    expected = {"photo.overlay.png", "photo.segments.png", "photo.json"}
    assert written == (expected if task != "instance" else expected - {"photo.segments.png"})
    assert size_of(tmp_path / "out" / "photo.overlay.png") == (61, 47)

    found = json.loads((tmp_path / "out" / "photo.json").read_text(encoding="utf-8"))
    assert list(found) == ["task", "height", "width", "categories", "segments"]
    assert (found["task"], found["height"], found["width"]) == (task, 47, 61)
    names = {category["id"]: category["name"] for category in found["categories"]}
    assert names == {3: "cat", 7: "dog", 9: "grass [wet]"}
    assert found["segments"]
    if task != "instance":
        ids = ids_in(tmp_path / "out" / "photo.segments.png")
        assert set(np.unique(ids)) - {0} == {segment["id"] for segment in found["segments"]}
    for segment in found["segments"]:
        keys = ["id", "category_id", "category", "score", "area", "bbox"]
        assert list(segment) == (keys if task != "instance" else [*keys, "segmentation"])
        assert segment["category"] == names[segment["category_id"]]
        assert 0 <= segment["score"] <= 1
        if task == "instance":
            mask = coco_mask.decode(segment["segmentation"]) > 0
            assert mask.shape == (47, 61)
        else:
            mask = ids == segment["id"]
        rows, columns = np.nonzero(mask)
        left, top, width, height = segment["bbox"]
        assert segment["area"] == mask.sum()
        assert (left, left + width) == (columns.min(), columns.max() + 1)
        assert (top, top + height) == (rows.min(), rows.max() + 1)
    assert "photo" in outcome.out
    assert "results are in" in outcome.out
    assert "images/s" in outcome.err


def exif_sideways() -> bytes:
    buffer, exif = BytesIO(), Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    picture().save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def animation() -> bytes:
    buffer = BytesIO()
    picture().save(buffer, "GIF", save_all=True, append_images=[picture(seed=1)])
    return buffer.getvalue()


def deep_grey() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 2**16, (47, 61), dtype=np.uint16))


READABLE: dict[str, tuple[Callable[[], bytes], tuple[int, int]]] = {
    "rgb.png": (lambda: encoded(picture(), "PNG"), (61, 47)),
    "grey.png": (lambda: encoded(picture().convert("L"), "PNG"), (61, 47)),
    "grey_alpha.png": (lambda: encoded(picture().convert("LA"), "PNG"), (61, 47)),
    "palette.png": (lambda: encoded(picture().convert("P"), "PNG"), (61, 47)),
    "black_and_white.png": (lambda: encoded(picture().convert("1"), "PNG"), (61, 47)),
    "alpha.png": (lambda: encoded(picture().convert("RGBA"), "PNG"), (61, 47)),
    "deep.png": (lambda: encoded(deep_grey(), "PNG"), (61, 47)),
    "deep.tif": (lambda: encoded(deep_grey(), "TIFF"), (61, 47)),
    "cmyk.jpg": (lambda: encoded(picture().convert("CMYK"), "JPEG"), (61, 47)),
    "lab.tif": (lambda: encoded(picture().convert("LAB"), "TIFF"), (61, 47)),
    "sideways.jpg": (exif_sideways, (47, 61)),
    "moving.gif": (animation, (61, 47)),
    "point.png": (lambda: encoded(picture(1, 1), "PNG"), (1, 1)),
    "ünï [bold] :smile: çödé.png": (lambda: encoded(picture(), "PNG"), (61, 47)),
    "long " * 40 + ".webp": (lambda: encoded(picture(), "WEBP"), (61, 47)),
}
BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "cut.jpg": (lambda: encoded(picture(), "JPEG", 0.5), "damaged or cut off"),
    "cut.png": (lambda: encoded(picture(), "PNG", 0.5), "damaged or cut off"),
    "head.png": (lambda: encoded(picture(), "PNG")[:20], "damaged or cut off"),
    "head.jpg": (lambda: encoded(picture(), "JPEG")[:20], "is not an image in a known format"),
    "text.png": (lambda: b"hello", "is not an image in a known format"),
    "empty.png": (lambda: b"", "the file is empty"),
    "float.tif": (
        lambda: encoded(Image.new("F", (5, 3)), "TIFF"),
        "has floating-point pixels; save it with 8 or 16 bits",
    ),
}


def test_every_kind_of_picture_in_one_folder(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "subfolder.png").mkdir(parents=True)
    for name, (content, _) in {**READABLE, **BROKEN}.items():
        (folder / name).write_bytes(content())
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_text("no picture")
    missing = tmp_path / "missing.png"
    outcome = unimask(
        "predict",
        folder,
        missing,
        folder / "rgb.png",
        "--weights",
        model,
        "--output",
        tmp_path / "out",
        "--task",
        "semantic",
    )
    assert outcome.code == 2
    assert "Traceback" not in outcome.err

    last = outcome.err.splitlines()
    assert f"{len(BROKEN) + 1} of {len(READABLE) + len(BROKEN) + 1} images could not be" in last[-1]
    for name, (_, message) in BROKEN.items():
        (line,) = [line for line in last if f"{name}:" in line]
        assert line.startswith(f"error {folder / name}: ")
        assert message in line
    assert f"error {missing}: no such file" in outcome.err

    out = tmp_path / "out"
    assert len(list(out.glob("[!.]*"))) == 3 * len(READABLE)
    stems = [Path(name).stem for name in READABLE]
    for name, (_, size) in READABLE.items():
        path = Path(name)
        stem = path.stem if stems.count(path.stem) == 1 else f"{path.stem}_{path.suffix[1:]}"
        assert size_of(out / f"{stem}.overlay.png") == size
        found = json.loads((out / f"{stem}.json").read_text(encoding="utf-8"))
        assert (found["width"], found["height"]) == size
    assert "[bold] :smile:" in outcome.out
    assert "grass [wet]" in outcome.out
    assert "47 x 61" in outcome.out


@pytest.mark.parametrize("size", [(20_000, 30), (30, 20_000)])
def test_very_long_pictures(model: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (90, 120, 30)).save(tmp_path / "long.png")
    outcome = unimask("predict", tmp_path / "long.png", "--weights", model, "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert size_of(tmp_path / "out" / "long.overlay.png") == size


def test_json_is_all_there_is_on_standard_output(model: Path, tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    given = ("predict", tmp_path, "--weights", model, "--output", tmp_path / "out")
    outcome = unimask(*given, "--task", "instance", "--json")
    assert outcome.code == 2
    (record,) = outcome.json()
    assert record.pop("name") == "a"
    assert record.pop("image") == str(tmp_path / "a.png")
    assert record == json.loads((tmp_path / "out" / "a.json").read_text(encoding="utf-8"))


def test_a_second_run_replaces_the_first_and_takes_no_result_for_a_picture(
    model: Path, tmp_path: Path
) -> None:
    picture().save(tmp_path / "a.png")
    for task, count in (("panoptic", 3), ("semantic", 3), ("instance", 2)):
        assert (
            unimask("predict", tmp_path, "--weights", model, "--output", tmp_path, "--task", task).code == 0
        )
        assert len(list(tmp_path.glob("[!.]*"))) == 1 + count
        assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["task"] == task


def test_a_threshold_leaves_out_what_is_below(model: Path, tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    given = ("predict", tmp_path / "a.png", "--weights", model, "--output", tmp_path / "out", "--json")
    for task in ("panoptic", "instance"):
        (everything,) = unimask(*given, "--task", task).json()
        (nothing,) = unimask(*given, "--task", task, "--threshold", "1").json()
        assert everything["segments"]
        assert nothing["segments"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--weights", "no_such_model"), "no_such_model: no such folder, and no model of this name"),
        (("--weights", "{tmp}"), "config.json: there is no such file; a model folder holds"),
        (("--device", "cuda:99"), "device: 'cuda:99' cannot be used"),
        (("--device", "toaster"), "device: 'toaster' does not exist"),
        (("--threshold", "1.5"), "threshold: must be from 0 to 1; got 1.5"),
        (("--threshold", "nan"), "threshold: must be from 0 to 1; got nan"),
        (("--output", "{tmp}/a.png"), "a.png: is a file; name a folder with --output"),
        (("--output", "{tmp}/a.png/b"), "a.png: is a file; name a folder with --output"),
    ],
)
def test_impossible_requests(model: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    picture().save(tmp_path / "a.png")
    defaults = {"--weights": model, "--output": tmp_path / "out"}
    given = dict([[part.format(tmp=tmp_path) for part in arguments]])
    chosen = [word for pair in {**defaults, **given}.items() for word in pair]
    assert message in refused("predict", tmp_path / "a.png", *chosen)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]  # nothing is left behind


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--task", "boxes", ("'boxes'", "panoptic", "instance", "semantic")),
        ("--precision", "8", ("'8'", "32-true", "bf16-mixed")),
        ("--treshold", "0.5", ("--treshold", "--threshold")),
    ],
)
def test_words_that_are_no_choice(tmp_path: Path, option: str, value: str, words: tuple[str, ...]) -> None:
    outcome = unimask("predict", "a.png", option, value)
    assert (outcome.code, outcome.out) == (2, "")
    text = " ".join(outcome.err.replace("│", " ").split())
    assert all(word in text for word in words)


def test_folders_without_pictures(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty" / "below").mkdir(parents=True)
    picture().save(tmp_path / "empty" / "below" / "a.png")
    message = refused("predict", tmp_path / "empty", "--weights", model)
    assert "no images in this folder" in message
    assert "not in subfolders" in message
    assert refused("predict", tmp_path / "none" / "a", "--weights", model).count("no such file") == 1


def test_a_folder_that_cannot_be_written_to(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture().save(tmp_path / "a.png")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    given = ("predict", tmp_path / "a.png", "--weights", model, "--output", tmp_path / "out")
    assert f"{tmp_path}: may not be written to" in refused(*given)


def test_a_disk_that_is_full(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    picture().save(tmp_path / "a.png")
    monkeypatch.setattr("os.replace", fail)
    message = refused("predict", tmp_path / "a.png", "--weights", model, "--output", tmp_path / "out")
    assert f"{tmp_path / 'out'}: results cannot be written here (No space left on device)" in message
    assert list((tmp_path / "out").glob("[!.]*")) == []


def test_a_picture_that_does_not_fit_into_memory_does_not_stop_the_others(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        picture(width=61 if name == "a" else 67).save(tmp_path / f"{name}.png")
    forward = Predictor.forward

    def fail_once(self: Predictor, images: ImageBatch) -> Prediction:
        if any(placement.original[1] == 61 for placement in images.placements):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return forward(self, images)

    monkeypatch.setattr(Predictor, "forward", fail_once)
    outcome = unimask("predict", tmp_path, "--weights", model, "--output", tmp_path / "out")
    assert outcome.code == 2
    assert "a.png: needs more memory than there is" in outcome.err
    assert (tmp_path / "out" / "b.json").exists()


def test_a_prediction_that_is_not_finite_does_not_stop_the_others(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        picture(width=61 if name == "b" else 67).save(tmp_path / f"{name}.png")
    forward = Predictor.forward

    def overflow(self: Predictor, images: ImageBatch) -> Prediction:
        prediction = forward(self, images)
        wide = any(placement.original[1] == 61 for placement in images.placements)
        logits = prediction.class_logits * (float("nan") if wide else 1.0)
        return replace(prediction, class_logits=logits)

    monkeypatch.setattr(Predictor, "forward", overflow)
    outcome = unimask("predict", tmp_path, "--weights", model, "--output", tmp_path / "out")
    assert outcome.code == 2
    assert "b.png: the model predicts numbers that are not finite" in outcome.err
    written = {path.name for path in (tmp_path / "out").glob("*.json")}
    assert written == {"a.json", "c.json"}


def test_the_tiles_of_the_readme_keep_those_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The command of the README for large images finds the nuclei that the shipped model finds without it."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (line,) = [line for line in readme.splitlines() if line.startswith("unimask predict slide.tif")]
    command = shlex.split(line, comments=True)[1:]
    assert "--tile" in command
    assert "--weights" not in command
    image = np.zeros((192, 192), np.uint8)
    rows, columns = np.mgrid[:192, :192] % 32 - 16
    image[rows**2 + columns**2 < 90] = 150
    Image.fromarray(image).save(tmp_path / "slide.tif")
    monkeypatch.chdir(tmp_path)
    counts = []
    for words in (command, command[:2]):
        outcome = unimask(*words, "--task", "instance", "--output", f"found{len(words)}", "--device", "cpu")
        assert outcome.code == 0, outcome.err
        found = json.loads((tmp_path / f"found{len(words)}" / "slide.json").read_text(encoding="utf-8"))
        counts.append(len(found["segments"]))
    assert counts[0] == counts[1] >= 34  # of 36 discs
    (said,) = [record.getMessage() for record in caplog.records]
    assert re.search(r"trained on tiles of \d+ pixels .* keeps them: tiles of 1024 change nothing", said)
    outcome = unimask(*command[:2], "--tile", "40", "--overlap", "8", "--device", "cpu")
    assert outcome.code == 2
    assert re.search(r"trained on tiles of \d+ pixels .*; got 40, leave it out", outcome.err)


def test_a_mistake_of_ours_is_not_blamed_on_the_input(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise KeyError("colour")

    picture().save(tmp_path / "a.png")
    monkeypatch.setattr(Segmenter, "find", fail)
    given = ("predict", tmp_path / "a.png", "--weights", model, "--output", tmp_path / "out")
    outcome = unimask(*given)
    assert outcome.code == 1
    assert "unexpected error KeyError: 'colour'" in outcome.err
    assert "UNIMASK_TRACEBACK=1" in outcome.err
    monkeypatch.setenv("UNIMASK_TRACEBACK", "1")
    with pytest.raises(KeyError):
        unimask(*given)


def test_the_keyboard_stops_it(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    picture().save(tmp_path / "a.png")
    monkeypatch.setattr(Segmenter, "find", press)
    outcome = unimask("predict", tmp_path / "a.png", "--weights", model, "--output", tmp_path / "out")
    assert outcome.code == 130
    assert "Traceback" not in outcome.err


def test_many_pictures_are_summed_up_by_category(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unimask.cli.tables.MOST_IMAGES", 2)
    for index in range(3):
        picture(1, 1).save(tmp_path / f"{index}.png")
    given = ("predict", tmp_path, "--weights", model, "--output", tmp_path / "out", "--task", "semantic")
    outcome = unimask(*given)
    assert outcome.code == 0
    (row,) = [line.split("│")[2:4] for line in outcome.out.splitlines() if line.startswith("│ ")]
    assert [int(cell) for cell in row] == [3, 3]


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["x/a.png", "x/b.png"], ["a", "b"]),
        (["x/a.png", "x/a.jpg", "x/b.png"], ["a_png", "a_jpg", "b"]),
        (["x/a.png", "y/a.png"], ["x_a_png", "y_a_png"]),
        (["x/a.png", "x/A.PNG"], ["x_a_png", "x_A_PNG_2"]),
        (["x/a.png", "x/a.jpg", "x/a_png.bmp"], ["x_a_png", "a_jpg", "x_a_png_bmp"]),
        (["x/z/a.png", "y/z/a.png"], ["z_a_png", "z_a_png_2"]),
    ],
)
def test_names_of_results_never_collide(files: list[str], names: list[str]) -> None:
    assert output_names([Path(file) for file in files]) == names


def test_processes_share_a_folder_without_gaps_or_doubles(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(5):
        picture(31, 37, seed=index).save(tmp_path / f"{index}.png")
    written: list[set[str]] = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        out = tmp_path / f"out{rank}"
        assert unimask("predict", tmp_path, "--weights", model, "--output", out).code == 0
        written.append({path.stem for path in out.glob("*.json")})
    assert sorted(name for names in written for name in names) == ["0", "1", "2", "3", "4"]
    monkeypatch.setenv("RANK", "3")
    assert "RANK: is '3' of '3' processes" in refused("predict", tmp_path, "--weights", model)


def test_a_folder_of_mixed_sizes_goes_through_the_model_in_batches(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of four sizes come in turn; the results are those of each image alone, in the order of names."""
    sizes = [(40, 64), (64, 40), (64, 64), (96, 64)]
    (tmp_path / "in").mkdir()
    for index in range(14):
        picture(*sizes[index % 4], seed=index).save(tmp_path / "in" / f"{index:02}.png")
    passes: list[int] = []
    forward = Predictor.forward

    def counted(self: Predictor, images: ImageBatch) -> Prediction:
        passes.append(len(images.pixels))
        return forward(self, images)

    monkeypatch.setattr(Predictor, "forward", counted)
    records = {}
    for number in (1, 3):
        given = ("--weights", model, "--output", tmp_path / f"out{number}", "--batch-size", number, "--json")
        records[number] = unimask("predict", tmp_path / "in", *given).json()
    assert passes == [1] * 14 + [3, 3, 3, 3, 1, 1]
    assert [record["name"] for record in records[3]] == [f"{index:02}" for index in range(14)]
    for alone, together in zip(records[1], records[3], strict=True):
        scores = [[segment.pop("score") for segment in one["segments"]] for one in (alone, together)]
        assert alone == together
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)
        files = (tmp_path / f"out{number}" / f"{alone['name']}.segments.png" for number in records)
        assert len({file.read_bytes() for file in files}) == 1


def test_batches_tiles_and_augmentation_write_the_same_files(model: Path, tmp_path: Path) -> None:
    for index in range(3):
        picture(33 if index else 47, 37, seed=index).save(tmp_path / f"{index}.png")
    given = ("predict", tmp_path, "--weights", model, "--task", "panoptic")
    for name, extra in (("one", ("--batch-size", 1)), ("many", ("--batch-size", 3))):
        assert unimask(*given, "--output", tmp_path / name, *extra).code == 0
    for index in range(3):
        one, many = (tmp_path / name / f"{index}.segments.png" for name in ("one", "many"))
        assert (ids_in(one) == ids_in(many)).mean() > 0.99
    outcome = unimask(*given, "--output", tmp_path / "tta", "--tta", "flip", "--tile", 32, "--overlap", 8)
    assert outcome.code == 0, outcome
    assert len(list((tmp_path / "tta").glob("*.json"))) == 3
    assert "tta: turn does not exist" in refused(*given, "--tta", "turn")
    assert "below the size" in refused(*given, "--tile", 32, "--overlap", 32)
