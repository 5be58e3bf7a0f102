"""Threads beside the model compute alone, and change nothing for others."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import unimask
from unimask.threads import aside, side_threads


@pytest.fixture
def two_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def threads_of_this_process() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def computed() -> int:
    torch.ones(1_000_000).mul(2)  # large enough to be computed in parallel
    return torch.get_num_threads()


def test_side_threads_compute_alone(two_threads: object) -> None:
    with side_threads(2) as pool:
        assert {pool.submit(computed).result() for _ in range(4)} == {1}
    assert computed() == 2
    with ThreadPoolExecutor(1) as others:  # threads of somebody else's are as they were
        assert others.submit(computed).result() == 2
        assert others.submit(aside(computed)).result() == 1
        assert others.submit(computed).result() == 1  # from then on
    assert computed() == 2


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted under Linux")
def test_a_side_thread_has_no_team(two_threads: object) -> None:
    computed()
    before = threads_of_this_process()
    with side_threads(1) as pool:
        pool.submit(computed).result()
        assert threads_of_this_process() == before + 1


def test_only_this_module_makes_threads_beside_a_model() -> None:
    source = Path(unimask.__file__).parent
    makers = [one for one in source.rglob("*.py") if "ThreadPoolExecutor(" in one.read_text(encoding="utf-8")]
    assert makers == [source / "threads.py"]
