from pathlib import Path

import pytest
from training.small_runs import small_experiment, small_task

from unimask.data.items import ItemDataset
from unimask.errors import DataError
from unimask.training import image_data
from unimask.training.image_data import open_task


def test_generated_data() -> None:
    task = open_task("shapes:32x45", "instance", small_experiment(training__evaluate_every=5))
    assert (len(task.training), len(task.validation)) == (10_000, 100)
    assert task.primary_metric == "AP"
    assert task.categories.names == ("circle", "square", "triangle")


def test_data_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        open_task(tmp_path / "nothing", "panoptic", small_experiment())


def test_without_evaluation_no_val_split_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_train(path: str | Path, split: str, **keywords: object) -> ItemDataset:
        if split != "train":
            raise DataError(path, "has no split 'val'")
        return ItemDataset(categories=small_task().categories, items=())

    monkeypatch.setattr(image_data, "open_items", only_train)
    monkeypatch.setattr(image_data, "with_truth_of", lambda *given, **more: small_task().training)
    task = open_task("shapes", "panoptic", small_experiment(training__evaluate_every=0))
    assert len(task.validation) == len(task.training)
    with pytest.raises(DataError, match=r"has no split 'val' \(training.evaluate_every=0 trains without"):
        open_task("shapes", "panoptic", small_experiment(training__evaluate_every=1))


def test_the_headline_shows_the_metrics_of_the_task() -> None:
    values = {"PQ": 0.5, "SQ": 0.75, "RQ": 0.625, "mIoU": 0.1, "PQ_things": 0.4}
    assert small_task().headline(values) == "PQ 0.5000  SQ 0.7500  RQ 0.6250  mIoU 0.1000"
    values["PQ"] = None
    assert small_task().headline(values) == "PQ not measured: no ground truth"
