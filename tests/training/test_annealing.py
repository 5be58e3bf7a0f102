"""Mask annealing, layer-wise decay and the two-stage warm-up of EoMT."""

from itertools import pairwise
from unittest import mock

import pytest
import torch

from unimask.config.overrides import override
from unimask.config.training import TrainingConfig
from unimask.errors import ConfigError
from unimask.models.build import build_model
from unimask.presets.eomt import eomt_large_512_ade20k_dinov3, eomt_tiny, published_model
from unimask.presets.own_data import tiny
from unimask.structures import ImageBatch
from unimask.training.annealing import forward_in_step, mask_chances
from unimask.training.optimizer import build_optimizer, parameter_groups, set_learning_rate
from unimask.training.schedule import learning_rate_factor


@pytest.mark.parametrize(
    ("steps", "begins", "ends"),
    [
        (88_692, (14_782, 29_564, 44_346, 59_128), (29_564, 44_346, 59_128, 73_910)),
        (177_384, (29_564, 73_910, 118_256), (59_128, 103_474, 147_820)),
    ],
)
def test_the_default_schedule_has_the_steps_of_the_release(
    steps: int, begins: tuple[int, ...], ends: tuple[int, ...]
) -> None:
    blocks = len(begins)
    for block, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        assert mask_chances(begin, steps, blocks)[block] == pytest.approx(1.0, abs=1e-6)
        assert mask_chances(end, steps, blocks)[block] == pytest.approx(0.0, abs=1e-6)
        middle = mask_chances((begin + end) // 2, steps, blocks)[block]
        assert middle == pytest.approx(0.5**0.9, abs=1e-6)


@pytest.mark.parametrize("steps", [12, 500, 90_000])
@pytest.mark.parametrize("blocks", [1, 3, 4, 5])
def test_chances_fall_from_one_to_zero_in_any_run(steps: int, blocks: int) -> None:
    rows = [mask_chances(step, steps, blocks) for step in range(0, steps, max(1, steps // 97))]
    assert rows[0] == (1.0,) * blocks
    assert mask_chances(steps - 1, steps, blocks) == (0.0,) * blocks
    for earlier, later in pairwise(rows):
        assert all(one >= two for one, two in zip(earlier, later, strict=True))
        assert list(later) == sorted(later)  # blocks in turn, the first one first


def images(experiment) -> ImageBatch:
    side = experiment.model.backbone.size
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    return ImageBatch(pixels=pixels, valid=torch.ones(2, side, side, dtype=torch.bool), placements=())


def test_a_step_is_a_function_of_its_number() -> None:
    experiment = eomt_tiny()
    torch.manual_seed(0)
    model = build_model(experiment.model, 5).eval()

    def logits(step: int, seed: int = 3, attention: str = "annealed") -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        changed = override(experiment, {"model.attention": attention})
        forward = forward_in_step(changed, step, lambda shape: torch.rand(shape, generator=generator))
        with torch.inference_mode():
            return forward(model, images(experiment)).mask_logits()

    early, between, late = logits(0), logits(45), logits(199)
    assert not torch.allclose(early, between, atol=1e-4)
    assert torch.equal(between, logits(45))  # resuming needs nothing but the step and its seed
    assert not torch.equal(between, logits(45, seed=4))
    plain = logits(0, attention="open")  # what predictions do
    torch.testing.assert_close(late, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["open", "masked", "annealed"])
def test_rotary_positions_have_a_random_scale_in_training(attention: str) -> None:
    experiment = override(eomt_tiny(), {"model.attention": attention})
    model = build_model(experiment.model, 5)
    generator = torch.Generator().manual_seed(0)
    said = model(images(experiment).pixels)
    with mock.patch.object(type(model), "predict", return_value=said) as predict:
        for _ in range(200):
            step = forward_in_step(experiment, 3, lambda shape: torch.rand(shape, generator=generator))
            step(model, images(experiment))
        model(images(experiment).pixels)
    scales = torch.cat([call.args[2] for call in predict.call_args_list[:-1]])
    assert 0.5 <= scales.min() < 0.6
    assert 1.8 < scales.max() <= 2.0
    assert abs(scales.log().mean()) < 0.1
    assert len(predict.call_args.args) == 2  # a prediction has none
    learned = override(experiment, {"model.backbone.kind": "dinov2"})
    with mock.patch.object(type(model), "predict", return_value=said) as predict:
        forward_in_step(learned, 3, torch.rand)(model, images(experiment))
    assert predict.call_args.args[2] == 1.0


@pytest.mark.parametrize("recompute", [False, True])
def test_every_parameter_learns_also_where_blocks_are_recomputed(recompute: bool) -> None:
    experiment = override(eomt_tiny(), {"model.backbone.recompute": recompute})
    torch.manual_seed(0)
    model = build_model(experiment.model, 5).train()
    forward = forward_in_step(experiment, 45, torch.rand)
    torch.manual_seed(2)
    prediction = forward(model, images(experiment))
    assert len(prediction.class_logits) == 4
    (prediction.class_logits.square().mean() + prediction.mask_features.square().mean()).backward()
    assert {name for name, one in model.named_parameters() if one.grad is None or not one.grad.any()} == set()


def test_recomputing_gives_the_same_gradients_under_masks() -> None:
    gradients = []
    for recompute in (False, True):
        experiment = override(eomt_tiny(), {"model.backbone.recompute": recompute})
        torch.manual_seed(0)
        model = build_model(experiment.model, 5).train()
        generator = torch.Generator().manual_seed(5)
        forward = forward_in_step(experiment, 45, lambda shape, g=generator: torch.rand(shape, generator=g))
        torch.manual_seed(2)
        forward(model, images(experiment)).mask_logits().square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, atol=1e-7, rtol=1e-4)


def rates(config: TrainingConfig, kind: str = "dinov2") -> dict[str, float]:
    with torch.device("meta"):
        model = build_model(published_model("small", 640, kind), 5)
    return {name: group.rate for group in parameter_groups(model, config) for name in group.names}


def test_rates_fall_from_block_to_block() -> None:
    config = TrainingConfig(layer_decay=0.8, backbone_multiplier=1.0, decay_everything=True)
    found = rates(config)
    assert found["heads.classes.bias"] == found["queries.weight"] == found["backbone.norm.weight"] == 1.0
    for block in range(12):
        assert found[f"backbone.blocks.{block}.attention.inputs.weight"] == pytest.approx(0.8 ** (11 - block))
    for name in ("patches.weight", "class_token", "registers", "positions.embedding"):
        assert found[f"backbone.{name}"] == pytest.approx(0.8**11)
    spared = rates(TrainingConfig(layer_decay=0.8, backbone_multiplier=1.0, query_blocks_decay=False))
    assert spared["backbone.blocks.9.attention.inputs.weight"] == 1.0
    assert spared["backbone.blocks.8.attention.inputs.weight"] == pytest.approx(0.8**3)
    tenth = rates(eomt_large_512_ade20k_dinov3().training, "dinov3")
    assert tenth["backbone.blocks.8.attention.inputs.query_bias"] == pytest.approx(0.1)
    assert tenth["backbone.blocks.9.attention.inputs.query_bias"] == 1.0


def test_everything_decays_where_it_is_asked_for() -> None:
    model = build_model(eomt_tiny().model, 5)
    assert all(group.decays for group in parameter_groups(model, eomt_tiny().training))
    plain = parameter_groups(model, TrainingConfig())
    kept = {name for group in plain if not group.decays for name in group.names}
    assert "backbone.norm.weight" in kept
    assert "queries.weight" in kept


def test_layer_decay_is_for_transformers() -> None:
    with pytest.raises(ConfigError, match=r"training\.layer_decay: is for a Vision Transformer"):
        build_optimizer(build_model(tiny().model, 5), TrainingConfig(layer_decay=0.8))


def test_the_backbone_warms_up_after_the_rest() -> None:
    config = TrainingConfig(
        steps=10_000, schedule="poly", power=0.9, warmup_steps=500, backbone_warmup_steps=1000
    )
    for step, rest, backbone in (
        (0, 1 / 500, 0.0),
        (249, 0.5, 0.0),
        (499, 1.0, 0.0),
        (500, 1.0, 1 / 1000),
        (999, (1 - 499 / 9500) ** 0.9, 0.5),
        (1500, (1 - 1000 / 9500) ** 0.9, 1.0),
        (9999, (1 - 9499 / 9500) ** 0.9, (1 - 8499 / 8500) ** 0.9),
    ):
        assert learning_rate_factor(step, config) == pytest.approx(rest)
        assert learning_rate_factor(step, config, in_backbone=True) == pytest.approx(backbone)
    model = build_model(eomt_tiny().model, 5)
    optimizer = build_optimizer(model, config)
    assert set_learning_rate(optimizer, 249, config) == pytest.approx(0.5 * config.learning_rate)
    standing = {id(one) for group in optimizer.param_groups if group["lr"] == 0 for one in group["params"]}
    assert standing == {id(one) for one in model.backbone.parameters()}
