"""The example in numpy finds the segments of `predict`: whole and in tiles, for every task."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from cli.command_line import picture
from export.models import Exports

from unimask.checkpoints.onnx import DESCRIPTION_KEY
from unimask.inference.segmenter import load

EXAMPLE = Path(__file__).parents[2] / "examples" / "onnx_in_numpy.py"
VIEWS: dict[str, dict[str, object]] = {
    "whole": {"resize": {"kind": "short_side", "size": 96, "longest": 200}},
    "tiles": {
        "view": {"kind": "tiles", "size": 40, "overlap": 24},
        "resize": {"kind": "scale", "factor": 1.25},
        "padding": "black",
    },
}
LIMITS = {
    "duplicate_iou": 0.5,
    "object_threshold": 0.05,
    "overlap_threshold": 0.3,
    "instance_threshold": 0.02,
    "max_instances": 30,
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
def file(exports: Exports, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model that sees images in another way; only its metadata is another."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed (the extra `export`)")
    model = onnx.load(exports.file("mask2former", "onnx"))
    (entry,) = (entry for entry in model.metadata_props if entry.key == DESCRIPTION_KEY)
    about = json.loads(entry.value)
    about["experiment"]["data"] |= VIEWS[request.param]
    about["experiment"]["postprocess"] |= LIMITS
    entry.value = json.dumps(about)
    path: Path = tmp_path_factory.mktemp("numpy") / f"{request.param}.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_the_segments_of_predict(example: ModuleType, file: Path, task: str) -> None:
    image = np.asarray(picture(83, 107))
    expected = load(file).predict(image, task=task).prediction
    found = example.segment(example.Model(file), image, task)
    assert len(found) > 2
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
