"""A short training of an EoMT: it leaves a model that predicts, and starts from another one by names."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unimask.checkpoints.images import load_model
from unimask.config.images import Experiment
from unimask.config.overrides import override
from unimask.presets.eomt import eomt_tiny
from unimask.training.annealing import mask_chances
from unimask.training.progress import SilentReporter, StepReport
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
    assert "the model first (" in about.provenance


def test_a_run_that_breaks_off_while_masks_are_annealed_resumes_to_the_same_weights(tmp_path: Path) -> None:
    class Broken(SilentReporter):
        def step(self, report: StepReport) -> None:
            if report.step == 7:
                raise InterruptedError

    experiment = override(short(12), {"training.batch_size": 2})
    chances = mask_chances(6, 12, experiment.model.query_blocks)
    assert chances[0] == 0 < chances[1] < chances[2] == 1
    with pytest.raises(InterruptedError):
        train(experiment, "shapes", tmp_path / "broken", device="cpu", reporter=Broken())
    assert (tmp_path / "broken" / "checkpoints" / "step_6").exists()
    train(experiment, "shapes", tmp_path / "broken", device="cpu", resume=True)
    train(experiment, "shapes", tmp_path / "unbroken", device="cpu")
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("broken", "unbroken"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
