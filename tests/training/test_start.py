"""What is said before the first step, and what ends a run before it."""

import json
from pathlib import Path

import pytest
from data.dataset_files import annotation, coco_instances, save_coco_instances, save_json
from PIL import Image
from training.small_runs import small_experiment

from unimask.config.images import Experiment
from unimask.config.overrides import override
from unimask.data import check as check_module
from unimask.data.check import check
from unimask.errors import DataError
from unimask.training import start
from unimask.training.plan import plan
from unimask.training.progress import PlainReporter
from unimask.training.run import train


def data(root: Path, count: int = 4) -> Path:
    save_coco_instances(root / "instances_train.json", root / "images", count)
    save_json(root / "instances_val.json", coco_instances(2))
    return root


def run(root: Path, output: Path, resume: bool = False, **changes: object) -> list[str]:
    """What a short training on the data says."""
    said: list[str] = []
    settings = {"training__steps": 1, "training__evaluate_every": 1, "training__workers": 0, **changes}
    experiment = small_experiment(**settings)
    reporter = PlainReporter(said.append)
    train(experiment, root, output, task="instance", device="cpu", resume=resume, reporter=reporter)
    return said


def test_what_the_data_holds_is_said_and_kept(tmp_path: Path) -> None:
    said = run(data(tmp_path / "data"), tmp_path / "run", training__warmup_steps=9)
    assert said[0].startswith(f"{tmp_path / 'data'}: train 4 images with")
    assert "; val 2 images with" in said[0]
    assert any(one.startswith("warning: train: in fewer than 10 images: cat") for one in said)
    assert any("warning: the warm-up ends after step 9, and the run after step 1" in one for one in said)
    assert any("warning: the weights start at random" in one and "--initial" in one for one in said)
    kept = json.loads((tmp_path / "run" / "check.json").read_text())
    assert (kept["splits"]["train"]["images"], kept["errors"]) == (4, [])
    with Image.open(tmp_path / "run" / "check.png") as sheet:
        assert sheet.width > 400
    (tmp_path / "run" / "check.json").unlink()
    again = run(tmp_path / "data", tmp_path / "run", resume=True, training__steps=2, training__warmup_steps=9)
    assert not any("warning" in one for one in again)  # it was said when the run began


def test_data_that_were_read_for_the_plan_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = data(tmp_path / "data")
    settings = {"training.steps": 1, "training.evaluate_every": 1, "training.workers": 0}
    found = plan(root, changes=settings, initial="none", device="cpu")
    assert found.checked is not None
    reads: list[object] = []
    looks = check_module.check_datasets

    def looked(*given: object, **options: object) -> object:
        reads.append(given)
        return looks(*given, **options)

    monkeypatch.setattr(start, "check_datasets", looked)
    small = small_experiment(**{name.replace(".", "__"): value for name, value in settings.items()})
    options = {"task": "instance", "device": "cpu", "reporter": PlainReporter(lambda text: None)}
    train(small, root, tmp_path / "known", checked=found.checked, **options)
    assert not reads
    train(small, root, tmp_path / "unknown", **options)
    assert len(reads) == 1
    kept = [json.loads((tmp_path / name / "check.json").read_text()) for name in ("known", "unknown")]
    assert kept[0] == kept[1]  # as the model sees it, not as the plan did
    other = override(small, {"data.background": False})
    train(other, root, tmp_path / "other", checked=found.checked, **options)
    assert len(reads) == 2  # it reads other ground truth


def test_generated_data_are_known(tmp_path: Path) -> None:
    said = run(Path("shapes:32x32"), tmp_path / "run", training__evaluate_every=0)
    assert not any("warning" in one for one in said)
    assert not (tmp_path / "run" / "check.json").exists()


def test_all_broken_images_are_named_before_the_first_step(tmp_path: Path) -> None:
    root = data(tmp_path / "data", 5)
    for name in ("p2.png", "p4.png"):
        (root / "images" / name).write_bytes((root / "images" / name).read_bytes()[:60])
    with pytest.raises(DataError, match=r"has 2 errors:\n.*p\d.png: .*\n.*p\d.png: ") as caught:
        run(root, tmp_path / "run")
    assert all(name in str(caught.value) for name in ("p2.png", "p4.png"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_nothing_to_find_ends_the_run(tmp_path: Path, split: str) -> None:
    root = data(tmp_path / "data")
    content = coco_instances(2)
    runs = {"size": [23, 31], "counts": [100, 23, 590]}
    content["annotations"] = [annotation(1, content["images"][0]["id"], runs, crowd=1)]
    save_json(root / f"instances_{split}.json", content)
    with pytest.raises(DataError, match="all 1 objects are crowd, so there is nothing to find"):
        run(root, tmp_path / "run")
    if split == "val":
        run(root, tmp_path / "run", training__evaluate_every=0)


def test_of_a_large_set_a_part_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "SECONDS", 0.0)
    said = run(data(tmp_path / "data", 6), tmp_path / "run")
    assert "train 6 images with" in said[0]
    assert "in the 1 that were looked at" in said[0]
    assert any("train: 1 of 6 images were read, the numbers are theirs" in one for one in said)
    assert not any("in fewer than" in one for one in said)


def test_the_check_knows_a_warm_up_that_is_too_long(tmp_path: Path) -> None:
    short = override(Experiment(), {"training.steps": 10, "training.warmup_steps": 10})
    assert any(
        "the warm-up ends after step 10" in one for one in check(data(tmp_path), "instance", short).warnings
    )
