"""The benchmark's two sides on one EoMT: the same logits, and results of every task."""

from pathlib import Path

import pytest
import torch

from unimask.benchmark.sides import UnimaskSide, agreement
from unimask.benchmark.timing import Stopwatch
from unimask.benchmark.transformers_side import exported, side_like
from unimask.checkpoints.images import ModelFile, save_model
from unimask.config.overrides import override
from unimask.data.category_tables import load_categories
from unimask.models.build import build_model
from unimask.presets.eomt import eomt_tiny


@pytest.mark.parametrize("kind", ["dinov2", "dinov3"])
def test_both_sides_of_an_eomt(kind: str, tmp_path: Path) -> None:
    changes = {"model.backbone.kind": kind, "model.backbone.patch": 16, "postprocess.object_threshold": 0.05}
    experiment = override(eomt_tiny(), changes)
    categories = load_categories("cityscapes")
    torch.manual_seed(3)
    model = build_model(experiment.model, len(categories)).eval()
    about = ModelFile(
        experiment=experiment, task="panoptic", categories=categories, licence="none", provenance="random"
    )
    save_model(tmp_path / "model", model, about)
    image = torch.randint(0, 256, (3, 48, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with exported(tmp_path / "model") as folder:
        for task in ("panoptic", "semantic"):
            ours = UnimaskSide(folder=tmp_path / "model", task=task).load("cpu")
            theirs = side_like(about, folder, task).load("cpu")
            counts = {side.run(image, Stopwatch(torch.device("cpu"))) for side in (ours, theirs)}
            assert len(counts) == 1
    found = agreement(ours.logits(pixels), theirs.logits(pixels))
    assert found.class_difference < 1e-4
    assert found.mask_difference < 1e-4
    assert found.mask_iou > 0.999
