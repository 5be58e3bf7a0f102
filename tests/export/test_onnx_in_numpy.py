"""The example in numpy finds the segments of `predict`: whole and in tiles, for every task."""

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cli.command_line import picture
from export.blobs import save_blobs, save_described
from PIL import Image

from unimask.checkpoints.images import load_model
from unimask.checkpoints.onnx import signature_of
from unimask.conversion.hub import find_model
from unimask.exporting.wrappers import exportable
from unimask.inference.loading import load

EXAMPLE = Path(__file__).parents[2] / "examples" / "onnx_in_numpy.py"
VIEWS: dict[str, dict[str, object]] = {
    "whole": {"data.resize": {"kind": "short_side", "size": 96, "longest": 200}},
    "stretched": {"data.resize": {"kind": "short_side", "size": 70, "longest": 85, "fit": "stretch"}},
    "exact": {"data.resize": {"kind": "exact", "height": 96, "width": 64}},
    "tiles": {
        "data.view": {"kind": "tiles", "size": 40, "overlap": 24},
        "data.resize": {"kind": "scale", "factor": 1.25},
        "data.padding": "black",
    },
}
LIMITS: dict[str, object] = {
    "postprocess.duplicate_iou": 0.5,
    "postprocess.object_threshold": 0.1,
    "postprocess.overlap_threshold": 0.02,
    "postprocess.instance_threshold": 0.1,
    "postprocess.max_instances": 30,
}


@pytest.fixture(scope="module")
def example() -> ModuleType:
    specification = importlib.util.spec_from_file_location("onnx_in_numpy", EXAMPLE)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def shipped(name: str, example: ModuleType, folder: Path) -> Any:
    """Return a model that ships with the package: the metadata of its ONNX file, and its network.

    To export the network takes minutes; that exported networks agree with the model is tested in
    `test_export.py`, so here the network that would be exported answers in the place of the file's.
    """
    model, about = load_model(find_model(name))
    path = save_described(folder / f"{name}.onnx", about)
    made, network = example.Model(path), exportable(model)

    def run(outputs: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        assert outputs == list(signature_of(about.experiment.model).outputs)
        with torch.inference_mode():
            return [one.numpy() for one in network(torch.from_numpy(inputs["pixels"]))]

    made.session = SimpleNamespace(run=run)
    return made


@pytest.fixture(scope="module")
def nuclei(example: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The model of nuclei, which sees tiles."""
    return shipped("nuclei", example, tmp_path_factory.mktemp("numpy"))


@pytest.fixture(scope="module", params=VIEWS)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says how it sees images."""
    path: Path = tmp_path_factory.mktemp("numpy") / f"{request.param}.onnx"
    return save_blobs(path, {**VIEWS[request.param], **LIMITS})


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_the_segments_of_predict(example: ModuleType, file: Path, task: str) -> None:
    image = np.asarray(picture(83, 107))
    expected = load(file).predict(image, task=task).prediction
    found = example.segment(example.Model(file), image, task)
    assert len(found) >= 2
    assert [label for label, _, _ in found] == expected.labels.tolist()
    np.testing.assert_allclose([score for _, score, _ in found], expected.scores.numpy(), atol=2e-3)
    same = sum(int((mask == wanted).sum()) for (_, _, mask), wanted in zip(found, expected.masks().numpy()))
    assert same > 0.999 * len(found) * image.shape[0] * image.shape[1]


def test_the_command(
    example: ModuleType, file: Path, monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path
) -> None:
    picture().save(tmp_path / "a.png")
    monkeypatch.setattr("sys.argv", ["onnx_in_numpy.py", str(file), str(tmp_path / "a.png")])
    example.main()
    assert "pixels in [" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["instance", "panoptic", "semantic"])
def test_the_shipped_model_of_tiles(example: ModuleType, nuclei: Any, task: str) -> None:
    """On a part of a real image that takes several tiles; every pixel is the same."""
    image = np.asarray(Image.open(EXAMPLE.with_name("nuclei_1.png")).convert("RGB"))[100:260, 200:360]
    assert len(example.tiles_of(image.shape[:2], nuclei.data["view"])) == 4
    expected = load("nuclei", device="cpu").predict(image, task=task).prediction
    found = example.segment(nuclei, image, task)
    assert len(found) == len(expected.labels)
    assert len(found) > (1 if task == "semantic" else 3)
    assert [label for label, _, _ in found] == expected.labels.tolist()
    np.testing.assert_allclose([score for _, score, _ in found], expected.scores.numpy(), atol=2e-3)
    for (_, _, mask), wanted in zip(found, expected.masks().numpy()):
        np.testing.assert_array_equal(mask, wanted)


def test_the_shipped_model_of_pixels(example: ModuleType, tmp_path: Path) -> None:
    """A model that classifies each pixel: scores are a softmax."""
    image = np.asarray(picture(97, 131))
    expected = load("street", device="cpu").predict(image, task="semantic").prediction
    found = example.segment(shipped("street", example, tmp_path), image)
    assert [label for label, _, _ in found] == expected.labels.tolist()
    assert expected.scores.max() > 0.4  # a share of eleven sigmoids would be .2 at most where half are on
    np.testing.assert_allclose([score for _, score, _ in found], expected.scores.numpy(), atol=2e-3)
