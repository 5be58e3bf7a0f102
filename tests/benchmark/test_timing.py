"""Who runs when, and the numbers that are made of the times."""

import gc
import math
import time

import pytest
import torch

from unimask.benchmark.timing import TOTAL, Rounds, Stopwatch, interleave

CPU = torch.device("cpu")


def test_sides_run_in_turn_and_warm_up_does_not_count() -> None:
    order: list[str] = []

    def side(name: str):
        def run(watch: Stopwatch) -> None:
            assert not gc.isenabled()
            order.append(name)
            with watch.stage("first"):
                pass
            with watch.stage("second"):
                pass

        return run

    rounds = interleave({"a": side("a"), "b": side("b"), "c": side("c")}, CPU, rounds=3, warm_up=2)
    assert gc.isenabled()
    assert "".join(order) == "abc" * 5
    assert list(rounds.seconds) == ["a", "b", "c"]
    for stages in rounds.seconds.values():
        assert {stage: len(times) for stage, times in stages.items()} == {"first": 3, "second": 3, TOTAL: 3}
        for first, second, total in zip(stages["first"], stages["second"], stages[TOTAL]):
            assert total == first + second
    with pytest.raises(ValueError, match="at least one round"):
        interleave({"a": side("a")}, CPU, rounds=0)


def test_garbage_is_collected_again_after_a_run_that_fails() -> None:
    def fails(watch: Stopwatch) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        interleave({"a": fails}, CPU, rounds=1)
    assert gc.isenabled()


def test_a_stage_that_comes_again_adds_up() -> None:
    watch = Stopwatch(CPU)
    for _ in range(2):
        with watch.stage("sleep"):
            time.sleep(0.01)
    assert watch.seconds["sleep"] >= 0.02


def test_ratios_are_medians_over_rounds_and_not_of_the_medians() -> None:
    rounds = Rounds(seconds={"mine": {"all": (1.0, 2.0, 4.0)}, "theirs": {"all": (6.0, 4.0, 20.0)}})
    assert rounds.ratio("mine", "theirs", "all") == 5.0  # of 6, 2, 5; the medians' ratio would be 3
    assert rounds.ratio("theirs", "mine", "all") == 0.2


def test_percentiles_lie_between_rounds() -> None:
    rounds = Rounds(seconds={"one": {"all": (5.0, 1.0, 3.0, 2.0, 4.0)}, "single": {"all": (7.0,)}})
    assert [rounds.percentile("one", "all", percent) for percent in (0, 50, 100)] == [1.0, 3.0, 5.0]
    assert math.isclose(rounds.percentile("one", "all", 95), 4.8)
    assert rounds.percentile("single", "all", 95) == 7.0
