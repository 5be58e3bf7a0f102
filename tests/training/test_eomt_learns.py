"""A short training of an EoMT: it leaves a model that predicts, and starts from another one by names."""

from pathlib import Path

import pytest
import torch

from unimask.checkpoints.images import load_model
from unimask.config.images import Experiment
from unimask.config.overrides import override
from unimask.presets.eomt import eomt_tiny
from unimask.training.run import train


def short(steps: int) -> Experiment:
    changes = {"training.steps": steps, "training.evaluate_every": 0, "training.checkpoint_every": 3}
    return override(eomt_tiny(), {**changes, "training.warmup_steps": 2, "model.backbone.blocks": 4})


@pytest.mark.parametrize("attention", ["open", "masked", "annealed"])
def test_a_training_leaves_a_model_that_predicts(attention: str, tmp_path: Path) -> None:
    experiment = override(short(4), {"model.attention": attention})
    result = train(experiment, "shapes", tmp_path / "run", device="cpu")
    assert result.completed
    model, about = load_model(tmp_path / "run" / "model")
    assert about.experiment.model.attention == attention
    with torch.inference_mode():
        prediction = model.eval()(torch.zeros(1, 3, 64, 64))
    assert len(prediction.class_logits) == (4 if attention == "masked" else 1)


def test_a_model_is_fine_tuned_by_the_names_of_categories(tmp_path: Path) -> None:
    train(short(2), "shapes", tmp_path / "first", device="cpu")
    first = tmp_path / "first" / "model"
    train(short(1), "shapes", tmp_path / "second", task="semantic", device="cpu", initial=first)
    _, about = load_model(tmp_path / "second" / "model")
    assert "the model model (" in about.provenance
