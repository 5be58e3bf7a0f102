import dataclasses
import json
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unimask.config.tasks import TASKS, Task
from unimask.data.formats.shapes import shapes_dataset
from unimask.data.reading import PLAIN
from unimask.data.views import match_categories, view
from unimask.errors import DataError
from unimask.inference.evaluation import evaluate, measure
from unimask.inference.measures import Evaluation, TaskMetrics
from unimask.metrics.confusion import Confusion
from unimask.structures import Categories, Dataset, Detections, Sample, Segments

SHAPES = shapes_dataset(size=(43, 61), count=5, seed=3)
REORDERED = Categories(
    names=("stripes", "triangle", "cloud", "sky", "circle", "ground", "square"),
    is_thing=(False, True, False, False, True, False, True),
    file_ids=(1, 2, 3, 4, 5, 6, 7),
    colors=((0, 0, 0),) * 7,
)


class Known:
    """Gives the truth back, found by the picture; or nothing at all."""

    background = True
    set_reading = PLAIN

    def __init__(self, dataset: Dataset, task: Task, categories: Categories, blind: bool = False) -> None:
        self.task: Task = task
        self.categories = categories
        self.asked: list[int] = []
        self._blind = blind
        truth = match_categories(view(dataset, task), categories, task)
        self._answers = {truth[k].image.numpy().tobytes(): truth[k].truth for k in range(len(truth))}

    @property
    def instance_threshold(self) -> float:
        return 0.5

    def find(
        self, images: Iterable[Tensor], task: Task, *, threshold: float | None = None, batch_size: int = 4
    ) -> Iterator[Segments]:
        self.asked.append(batch_size)
        for image in images:
            found = self._answers[image.numpy().tobytes()]
            yield empty(found) if self._blind else found


def empty(one: Segments) -> Segments:
    return Segments(
        layers=torch.zeros_like(one.layers),
        labels=one.labels[:0],
        scores=one.scores[:0],
        is_crowd=one.is_crowd[:0],
    )


@pytest.mark.parametrize("task", TASKS)
def test_the_truth_itself_is_perfect(task: Task) -> None:
    steps: list[tuple[int, int]] = []
    segmenter = Known(SHAPES, task, REORDERED)
    done = evaluate(segmenter, view(SHAPES, task), task, lambda k, n: steps.append((k, n)), batch_size=2)
    assert steps == [(k, 5) for k in range(1, 6)]
    assert segmenter.asked == [2]
    assert done.task == task
    assert done.images == 5
    assert done.seconds > 0
    measured = {value for value in done.values.values() if value is not None}
    first = {"panoptic": "PQ", "instance": "AP_all", "semantic": "mIoU"}[task]
    assert done.values[first] == pytest.approx(1.0)
    if task != "instance":  # recall with one detection per picture is less
        assert measured == {1.0}
    assert "cloud" not in done.per_category
    columns = {"panoptic": {"PQ", "SQ", "RQ", "IoU"}, "instance": {"AP"}, "semantic": {"IoU"}}[task]
    for numbers in done.per_category.values():
        assert set(numbers) == columns
        assert all(number == pytest.approx(1.0) for number in numbers.values())


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("panoptic", {"PQ", "SQ", "RQ", "PQ_things", "PQ_stuff", "mIoU", "pixel_accuracy"}),
        ("instance", {"AP", "AP50", "APs", "AR100", "AP_all", "AP@0.50", "AP@0.90", "AP_per_image@0.75"}),
        ("semantic", {"mIoU", "pixel_accuracy"}),
    ],
)
def test_finding_nothing_is_worth_nothing(task: Task, names: set[str]) -> None:
    segmenter = Known(SHAPES, task, SHAPES.categories, blind=True)
    done = evaluate(segmenter, view(SHAPES, task), task)
    assert names <= set(done.values)
    assert {done.values[name] for name in names} == {0.0}


@pytest.mark.parametrize("task", TASKS)
def test_processes_measure_their_share_and_merge(task: Task) -> None:
    segmenter, dataset = Known(SHAPES, task, REORDERED), view(SHAPES, task)
    shares = [measure(segmenter, dataset, task, range(len(dataset))[rank::2]) for rank in range(2)]
    assert [share.images for share in shares] == [3, 2]
    total = pickle.loads(pickle.dumps(shares[0]))
    total.merge(pickle.loads(pickle.dumps(shares[1])))
    whole = evaluate(segmenter, dataset, task)
    assert dict(total.compute().values) == pytest.approx(dict(whole.values), abs=1e-12)
    assert total.compute().images == 5


def test_states_of_other_tasks_cannot_be_merged() -> None:
    with pytest.raises(ValueError, match="metrics of panoptic and of semantic"):
        TaskMetrics("panoptic", REORDERED, 0.5).merge(TaskMetrics("semantic", REORDERED, 0.5))


def test_an_evaluation_is_saved_whole(tmp_path: Path) -> None:
    done = evaluate(Known(SHAPES, "panoptic", REORDERED), view(SHAPES, "panoptic"), "panoptic")
    path = tmp_path / "new" / "results.json"
    done.save(path)
    written = json.loads(path.read_text())
    confusion = written.pop("confusion")
    confusion["names"], confusion["matrix"] = (
        tuple(confusion["names"]),
        tuple(map(tuple, confusion["matrix"])),
    )
    assert Evaluation(**written, confusion=Confusion(**confusion)) == done
    assert "[3, 0, 0, 0, 0, 0, 0, 0]" in path.read_text()  # a row of a table on a line
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]
    dataclasses.replace(done, seconds=7.0).save(path)
    assert json.loads(path.read_text())["seconds"] == 7.0


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    nothing = Confusion(unit="pixels", names=(), matrix=((0,),), by_size={})
    done = Evaluation(
        task="semantic", values={"mIoU": 0.5}, per_category={}, images=1, seconds=1.0, confusion=nothing
    )
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        done.save(tmp_path / "file" / "results.json")
    (tmp_path / "taken.json").mkdir()
    with pytest.raises(DataError, match=r"taken\.json"):
        done.save(tmp_path / "taken.json")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "taken.json"]


def test_an_unknown_category_is_named() -> None:
    segmenter = Known(SHAPES, "semantic", REORDERED)
    segmenter.categories = dataclasses.replace(REORDERED, names=(*REORDERED.names[:-1], "box"))
    with pytest.raises(DataError, match="square"):
        evaluate(segmenter, SHAPES, "semantic")


class Broken:
    """A data set whose third picture cannot be read."""

    categories = SHAPES.categories

    def __len__(self) -> int:
        return len(SHAPES)

    def __getitem__(self, index: int) -> Sample:
        if index == 2:
            raise DataError("two.png", "is cut off")
        return SHAPES[index]


def test_a_broken_picture_stops_the_evaluation() -> None:
    steps: list[int] = []
    with pytest.raises(DataError, match=r"two\.png: is cut off"):
        evaluate(
            Known(SHAPES, "panoptic", REORDERED), Broken(), "panoptic", lambda done, total: steps.append(done)
        )
    assert steps == [1, 2]


def test_no_picture_is_an_error() -> None:
    nothing = shapes_dataset(size=(43, 61), count=0, seed=3)
    with pytest.raises(DataError, match="no image"):
        evaluate(Known(nothing, "semantic", REORDERED), nothing, "semantic")


def test_matched_precision_counts_from_the_threshold_on_and_ap_counts_all() -> None:
    truth = view(SHAPES, "instance")[0].truth
    scores = torch.full_like(truth.scores, 0.9)
    scores[0] = 0.2
    metrics = TaskMetrics("instance", SHAPES.categories, 0.5)
    metrics.update(dataclasses.replace(truth, scores=scores), truth)
    values = metrics.compute().values
    assert values["AP_all"] == pytest.approx(1.0)
    assert values["AP@0.50"] == pytest.approx((len(truth) - 1) / len(truth))


class KnownBoxes:
    """Answers with the truth, moved by some pixels."""

    background, instance_threshold, set_reading = True, 0.5, PLAIN
    task: Task = "detection"

    def __init__(self, dataset: Dataset, shift: float) -> None:
        self.categories = dataset.categories
        samples = [dataset[index] for index in range(len(dataset))]
        self._answers = {
            sample.image.numpy().tobytes(): dataclasses.replace(
                sample.truth, boxes=sample.truth.boxes + shift
            )
            for sample in samples
        }

    def find(
        self, images: Iterable[Tensor], task: Task, *, threshold: float | None = None, batch_size: int = 4
    ) -> Iterator[Detections]:
        assert (task, threshold) == ("detection", 0.0)
        return (self._answers[image.numpy().tobytes()] for image in images)


def test_boxes_are_measured_by_the_rules_of_coco() -> None:
    dataset = view(shapes_dataset(size=(48, 64), count=7, seed=3), "detection")
    perfect = evaluate(KnownBoxes(dataset, 0.0), dataset, "detection", batch_size=3)
    assert (perfect.values["AP"], perfect.images) == (1.0, 7)
    assert set(perfect.per_category) <= {"circle", "square", "triangle"}
    moved = evaluate(KnownBoxes(dataset, 2.0), dataset)  # its own task
    assert 0.0 < moved.values["AP"] < moved.values["AP50"] <= 1.0


def test_what_has_no_ground_truth_is_not_measured(tmp_path: Path) -> None:
    dataset = view(shapes_dataset(size=(43, 61), count=2, seed=3, most=0), "instance")  # without a thing
    done = evaluate(Known(dataset, "instance", dataset.categories), dataset, "instance")
    assert done.values["AP"] is None
    assert set(done.values.values()) == {None}
    done.save(tmp_path / "measured.json")
    assert json.loads((tmp_path / "measured.json").read_text())["values"]["AP"] is None
