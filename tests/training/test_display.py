"""What people look at in the folder of a run, and what is logged elsewhere."""

import csv
import json
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from training.small_runs import run

from unimask.errors import ConfigError, MissingPackageError
from unimask.training import image_job
from unimask.training.curves import categories_table, loss_terms, results_table
from unimask.training.display import Display
from unimask.training.progress import SilentReporter
from unimask.training.report import report
from unimask.training.run_folder import RunFolder

SETTINGS: dict[str, object] = {"training__steps": 4, "training__evaluate_every": 2, "training__log_every": 1}


class Kept:
    """A logger that keeps what it is told."""

    def __init__(self) -> None:
        self.numbers: list[tuple[str, int]] = []
        self.images: list[tuple[str, int]] = []
        self.closed = 0

    def values(self, group: str, step: int, values: Mapping[str, float]) -> None:
        assert values
        self.numbers.append((group, step))

    def image(self, name: str, step: int, image: Image.Image) -> None:
        assert min(image.size) > 20
        self.images.append((name, step))

    def close(self) -> None:
        self.closed += 1


class Failing(Kept):
    def values(self, group: str, step: int, values: Mapping[str, float]) -> None:
        raise OSError("the server is gone")


class Told(SilentReporter):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


@pytest.fixture(scope="module")
def kept() -> Kept:
    return Kept()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, kept: Kept) -> Path:
    """A finished run with two evaluations."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    run(folder, loggers=(kept,), **SETTINGS)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_tables_hold_what_the_log_holds(folder: Path) -> None:
    table = rows(folder / "results.csv")
    assert [row["step"] for row in table] == ["1", "2", "3", "4"]
    assert [bool(row["PQ"]) for row in table] == [False, True, False, True]
    log = lines(folder)
    losses = [line["loss"] for line in log if line["kind"] == "step"]
    assert [float(row["loss"]) for row in table] == losses
    assert set(loss_terms(log)) == {"class", "mask", "dice"}
    found = rows(folder / "categories.csv")
    assert {row["step"] for row in found} == {"2", "4"}
    assert {"circle", "sky"} & {row["category"] for row in found}
    last = next(line for line in reversed(log) if line["kind"] == "evaluation")
    written = [row for row in found if row["step"] == "4"]
    assert {row["category"]: float(row["PQ"]) for row in written} == {
        name: numbers["PQ"] for name, numbers in last["per_category"].items()
    }


def test_images_of_each_evaluation(folder: Path) -> None:
    assert sorted(path.name for path in (folder / "validation").iterdir()) == ["step_2.png", "step_4.png"]
    for name in ("curves", "worst", "confusion", "validation/step_4"):
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 100
    confusion = json.loads((folder / "confusion.json").read_text())
    assert (confusion["step"], confusion["unit"]) == (4, "segments")
    assert len(confusion["matrix"]) == len(confusion["names"]) + 1
    assert sum(map(sum, confusion["matrix"])) == sum(
        sum(outcomes.values()) for outcomes in confusion["by_size"].values()
    )


class Addresses(HTMLParser):
    """What a page would load, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_one_file_with_everything_in_it(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    found = Addresses()
    found.feed(page)
    assert len(found.loaded) == 2 * 2 + 2  # two halves of the images of two evaluations and of the worst ones
    assert all(address.startswith("data:image/webp;base64,") for address in found.loaded)
    assert page.count("http") == page.count("http://www.w3.org/2000/svg") == page.count("<svg")
    assert "@import" not in page
    assert "url(" not in page
    for words in ("first finished, 4 steps", "panoptic segmentation on shapes", "best PQ", "training.seed=0"):
        assert words in " ".join(found.text.split())
    for words in ("circle", "missed", "segments by size", "learning rate"):
        assert words in found.text


def test_a_run_without_a_line_in_its_log_has_no_curves_and_no_complaint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.begin({"task": "instance", "data": "d", "images": 3, "experiment": {}}, resume=False)
    told: list[str] = []
    Display(folder, 0, told.append).refresh()
    assert told == []
    assert (folder.path / "report.html").exists()
    assert not (folder.path / "curves.png").exists()


def test_names_are_text_on_the_page(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a <b> & c")
    experiment: dict[str, object] = {"training": {"steps": 10}}
    folder.begin({"task": "semantic", "data": "<i>", "images": 3, "experiment": experiment}, resume=False)
    folder.append_metrics({"kind": "skipped", "step": 2, "problems": ["mask of <s>.png"]})
    values = {"mIoU": None, "pixel_accuracy": 0.5}
    per_category = {"<script>": {"IoU": 0.25}}
    folder.append_metrics(
        {"kind": "evaluation", "step": 5, "seconds": 1.0, "values": values, "per_category": per_category}
    )
    page = report(folder)
    assert "&lt;script&gt;" in page
    for raw in ("<b>", "<i>", "<s>"):
        assert raw not in page.replace("<b>0", "")
    assert page.count("<script>") == 1  # the page's own
    assert "step 5 of 10" in page


def test_a_logger_of_ones_own_is_told_everything(folder: Path, kept: Kept) -> None:
    expected = [
        ("training", 1),
        ("training", 2),
        ("evaluation", 2),
        ("training", 3),
        ("training", 4),
        ("evaluation", 4),
    ]
    assert kept.numbers == expected
    assert set(kept.images) == {
        (name, step) for name in ("validation", "worst", "confusion") for step in (2, 4)
    }
    assert kept.closed == 1


def test_neither_a_drawing_nor_a_logger_that_fails_ends_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    def broken(*arguments: object) -> Image.Image:
        raise ValueError("no paint left")

    monkeypatch.setattr(image_job, "gallery_sheet", broken)
    reporter, failing = Told(), Failing()
    result = run(tmp_path / "run", reporter=reporter, loggers=(failing,), **SETTINGS)
    assert result.completed
    shown = "\n".join(reporter.messages)
    assert "the images of the evaluation could not be written (ValueError: no paint left)" in shown
    assert shown.count("nothing more is logged there (OSError: the server is gone)") == 1
    assert not (tmp_path / "run" / "worst.png").exists()
    timeless = ("seconds", "images_per_second")
    plain = [{k: v for k, v in line.items() if k not in timeless} for line in lines(folder)]
    assert [{k: v for k, v in line.items() if k not in timeless} for line in lines(tmp_path / "run")] == plain


def test_images_of_later_steps_go_when_a_run_is_resumed(tmp_path: Path) -> None:
    settings = SETTINGS | {"training__steps": 3, "training__evaluate_every": 3}
    run(tmp_path, **settings)
    (tmp_path / "validation" / "step_9.png").write_bytes(b"")
    run(tmp_path, resume=True, **settings)
    assert [path.name for path in (tmp_path / "validation").iterdir()] == ["step_3.png"]


def test_a_logger_that_does_not_exist_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ConfigError, match=r"logger: 'comet' does not exist; there are: tensorboard, wandb, mlflow"
    ):
        run(tmp_path / "run", loggers=("comet",))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingPackageError, match=r"the logger wandb: needs wandb, .* unimask\[wandb\]"):
        run(tmp_path / "run", loggers=("wandb",))
    assert not (tmp_path / "run").exists()


def test_tables_of_a_log_with_gaps() -> None:
    log = [
        {"kind": "step", "step": 20, "loss": None, "seconds": 1.0},
        {"kind": "skipped", "step": 20, "problems": []},
        {"kind": "evaluation", "step": 25, "seconds": 0.5, "values": {"PQ": None}},  # of an earlier version
    ]
    assert [row["step"] for row in results_table(log)] == [20, 25]
    assert categories_table(log) == []
