"""What only an extra installs is not needed for the rest, and is named where it is missing."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from cli.command_line import unimask as unimask_command
from PIL import Image

import unimask as public
from unimask.data.windows import open_large
from unimask.errors import MissingPackageError, needs_extra
from unimask.inference import stream

ROOT = Path(__file__).parents[1]
MODULES = {
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "fiftyone": ("fiftyone",),
    "mlflow": ("mlflow",),
    "pandas": ("pandas",),
    "ray": ("ray",),
    "remote": ("s3fs", "gcsfs"),
    "roi": ("roifile",),
    "serve": ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "httpx"),
    "supervision": ("supervision",),
    "tensorboard": ("tensorboard",),
    "text": ("tokenizers", "sacrebleu"),
    "tiff": ("tifffile", "zarr", "imagecodecs"),
    "video": ("av",),
    "wandb": ("wandb",),
}


def hide(patch: pytest.MonkeyPatch, *names: str) -> None:
    """Make the imports of these modules fail, and forget the modules of ours that have imported them."""
    for name in names:
        patch.setitem(sys.modules, name, None)
    for name in [name for name in sys.modules if name.startswith("unimask.serve.")]:
        patch.delitem(sys.modules, name)


def sentence(what: str, package: str, extra: str) -> str:
    return (
        f"{what}: needs {package}, which is not installed; "
        f"install unimask[{extra}] (pip install 'unimask[{extra}]')"
    )


def run_python(code: str, *, hidden: tuple[str, ...], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh process in which these modules cannot be imported."""
    head = f"import sys; sys.modules.update(dict.fromkeys({hidden!r}))\n"
    return subprocess.run([sys.executable, "-c", head + code], capture_output=True, text=True, cwd=folder)


def test_every_extra_is_listed_here() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert {*extras} == {*MODULES, "all"}
    every = [name for name in MODULES if name != "fiftyone"]  # which brings a database
    assert extras["all"] == [f"unimask[{','.join(every)}]"]
    rows = (ROOT / "docs" / "guide" / "install.md").read_text("utf-8")
    for name in MODULES:
        brought = [re.split(r"[<>=\[]", one)[0] for one in extras[name]]
        row = re.search(rf"^\| `{name}` \|.*\| (.*) \|$", rows, re.MULTILINE)
        assert row is not None, name
        assert all(one in row[1] for one in brought), name
    required = {re.split(r"[<>=]", one)[0] for one in project["dependencies"]}
    assert not {name.replace("_", "-") for names in MODULES.values() for name in names} & required


def test_an_error_inside_our_own_code_is_not_a_missing_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"unimask\.nothing"), needs_extra("serve", "x"):
        import unimask.nothing  # noqa: F401


def test_load_train_predict_and_evaluate_need_no_extra(tmp_path: Path) -> None:
    code = """
import unimask
from unimask.data.open import open_dataset
settings = {"training.steps": 1, "training.batch_size": 1, "training.workers": 0}
experiment = unimask.override(unimask.presets.PRESETS["tiny"](), settings)
unimask.train(experiment, "shapes", "run", device="cpu")
model = unimask.load("run/model", device="cpu")
sample = open_dataset("shapes", "val", "panoptic")[0]
result = model.predict(sample.image, task="panoptic")
result.plot()
class One:
    categories, image_ids = open_dataset("shapes", "val", "panoptic").categories, (sample.image_id,)
    def __len__(self): return 1
    def __getitem__(self, index): return sample
print(unimask.evaluate(model, One(), "panoptic").values["PQ"])
print(unimask.convert, unimask.export)
"""
    hidden = tuple(name for names in MODULES.values() for name in names)
    done = run_python(code, hidden=hidden, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sentence("the log for TensorBoard", "tensorboard", "tensorboard") in done.stdout + done.stderr
    assert (tmp_path / "run" / "metrics.jsonl").is_file()


def test_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in MODULES["serve"]:
        with monkeypatch.context() as patch:
            hide(patch, name)
            done = unimask_command("serve")
        assert done.code == 2
        assert sentence("unimask serve", name, "serve") in " ".join(done.err.split())


def test_translate_and_bleu(tmp_path: Path) -> None:
    code = """
import sys
from unimask.errors import MissingPackageError
from unimask.metrics.bleu import bleu_of_text
try:
    bleu_of_text(["a dog"], ["a dog"])
except MissingPackageError as error:
    print(error, error.extra)
from unimask.cli import main
sys.argv = ["unimask", "translate", "A dog.", "--weights", "en-de"]
main()
"""
    done = run_python(code, hidden=MODULES["text"], folder=tmp_path)
    assert done.returncode == 2
    assert done.stdout.strip() == sentence("BLEU", "sacrebleu", "text") + " text"
    assert sentence("translation", "tokenizers", "text") in " ".join(done.stderr.split())


def test_export(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in MODULES["export"]:
        with monkeypatch.context() as patch:
            hide(patch, name)
            with pytest.raises(MissingPackageError) as missing:
                public.export("nuclei", tmp_path / "nuclei.onnx")
        assert str(missing.value) == sentence("nuclei", name, "export")


def test_an_onnx_file_and_windows_of_a_tiff(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hide(monkeypatch, "onnxruntime", "zarr")
    with pytest.raises(MissingPackageError) as missing:
        public.load(tmp_path / "a.onnx")
    assert str(missing.value) == sentence(str(tmp_path / "a.onnx"), "onnxruntime", "export")
    Image.new("L", (40, 30)).save(tmp_path / "a.tif")
    with pytest.raises(MissingPackageError) as missing, open_large(tmp_path / "a.tif"):
        raise AssertionError("zarr is hidden")
    assert str(missing.value) == sentence(str(tmp_path / "a.tif"), "zarr", "tiff")


def test_one_tiff_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hide(monkeypatch, "tifffile")
    Image.new("L", (40, 30)).save(tmp_path / "a.tif")
    Image.new("L", (20, 30)).save(tmp_path / "b.png")
    monkeypatch.setattr(stream, "MOST_PIXELS", 1199)
    files = (tmp_path / "a.tif", tmp_path / "b.png")
    done = unimask_command("predict", *files, "--output", tmp_path / "out", "--device", "cpu")
    assert done.code == 2
    assert "install unimask[tiff]" in done.err
    assert (tmp_path / "out" / "b.json").is_file()


def test_supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "supervision")
    image = Image.new("RGB", (40, 30))
    with pytest.raises(MissingPackageError) as missing:
        public.load("nuclei", device="cpu").predict(image, task="instance").to_supervision()
    assert str(missing.value) == sentence("to_supervision", "supervision", "supervision")


def test_fiftyone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hide(monkeypatch, "fiftyone")
    result = public.load("nuclei", device="cpu").predict(Image.new("RGB", (40, 30)), task="instance")
    with pytest.raises(MissingPackageError) as missing:
        result.to_fiftyone()
    assert str(missing.value) == sentence("to_fiftyone", "fiftyone", "fiftyone")
    with pytest.raises(MissingPackageError) as missing:
        public.fiftyone_dataset(tmp_path, tmp_path)
    assert str(missing.value) == sentence("fiftyone_dataset", "fiftyone", "fiftyone")


def test_pandas_and_rois(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hide(monkeypatch, "pandas", "roifile")
    result = public.load("nuclei", device="cpu").predict(Image.new("RGB", (40, 30)), task="instance")
    with pytest.raises(MissingPackageError) as missing:
        result.to_pandas()
    assert str(missing.value) == sentence("to_pandas", "pandas", "pandas")
    with pytest.raises(MissingPackageError) as missing:
        result.save(tmp_path, formats=("json", "imagej-roi"))
    assert str(missing.value) == sentence("the ROIs of ImageJ", "roifile", "roi")
    assert list(tmp_path.iterdir()) == []


def test_a_video_does_not_stop_the_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hide(monkeypatch, "av")
    Image.new("L", (40, 30)).save(tmp_path / "a.png")
    (tmp_path / "clip.mp4").write_bytes(b"a video")
    files = (tmp_path / "clip.mp4", tmp_path / "a.png")
    done = unimask_command("predict", *files, "--output", tmp_path / "out", "--device", "cpu")
    assert done.code == 2
    assert sentence(str(tmp_path / "clip.mp4"), "av", "video") in done.err
    assert (tmp_path / "out" / "a.json").is_file()
