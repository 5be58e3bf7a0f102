"""What stands in the README about Python works as it stands there."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli.command_line import picture
from PIL import Image

import unimask
from unimask.errors import ConfigError, DataError, UnimaskError, WeightsError

EXAMPLE = Path(__file__).parents[2] / "examples" / "nuclei_2.png"
FUNCTIONS = (
    "check",
    "compare",
    "convert",
    "evaluate",
    "export",
    "fiftyone_dataset",
    "load",
    "load_translator",
    "make_categories",
    "make_sample",
    "override",
    "plan",
    "predict",
    "predict_dataset",
    "push",
    "read_result",
    "train",
    "write_shards",
)


def test_exactly_these_names_are_public() -> None:
    functions = set(FUNCTIONS)
    types = {"Dataset", "Result", "Sample", "Segmenter"}
    assert set(unimask.__all__) == functions | types | {"presets", "__version__"}
    for name in functions | types:
        public = getattr(unimask, name)
        assert public.__doc__
        assert public.__name__ == name
        assert callable(public)
    assert unimask.presets.PRESETS["tiny"]()


def test_the_public_names_are_imported_when_they_are_used() -> None:
    """In a fresh process; a package of the library that is imported first hides none of them."""
    code = (
        "import sys, unimask; assert not {'torch', 'numpy', 'pydantic'} & sys.modules.keys()\n"
        "import unimask.exporting.run, unimask.training.run, unimask.conversion.run\n"
        "assert all(callable(getattr(unimask, name)) for name in ('export', 'train', 'convert', 'evaluate'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("switch", ["enable", "disable"])
def test_importing_leaves_the_garbage_collector_as_it_was(switch: str) -> None:
    """In a fresh process; also where the import fails."""
    code = (
        f"import gc, sys; gc.{switch}(); before = gc.isenabled()\n"
        "import unimask; sys.modules['unimask.inference.loading'] = None\n"
        "unimask.override; assert gc.isenabled() == before\n"
        "try: unimask.load\n"
        "except ImportError: pass\n"
        "else: raise AssertionError\n"
        "assert gc.isenabled() == before"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_predicting_imports_nothing_that_only_training_needs(tmp_path: Path) -> None:
    """In a fresh process: timm, torchvision and torch's compiler take longer to import than an image."""
    slow = ("timm", "torchvision", "torch._dynamo", "lightning_fabric")
    code = (
        "import sys; from unimask.cli import main\n"
        f"slow = {slow}\n"
        "try: main()\n"
        "finally: print([name for name in slow if name in sys.modules])"
    )
    arguments = ["predict", str(EXAMPLE), "--output", str(tmp_path / "out"), "--device", "cpu"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
    assert (tmp_path / "out" / f"{EXAMPLE.stem}.json").is_file()


def test_every_kind_of_picture_gives_the_same(model: Path, tmp_path: Path) -> None:
    segmenter = unimask.load(model, device="cpu")
    image = picture()
    image.save(tmp_path / "photo.png")
    array = np.array(image)
    kinds = [
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
        image,
        array,
        torch.from_numpy(array).permute(2, 0, 1),
    ]
    results = segmenter.predict(kinds, task="instance")
    assert isinstance(results, list)
    assert [result.name for result in results] == ["photo", "photo", "image_2", "image_3", "image_4"]
    one = segmenter.predict(kinds[0], task="instance")
    assert one.segments
    for result in results:
        shown = [(segment.category, segment.bbox, segment.area) for segment in result.segments]
        assert shown == [(segment.category, segment.bbox, segment.area) for segment in one.segments]
        scores = [segment.score for segment in result.segments]
        assert scores == pytest.approx([segment.score for segment in one.segments], abs=1e-4)
    assert segmenter.predict([], task="instance") == []
    assert segmenter.predict((image,))[0].task == "panoptic"


def test_the_faces_of_a_result(model: Path, tmp_path: Path) -> None:
    segmenter = unimask.load(str(model), device="cpu")
    panoptic, instances = (segmenter.predict(picture(), task=task) for task in ("panoptic", "instance"))
    assert panoptic.plot().size == panoptic.to_panoptic_png().size == (61, 47)
    assert isinstance(panoptic.plot(), Image.Image)
    assert {path.name for path in panoptic.save(tmp_path, "a")} == {
        "a.overlay.png",
        "a.segments.png",
        "a.json",
    }
    assert [record["id"] for record in panoptic.to_coco()] == [segment.id for segment in panoptic.segments]
    assert {record["image_id"] for record in instances.to_coco(image_id=7)} == {7}
    with pytest.raises(ValueError, match="instances may overlap"):
        instances.to_panoptic_png()


def test_errors_have_one_base(model: Path) -> None:
    segmenter = unimask.load(model, device="cpu")
    for action, kind in (
        (lambda: unimask.load("no_such_model"), WeightsError),
        (lambda: unimask.load(model, device="toaster"), ConfigError),
        (lambda: segmenter.predict("missing.png"), DataError),
        (lambda: segmenter.predict("x" * 5000 + ".png"), DataError),
        (lambda: unimask.evaluate("no_such_model", "shapes"), WeightsError),
        (lambda: segmenter.predict(np.zeros((0, 3, 3), dtype=np.uint8)), DataError),
        (lambda: segmenter.predict(torch.zeros(3, 5, 5)), DataError),
        (lambda: segmenter.predict(torch.zeros(3, 5, 5, dtype=torch.bfloat16)), DataError),
        (lambda: segmenter.predict(picture(), threshold=1.5), ConfigError),
    ):
        with pytest.raises(UnimaskError) as caught:
            action()
        assert type(caught.value) is kind
        assert "\n" not in str(caught.value)


def test_a_segmenter_is_called_as_models_are(model: Path) -> None:
    segmenter = unimask.load(model, device="cpu")
    assert segmenter(picture(), task="instance").segments == segmenter.predict(picture(), "instance").segments


def test_a_model_and_an_image_are_named(model: Path, tmp_path: Path) -> None:
    """Where a segmenter and a list are expected, the name of a model and one image will do."""
    picture().save(tmp_path / "photo.png")
    found = unimask.predict(model, tmp_path / "photo.png", tmp_path / "found", device="cpu")
    assert (found.images, found.failed) == (1, ())
    assert (tmp_path / "found" / "photo.json").is_file()


def test_what_is_no_path_is_told_apart(model: Path, tmp_path: Path) -> None:
    segmenter = unimask.load(model, device="cpu")
    for given, message in {
        str(tmp_path): "is a folder, not an image; `unimask.predict` takes folders",
        str(
            tmp_path / "*.png"
        ): r"no such file; a pattern is no path: give the files, `sorted\(Path\(\)\.glob",
        "https://localhost/a.png": "no such file; an address is no path: download the file",
        str(tmp_path / "a.png"): r"no such file$",
    }.items():
        with pytest.raises(DataError, match=message):
            segmenter.predict(given)
    with pytest.raises(DataError, match="a shell expands a pattern that has no quotes around it"):
        unimask.predict(segmenter, tmp_path / "*.png", tmp_path / "found")


def test_counts_have_their_range(model: Path, tmp_path: Path) -> None:
    """They are refused before anything is computed, not taken for the nearest that is possible."""
    segmenter = unimask.load(model, device="cpu")
    for count in (0, -3, True):
        asked: dict[str, Any] = {"batch_size": count}
        for call in (
            lambda asked=asked: segmenter.predict(picture(), **asked),
            lambda asked=asked: segmenter.see([], **asked),
            lambda asked=asked: segmenter.find([], "instance", **asked),
            lambda asked=asked: unimask.evaluate(segmenter, "shapes:32x40", "semantic", **asked),
            lambda asked=asked: unimask.predict(segmenter, tmp_path, tmp_path / "found", **asked),
        ):
            with pytest.raises(ConfigError, match=f"batch_size: must be a whole .* at least 1; got {count}"):
                call()
    with pytest.raises(ConfigError, match="every: must be a whole number of at least 1; got 0"):
        unimask.predict(segmenter, tmp_path, tmp_path / "found", every=0)
    with pytest.raises(ConfigError, match="overlap: must be a whole number of at least 0; got -1"):
        segmenter.with_tiles(64, -1)
    with pytest.raises(ConfigError, match="epochs: must be a number of at least 0; got nan"):
        unimask.plan("shapes:32x40", epochs=float("nan"))


def test_a_model_is_measured_on_a_path(model: Path, tmp_path: Path) -> None:
    """The public `evaluate` opens what the command takes, and `train` what `evaluate` measures."""
    segmenter = unimask.load(model, device="cpu")
    with pytest.raises(DataError, match="no such file or folder"):
        unimask.evaluate(segmenter, tmp_path / "nothing", "instance")
    settings = {"training.steps": 1, "training.batch_size": 1, "training.workers": 0, "training.log_every": 1}
    experiment = unimask.override(unimask.presets.named("tiny"), settings)
    result = unimask.train(experiment, "shapes:32x40", tmp_path / "run", task="semantic", device="cpu")
    found = unimask.evaluate(result.output, "shapes:32x40", "semantic")
    assert found.values["mIoU"] == pytest.approx(result.best["mIoU"])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_functions_are_typed_and_documented(name: str) -> None:
    """Completion in an editor shows what every argument takes, and what a function raises."""
    function = getattr(unimask, name)
    signature = inspect.signature(function)
    assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())
    assert signature.return_annotation is not inspect.Signature.empty
    assert "Raises:" in function.__doc__
