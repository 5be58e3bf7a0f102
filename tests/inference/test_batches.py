import time

import pytest

from unimask.inference.batches import LOOKAHEAD, ahead, batches


def test_items_of_one_key_go_together() -> None:
    items = [(index, key, (key, index)) for index, key in enumerate("abcabcabca")]
    found = list(batches(items, 3))
    assert found == [
        [("a", 0), ("a", 3), ("a", 6)],
        [("b", 1), ("b", 4), ("b", 7)],
        [("c", 2), ("c", 5), ("c", 8)],
        [("a", 9)],
    ]


def test_nothing_waits_for_long_and_little_is_held_back() -> None:
    """One rare key, then endlessly many of another: the rare one is not kept waiting for its like."""
    taken: list[int] = []

    def items():
        for index in range(1000):
            taken.append(index)
            yield index, "rare" if index in (5, 900) else "common", index

    for batch in batches(items(), 4):
        assert taken[-1] - batch[0] <= LOOKAHEAD * 4 + 1
        assert len(batch) == 4 or batch in ([5], [900], [998, 999])


@pytest.mark.parametrize("count", [1, 3])
def test_work_is_done_ahead_in_order(count: int) -> None:
    started: list[int] = []

    def make(number: int) -> int:
        started.append(number)
        time.sleep(0.001 * (number % 3))
        return number**2

    for number, (given, future) in enumerate(ahead(make, range(20), count, threads=2)):
        assert (given, future.result()) == (number, number**2)
        assert max(started) <= number + count
    assert len(started) == 20


def test_a_failure_is_in_its_future() -> None:
    found = [future for _, future in ahead(lambda number: 1 // number, [2, 0, 1], 1)]
    assert [found[0].result(), found[2].result()] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        found[1].result()
