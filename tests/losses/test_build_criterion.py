import pytest

from unimask.config.training import LossConfig
from unimask.errors import ConfigError
from unimask.losses.build import build_criterion
from unimask.losses.sampling import EveryCell, EveryPixel, RandomPoints
from unimask.losses.terms import FocalTerm, MaskTerm


def test_the_defaults_are_those_of_the_paper() -> None:
    criterion = build_criterion(LossConfig(), num_classes=133)
    assert criterion.weights == {"class": 2.0, "mask": 5.0, "dice": 5.0}
    assert criterion.comparison.sampling == RandomPoints(points=12544, candidates=37632, uncertain=9408)
    assert criterion.deep_supervision
    assert criterion.class_term.class_weights.tolist() == pytest.approx([1.0] * 133 + [0.1])
    assert not list(criterion.parameters())
    assert not criterion.state_dict()


def test_dense_sampling_is_an_override() -> None:
    assert build_criterion(LossConfig(sampling="dense"), 3).comparison.sampling == EveryCell()


def test_full_size_masks_and_the_focal_loss_are_settings() -> None:
    assert build_criterion(LossConfig(sampling="pixels"), 3).comparison.sampling == EveryPixel()
    criterion = build_criterion(LossConfig(mask_term="focal", mask_weight=20.0), 3)
    assert criterion.comparison.terms[0] == FocalTerm(weight=20.0)
    assert criterion.weights["mask"] == 20.0
    assert build_criterion(LossConfig(), 3).comparison.terms[0] == MaskTerm(weight=5.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("class_weight", -1.0),
        ("mask_weight", -0.5),
        ("dice_weight", float("nan")),
        ("no_object_weight", 0.0),
        ("points", 0),
        ("oversampling", 0.5),
        ("importance", 1.5),
        ("importance", -0.1),
    ],
)
def test_impossible_settings_are_named(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"losses\.{name}: .*got"):
        build_criterion(LossConfig(**{name: value}), 3)


@pytest.mark.parametrize("importance", [0.0, 1.0])
def test_all_or_none_of_the_points_may_be_uncertain(importance: float) -> None:
    assert build_criterion(
        LossConfig(points=101, importance=importance), 3
    ).comparison.sampling == RandomPoints(points=101, candidates=303, uncertain=int(101 * importance))
