import dataclasses

import pytest

from unimask.config.tasks import check_task
from unimask.config.training import TrainingConfig
from unimask.errors import ConfigError
from unimask.training.checks import check_device, check_settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("batch_size", 0),
        ("accumulate", 0),
        ("log_every", 0),
        ("evaluate_every", -1),
        ("learning_rate", 0.0),
        ("gradient_clip", float("nan")),
        ("ema_decay", 1.0),
        ("workers", -1),
    ],
)
def test_impossible_settings_are_named(name: str, value: float) -> None:
    config = dataclasses.replace(TrainingConfig(), **{name: value})
    with pytest.raises(ConfigError, match=rf"training\.{name}: must"):
        check_settings(config, 1)


def test_the_batch_must_divide() -> None:
    check_settings(TrainingConfig(batch_size=12, accumulate=3), 4)
    with pytest.raises(
        ConfigError, match=r"12 images or tokens do not divide among 4 processes x 2 passes.*multiple of 8"
    ):
        check_settings(TrainingConfig(batch_size=12, accumulate=2), 4)


def test_an_unknown_task() -> None:
    with pytest.raises(ConfigError, match="'parts' does not exist; there are: panoptic, instance, semantic"):
        check_task("parts")


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cpu:0:1"])
def test_an_unknown_device(name: str) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        check_device(name, 1, "32-true")


def test_devices() -> None:
    assert check_device("cpu", 2, "bf16-mixed") == ("cpu", 2)
    with pytest.raises(ConfigError, match="16-mixed needs a CUDA device"):
        check_device("cpu", 1, "16-mixed")
    with pytest.raises(ConfigError, match="CUDA devices; try auto or cpu"):
        check_device("cuda:97", 1, "32-true")
