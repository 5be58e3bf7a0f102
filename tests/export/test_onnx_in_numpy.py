"""The example in numpy finds the segments of `predict`: whole and in tiles, for every task."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from cli.command_line import picture
from export.blobs import save_blobs

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
