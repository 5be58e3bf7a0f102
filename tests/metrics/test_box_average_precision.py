"""Box AP against pycocotools, on random boxes with crowd and areas that differ from the boxes'."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from unimask.data.formats.coco_instances import open_boxes
from unimask.metrics.average_precision import BoxAveragePrecision, MaskAveragePrecision
from unimask.structures import Categories, Detections

CATEGORIES = Categories(
    names=("a", "b", "c"), is_thing=(True, True, True), file_ids=(4, 2, 9), colors=((0, 0, 0),) * 3
)
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def random_boxes(count: int, generator: torch.Generator) -> Detections:
    low = torch.rand(count, 2, generator=generator) * 150
    sides = torch.rand(count, 2, generator=generator) ** 2 * 150 + 2
    return Detections(
        boxes=torch.cat((low, low + sides), dim=1),
        labels=torch.randint(0, 3, (count,), generator=generator),
        scores=torch.rand(count, generator=generator),
        areas=sides.prod(dim=1) * (0.3 + 0.7 * torch.rand(count, generator=generator)),
        is_crowd=torch.rand(count, generator=generator) < 0.15,
    )


def near(truth: Detections, generator: torch.Generator) -> Detections:
    """Moved a little, some of another class, some left out, and a few more."""
    noise = 6 * torch.randn(truth.boxes.shape, generator=generator)
    boxes = truth.boxes + noise
    boxes = torch.cat((boxes[:, :2], torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)), dim=1)
    kept = torch.rand(len(truth), generator=generator) < 0.8
    more = random_boxes(4, generator)
    return Detections(
        boxes=torch.cat((boxes[kept], more.boxes)),
        labels=torch.cat((truth.labels[kept], more.labels)),
        scores=torch.rand(int(kept.sum()) + 4, generator=generator),
        areas=torch.ones(int(kept.sum()) + 4),
        is_crowd=torch.zeros(int(kept.sum()) + 4, dtype=torch.bool),
    )


def scenes() -> list[tuple[Detections, Detections]]:
    generator = torch.Generator().manual_seed(7)
    found = []
    for count in (5, 0, 17, 9, 30, 1):
        truth = random_boxes(count, generator)
        found.append((near(truth, generator), truth))
    return found


def record(boxes: Detections, index: int, image: int) -> dict[str, object]:
    left, top, right, bottom = boxes.boxes[index].double().tolist()
    place = [left, top, right - left, bottom - top]
    return {"image_id": image, "category_id": int(boxes.labels[index]), "bbox": place}


def by_pycocotools(pairs: list[tuple[Detections, Detections]]) -> np.ndarray:
    truth, results = [], []
    for image, (result, wanted) in enumerate(pairs):
        for index in range(len(wanted)):
            more = {
                "id": len(truth) + 1,
                "area": float(wanted.areas[index]),
                "iscrowd": int(wanted.is_crowd[index]),
            }
            truth.append({**record(wanted, index, image), **more})
        for index in range(len(result)):
            results.append({**record(result, index, image), "score": float(result.scores[index])})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": image, "width": 400, "height": 400} for image in range(len(pairs))],
            "categories": [{"id": label, "name": name} for label, name in enumerate(CATEGORIES.names)],
            "annotations": truth,
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def test_all_numbers_equal_those_of_pycocotools() -> None:
    pairs = scenes()
    metric, other = BoxAveragePrecision(CATEGORIES), BoxAveragePrecision(CATEGORIES)
    for index, (result, truth) in enumerate(pairs):
        (metric if index < 4 else other).update(result, truth)
    metric.merge(other)
    values = metric.compute()
    expected = dict(zip(NAMES, by_pycocotools(pairs).tolist(), strict=True))
    assert 0.05 < expected["AP"] < 0.9
    for name in NAMES:
        assert values.as_dict()[name] == pytest.approx(expected[name], abs=1e-9), name
    assert len(values.by_class()["AP"]) == 3


def test_perfect_boxes() -> None:
    (_, truth), *_ = scenes()
    real = truth.select(~truth.is_crowd)
    metric = BoxAveragePrecision(CATEGORIES)
    metric.update(real, truth)
    assert metric.compute().as_dict()["AP"] == pytest.approx(1.0)


def test_nothing_found_and_nothing_there() -> None:
    (_, truth), *_ = scenes()
    nothing = truth.select(torch.zeros(len(truth), dtype=torch.bool))
    metric = BoxAveragePrecision(CATEGORIES)
    metric.update(nothing, truth)
    assert metric.compute().as_dict()["AP"] == 0.0
    empty = BoxAveragePrecision(CATEGORIES)
    empty.update(nothing, nothing)
    assert empty.compute().as_dict()["AP"] == -1.0


def test_impossible_results_are_named() -> None:
    (_, truth), *_ = scenes()
    metric = BoxAveragePrecision(
        Categories(names=("a",), is_thing=(True,), file_ids=(1,), colors=((0, 0, 0),))
    )
    with pytest.raises(ValueError, match="not below 1"):
        metric.update(truth, truth)


def test_a_real_file_is_measured_as_pycocotools_measures_it(shared_data: Path) -> None:
    path = shared_data / "coco_tiny_instances" / "instances_val.json"
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    dataset = open_boxes(path)
    metric, results = BoxAveragePrecision(dataset.categories), []
    generator = torch.Generator().manual_seed(1)
    for image_id, index in zip(sorted(coco.getImgIds()), range(len(dataset)), strict=True):
        truth = dataset[index].truth
        noise = 4 * torch.randn(truth.boxes.shape, generator=generator)
        corners = truth.boxes + noise
        found = Detections(
            boxes=torch.cat((corners[:, :2], torch.maximum(corners[:, 2:], corners[:, :2] + 1)), dim=1),
            labels=truth.labels,
            scores=torch.rand(len(truth), generator=generator),
            areas=truth.areas,
            is_crowd=torch.zeros(len(truth), dtype=torch.bool),
        )
        metric.update(found, truth)
        for one in range(len(found)):
            category = dataset.categories.file_ids[int(found.labels[one])]
            more = {"category_id": category, "score": float(found.scores[one])}
            results.append({**record(found, one, image_id), **more})
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = metric.compute().as_dict()
    for name, expected in zip(NAMES, evaluation.stats.tolist(), strict=True):
        assert values[name] == pytest.approx(expected, abs=1e-9), name


def test_fewer_detections_than_coco_counts_are_refused() -> None:
    for metric in (BoxAveragePrecision, MaskAveragePrecision):
        with pytest.raises(ValueError, match="most_detections is 99; at least 100 are needed"):
            metric(CATEGORIES, most_detections=99)
