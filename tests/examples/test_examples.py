"""Every script and every notebook of `examples/` runs."""

import inspect
import re
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from cli.command_line import picture
from export.blobs import save_blobs
from nbclient import NotebookClient

import unimask
import unimask.exporting.run

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: str, folder: Path) -> str:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_script_is_run_here() -> None:
    text = Path(__file__).read_text("utf-8")
    files = [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.ipynb")]
    assert len(files) == 9
    listed = (EXAMPLES / "README.md").read_text("utf-8")
    assert [file.name for file in files if f'"{file.name}"' not in text or file.name not in listed] == []


def test_predict_and_draw(tmp_path: Path) -> None:
    assert "30 found" in run("predict_and_draw.py", folder=tmp_path)
    assert (tmp_path / "output" / "predict_and_draw" / "nuclei_1.png").is_file()


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the notebook on training draws."""
    folder = tmp_path_factory.mktemp("examples")
    notebook = nbformat.read(EXAMPLES / "train_on_your_folder.ipynb", as_version=4)
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    code = cell.source.replace("tempfile.mkdtemp()", repr(str(folder)))
    subprocess.run([sys.executable, "-c", code], check=True)
    return folder / "my_data"


def test_train_and_evaluate(labelled: Path, tmp_path: Path) -> None:
    options = ("--task", "semantic", "--preset", "tiny", "--steps", "1", "--initial", "none")
    said = run("train_on_folder.py", str(labelled), *options, folder=tmp_path)
    assert "best after step 1" in said
    weights = str(tmp_path / "runs" / "example" / "best")
    measured = run("evaluate.py", str(labelled), "--task", "semantic", "--weights", weights, folder=tmp_path)
    assert "mIoU" in measured


def test_own_dataset(tmp_path: Path) -> None:
    said = run("own_dataset.py", "--steps", "2", folder=tmp_path)
    assert "after 2 steps: AP " in said
    assert (tmp_path / "runs" / "own_dataset" / "model").is_dir()


def test_export_and_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a file that is there already: exporting, and "onnx_in_numpy.py", are tested in tests/export."""

    def export(weights: str, output: Path, images: list[object]) -> None:
        inspect.signature(unimask.exporting.run.export).bind(weights, output, images=images)
        save_blobs(output, {"postprocess.instance_threshold": 0.1})

    monkeypatch.setattr(unimask, "export", export)
    picture(53, 67).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr("sys.argv", ["export_and_run.py", "--image", "image.png"])
    runpy.run_path(str(EXAMPLES / "export_and_run.py"))
    counts = re.findall(r": (\d+) instances", capsys.readouterr().out)
    assert len(counts) == 2
    assert int(counts[0]) == int(counts[1]) > 0


def test_draw_attention(tmp_path: Path) -> None:
    run("draw_attention.py", folder=tmp_path)
    drawn = {file.name for file in (tmp_path / "output" / "attention").glob("*.png")}
    assert drawn == {"encoder.png", "masked.png", "cross.png", "masked_attention.png"}


@pytest.mark.filterwarnings("ignore")  # of Jupyter's own packages
@pytest.mark.parametrize("name", ["predict_and_draw.ipynb", "train_on_your_folder.ipynb"])
def test_notebook(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPS", "2")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    drawn = [
        out
        for cell in notebook.cells
        for out in cell.get("outputs", [])
        if "image/png" in out.get("data", {})
    ]
    assert drawn
