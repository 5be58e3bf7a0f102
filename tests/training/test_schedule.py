import pytest

from unimask.config.training import TrainingConfig
from unimask.training.schedule import learning_rate_factor


def test_step_schedule_falls_tenfold_after_each_milestone() -> None:
    config = TrainingConfig(steps=1000, schedule="step", milestones=(0.8, 0.95), warmup_steps=0)
    factors = [learning_rate_factor(step, config) for step in (0, 799, 800, 949, 950, 999)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_milestones_of_the_paper() -> None:
    config = TrainingConfig()  # 50 epochs of COCO: 327,778 and 355,092 of 368,750 in the original
    assert learning_rate_factor(327_700, config) == 1.0
    assert learning_rate_factor(327_800, config) == pytest.approx(0.1)
    assert learning_rate_factor(355_050, config) == pytest.approx(0.1)
    assert learning_rate_factor(355_150, config) == pytest.approx(0.01)


def test_poly_schedule() -> None:
    config = TrainingConfig(steps=160, schedule="poly", power=0.9, warmup_steps=0)
    assert learning_rate_factor(0, config) == 1.0
    assert learning_rate_factor(80, config) == pytest.approx(0.5**0.9)
    assert learning_rate_factor(159, config) == pytest.approx((1 / 160) ** 0.9)
    assert learning_rate_factor(161, config) == 0.0


def test_warm_up_is_a_line_from_zero_that_the_schedule_is_multiplied_with() -> None:
    config = TrainingConfig(steps=100, schedule="step", milestones=(), warmup_steps=4)
    factors = [learning_rate_factor(step, config) for step in range(6)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    poly = TrainingConfig(steps=100, schedule="poly", power=1.0, warmup_steps=4)
    assert learning_rate_factor(1, poly) == pytest.approx(0.5 * 0.99)
