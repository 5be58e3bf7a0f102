import pytest
import torch
from torch import nn

from unimask.config.overrides import override
from unimask.config.training import TrainingConfig
from unimask.models.build import build_model
from unimask.presets.own_data import tiny
from unimask.training.optimizer import ParameterGroup, build_optimizer, parameter_groups, set_learning_rate


def group(groups: tuple[ParameterGroup, ...], in_backbone: bool, decays: bool) -> set[str]:
    return {
        name for one in groups if (one.in_backbone, one.decays) == (in_backbone, decays) for name in one.names
    }


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build_model(tiny().model, 5)


def test_every_trainable_parameter_is_in_exactly_one_group(model: nn.Module) -> None:
    names = [name for one in parameter_groups(model, TrainingConfig()) for name in one.names]
    assert sorted(names) == sorted(name for name, p in model.named_parameters() if p.requires_grad)


def test_norms_and_embeddings_do_not_decay_but_biases_do(model: nn.Module) -> None:
    groups = parameter_groups(model, TrainingConfig())
    assert {
        "query_decoder.query_features.weight",
        "query_decoder.query_positions.weight",
        "query_decoder.level_embedding.weight",
        "query_decoder.norm.weight",
        "query_decoder.norm.bias",
        "pixel_decoder.projections.32.norm.bias",
    } <= group(groups, False, False)
    assert {
        "pixel_decoder.encoder.level_embedding",
        "query_decoder.heads.classes.bias",
        "query_decoder.layers.0.cross.attention.input_weight",
        "pixel_decoder.mask_features.weight",
    } <= group(groups, False, True)
    assert not any("norm" in name for name in group(groups, False, True))
    assert {"backbone.network.bn1.weight", "backbone.network.bn1.bias"} <= group(groups, True, False)
    assert "backbone.network.conv1.0.weight" in group(groups, True, True)
    assert not any(".bn" in name for name in group(groups, True, True))


def test_frozen_norms_are_in_no_group() -> None:
    frozen = override(tiny(), {"model.backbone.freeze_norm": True})
    names = [
        name for one in parameter_groups(build_model(frozen.model, 5), TrainingConfig()) for name in one.names
    ]
    assert not any(name.startswith("backbone.") and ".bn" in name for name in names)


def test_swin_position_biases_do_not_decay() -> None:
    swin = override(tiny(), {"model.backbone.name": "swin_tiny"})
    groups = parameter_groups(build_model(swin.model, 5), TrainingConfig())
    biases = {name for name in group(groups, True, False) if name.endswith("position_bias")}
    assert len(biases) == 12
    assert not any("norm" in name or "position_bias" in name for name in group(groups, True, True))
    assert any(name.endswith("query_key_value.bias") for name in group(groups, True, True))


def test_rates_and_decays_of_the_optimizer(model: nn.Module) -> None:
    config = TrainingConfig(
        steps=100, learning_rate=3e-4, backbone_multiplier=0.1, weight_decay=0.07, schedule="poly", power=1.0
    )
    optimizer = build_optimizer(model, config)
    assert isinstance(optimizer, torch.optim.AdamW)
    settings = {(one["full_rate"], one["weight_decay"]) for one in optimizer.param_groups}
    expected = {(3e-4, 0.07), (3e-4, 0.0), (3e-5, 0.07), (3e-5, 0.0)}
    assert sorted(settings) == [pytest.approx(pair) for pair in sorted(expected)]
    assert set_learning_rate(optimizer, 50, config) == pytest.approx(1.5e-4)
    rates = sorted(one["lr"] for one in optimizer.param_groups)
    assert rates == pytest.approx([1.5e-5, 1.5e-5, 1.5e-4, 1.5e-4])
