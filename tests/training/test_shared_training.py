"""Trainings shared by 1, 2 and 4 processes: the same losses, split or not; any number reads a checkpoint."""

import os
import pickle
import shutil
from enum import Enum
from pathlib import Path

import pytest
import torch
from training.small_runs import SMOOTH, run
from training.test_processes import difference, finish, lines, python_names, request, start

from unimask.errors import DataError
from unimask.training.run_folder import RunFolder
from unimask.training.sharding import check_shards, learned, load_shards, save_shards

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this build of torch knows one process only"
)

CHANGES: dict[str, object] = {
    **SMOOTH,
    "model.backbone.freeze_norm": False,  # statistics of the batch, which all processes must share
    "training.steps": 4,
    "training.checkpoint_every": 2,
    "training.log_every": 1,
    "training.evaluate_every": 4,
    "training.ema_decay": 0.9,
    "training.gradient_clip": 0.1,
}
SPLIT: dict[str, object] = {**CHANGES, "training.strategy": "fsdp"}


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in lines(folder) if line["kind"] == "step"]


def norms(folder: Path) -> list[float]:
    return [line["gradient_norm"] for line in lines(folder) if line["kind"] == "step"]


def half_way(run_folder: Path, target: Path) -> Path:
    """A copy of a run, as it was after step 2."""
    shutil.copytree(run_folder, target)
    shutil.rmtree(target / "checkpoints" / "step_4")
    return target


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trainings with the same data and seed: by one, two and four, split over two, and resumed by others."""
    place = tmp_path_factory.mktemp("runs")
    two = start(
        request(place / "two", CHANGES, devices=2, most=0),
        request(place / "split", SPLIT, devices=2, most=0),
    )
    run(place / "one", most=0, **python_names(CHANGES))
    assert finish(two) == 0
    half_way(place / "split", place / "resumed_by_four")
    half_way(place / "two", place / "resumed_split")
    four = start(
        request(place / "four", CHANGES, devices=4, most=0),
        request(place / "resumed_by_four", SPLIT, devices=4, most=0, resume=True),
        request(place / "resumed_split", SPLIT, devices=4, most=0, resume=True),
    )
    run(half_way(place / "split", place / "resumed_by_one"), most=0, resume=True, **python_names(CHANGES))
    assert finish(four) == 0
    return place


@pytest.mark.parametrize(
    "name", ["two", "four", "split", "resumed_by_one", "resumed_by_four", "resumed_split"]
)
def test_the_number_of_processes_and_splitting_change_nothing_but_rounding(runs: Path, name: str) -> None:
    """Losses, norms of gradients, weights, their average, and what is measured."""
    assert losses(runs / name) == pytest.approx(losses(runs / "one"), rel=1e-4)
    assert norms(runs / name) == pytest.approx(norms(runs / "one"), rel=1e-3)
    moved = difference(runs / "one", half_model(runs))
    assert moved > 1e-3
    assert difference(runs / name, runs / "one") < 0.01 * moved
    values = [line["values"] for line in lines(runs / name) if line["kind"] == "evaluation"]
    (alone,) = (line["values"] for line in lines(runs / "one") if line["kind"] == "evaluation")
    assert values == [pytest.approx(alone, abs=1e-3)]


def half_model(runs: Path) -> Path:
    """A folder with the weights after two steps."""
    folder = runs / "after_two"
    if not folder.exists():
        run(folder, most=0, **python_names(CHANGES | {"training.steps": 2, "training.evaluate_every": 0}))
    return folder


def test_a_part_is_kept_by_each_process(runs: Path) -> None:
    shards = runs / "split" / "checkpoints" / "step_4" / "shards"
    sizes = [path.stat().st_size for path in sorted(shards.glob("*.distcp"))]
    assert len(sizes) == 2
    assert max(sizes) < 0.62 * sum(sizes)  # the first one also has what is not split: statistics of norms


def test_a_checkpoint_of_which_a_part_is_cut_off_gives_way_to_an_earlier_one(
    runs: Path, tmp_path: Path
) -> None:
    folder = RunFolder(shutil.copytree(runs / "split", tmp_path / "cut"))
    part = next(folder.shards(4).glob("*.distcp"))
    part.write_bytes(part.read_bytes()[:-1000])
    assert folder.latest_checkpoint()["step"] == 2
    for broken in folder.shards(2).iterdir():
        broken.unlink()
    with pytest.raises(DataError, match=r"no checkpoint can be read.*\n.*bytes(.|\n)*metadata"):
        folder.latest_checkpoint()


def test_numbers_of_a_checkpoint_that_are_not_finite_are_named(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    tensors = learned(model, None, optimizer)
    with torch.no_grad():
        model.weight[1, 2] = torch.nan
    with pytest.warns(UserWarning, match="single process"):
        save_shards(tmp_path, tensors)
    other = torch.nn.Linear(3, 2)
    with pytest.raises(DataError, match=r"not finite, in model/weight; remove the folder of this step"):
        load_shards(tmp_path, other, None, torch.optim.AdamW(other.parameters()))


def test_a_checkpoint_runs_no_code(runs: Path, tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'harm'}",)

    folder = RunFolder(shutil.copytree(runs / "split", tmp_path / "foreign"))
    for step in (2, 4):
        (folder.shards(step) / ".metadata").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(DataError, match=r"it names \w+\.system"):
        folder.latest_checkpoint()
    assert not (tmp_path / "harm").exists()


class AsPython3112(pickle.Pickler):
    """Pickles members of enumerations as Python 3.11.2 does."""

    def reducer_override(self, value: object) -> object:
        if isinstance(value, Enum):
            return getattr, (type(value), value.name)
        return NotImplemented


def test_checkpoints_of_an_earlier_python_are_read(tmp_path: Path) -> None:
    """And nothing else is reached through its `getattr`."""
    model = torch.nn.Linear(3, 2)
    with pytest.warns(UserWarning, match="single process"):
        save_shards(tmp_path, learned(model, None, torch.optim.AdamW(model.parameters())))
    path = tmp_path / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    with path.open("wb") as file:
        AsPython3112(file).dump(metadata)
    assert b"getattr" in path.read_bytes()
    check_shards(tmp_path)

    class Harm:
        def __reduce__(self) -> tuple[object, tuple[object, str]]:
            return getattr, (torch.Size, "__subclasses__")

    path.write_bytes(pickle.dumps(Harm()))
    with pytest.raises(ValueError, match=r"it names builtins\.getattr"):
        check_shards(tmp_path)
