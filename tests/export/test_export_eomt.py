"""Exported EoMT: one square for learned positions, any multiple of the patch for rotary ones."""

import json
from pathlib import Path

import pytest
import torch
from shape_checks import no_shape_checks

from unimask.checkpoints.images import ModelFile, save_model
from unimask.checkpoints.onnx import final_tensors
from unimask.config.overrides import override
from unimask.data.category_tables import load_categories
from unimask.exporting import parity
from unimask.exporting.run import export
from unimask.inference.loading import load
from unimask.models.build import build_model
from unimask.presets.eomt import eomt_tiny


@pytest.fixture(params=["dinov2", "dinov3", "dinov3-masked"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    kind, _, masked = request.param.partition("-")
    changes: dict[str, object] = {
        "model.backbone.kind": kind,
        "model.backbone.blocks": 3,
        "model.backbone.channels": 24,
        "model.query_blocks": 2,
        "model.attention": "masked" if masked else "annealed",
        "postprocess.object_threshold": 0.05,
        "postprocess.instance_threshold": 0.01,
        "data.divisor": 16,
    }
    experiment = override(eomt_tiny(), changes)
    categories = load_categories("cityscapes")
    torch.manual_seed(3)
    model = build_model(experiment.model, len(categories)).eval()
    about = ModelFile(
        experiment=experiment,
        task="panoptic",
        categories=categories,
        licence="none",
        provenance=request.param,
    )
    save_model(tmp_path / request.param, model, about)
    return tmp_path / request.param


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_an_exported_model_predicts_as_the_model_does(
    folder: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason=f"{name} is not installed (the extra `export`)")
    monkeypatch.setattr(parity, "TIMED", (1, 64, 96))
    path = folder.with_suffix(f".{form}")
    images = [torch.randint(0, 256, (3, 50, 61), dtype=torch.uint8)]
    with no_shape_checks():
        report = export(folder, path, form, images)
    assert [one.output for one in report.differences] == ["class_logits", "mask_embeddings", "mask_features"]
    assert all(one.difference < 1e-3 for one in report.differences)
    assert all(one.pixels > 0.999 for one in report.agreement)
    if form == "pt2":
        program = torch.export.load(path).module().forward
        network = lambda pixels: program(pixels)  # noqa: E731
    else:
        network = load(path).model
    model = load(folder, "cpu").model
    fixed = json.loads((folder / "config.json").read_text())["experiment"]["model"]["backbone"]
    sizes = ((1, 64, 64), (3, 64, 64))
    if fixed["kind"] == "dinov3":
        sizes = (*sizes, (2, 64, 112), (1, 136, 80))
    for batch, height, width in sizes:
        pixels = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            one = final_tensors(model(pixels))
            found = network(pixels)
            other = found if isinstance(found, tuple) else final_tensors(found)
        for mine, theirs in zip(one, other, strict=True):
            torch.testing.assert_close(theirs, mine, atol=1e-3, rtol=0)
