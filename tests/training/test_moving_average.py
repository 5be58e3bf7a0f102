import pytest
import torch
from torch import nn

from unimask.training.average import average_of, decay_at


def test_the_decay_warms_up() -> None:
    assert decay_at(1, 0.999) == pytest.approx(0.1)
    assert decay_at(11, 0.999) == pytest.approx(11 / 20)
    assert decay_at(100_000, 0.999) == 0.999


def test_three_updates_by_hand() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    average = average_of(model, decay=0.15)
    expected = 1.0
    for number, value in enumerate((2.0, 5.0, -3.0)):
        nn.init.constant_(model.weight, value)
        average.update_parameters(model)
        decay = min(0.15, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * value
        assert average.module.weight.item() == pytest.approx(expected)
    assert model.weight.item() == -3.0
    assert not average.module.weight.requires_grad


def test_statistics_of_norms_are_copied() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5))
    average = average_of(model, decay=0.9)
    model(torch.randn(2, 3, 7, 11))
    average.update_parameters(model)
    theirs, ours = model[1], average.module[1]
    assert torch.equal(theirs.running_mean, ours.running_mean)
    assert ours.num_batches_tracked.item() == 1
    assert not average.module.training
    assert model.training
