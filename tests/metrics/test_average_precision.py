import contextlib
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from oracles.scenes import CATEGORIES, random_instances, segments
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from unimask.metrics.average_precision import MaskAveragePrecision, compressed_runs
from unimask.structures import Segments

STANDARD = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
THINGS = [label for label, thing in enumerate(CATEGORIES.is_thing) if thing]

Pictures = list[tuple[Segments, Segments]]


def measured(pictures: Pictures, most_detections: int = 1000) -> MaskAveragePrecision:
    metric = MaskAveragePrecision(CATEGORIES, most_detections)
    for result, truth in pictures:
        metric.update(result, truth)
    return metric


def records(one: Segments, image_id: int) -> list[dict[str, Any]]:
    """COCO's records of the things, from dense masks encoded by pycocotools."""
    found = []
    for mask, label, score, crowd in zip(
        one.masks().numpy(), one.labels.tolist(), one.scores.tolist(), one.is_crowd.tolist()
    ):
        if label in THINGS:
            runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            common = {"image_id": image_id, "category_id": CATEGORIES.file_ids[label], "segmentation": runs}
            extra = {"area": int(mask.sum()), "bbox": [0, 0, 0, 0], "iscrowd": int(crowd), "score": score}
            found.append(common | extra)
    return found


def by_pycocotools(pictures: Pictures, limits: list[int]) -> COCOeval:
    truth, results = COCO(), []
    truth.dataset = {"images": [], "annotations": [], "categories": []}
    truth.dataset["categories"] = [
        {"id": CATEGORIES.file_ids[k], "name": CATEGORIES.names[k]} for k in THINGS
    ]
    for image_id, (result, true) in enumerate(pictures, start=1):
        height, width = true.size
        truth.dataset["images"].append({"id": image_id, "height": height, "width": width})
        truth.dataset["annotations"] += records(true, image_id)
        results += [
            {key: record[key] for key in ("image_id", "category_id", "segmentation", "score")}
            for record in records(result, image_id)
        ]
    for number, record in enumerate(truth.dataset["annotations"], start=1):
        record["id"] = number
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        if results:
            found = truth.loadRes(results)
        else:  # pycocotools cannot load an empty list
            found = COCO()
            found.dataset = truth.dataset | {"annotations": []}
            found.createIndex()
        evaluation = COCOeval(truth, found, "segm")
        evaluation.params.maxDets = limits
        evaluation.evaluate()
        evaluation.accumulate()
        if limits == [1, 10, 100]:
            evaluation.summarize()
    return evaluation


def assert_like_pycocotools(pictures: Pictures) -> dict[str, float]:
    values = measured(pictures).compute()
    expected = by_pycocotools(pictures, [1, 10, 100])
    assert [values.as_dict()[name] for name in STANDARD] == pytest.approx(list(expected.stats), abs=1e-12)
    for index, label in enumerate(THINGS):
        precision = expected.eval["precision"][:, :, index, 0, 2]
        precision = precision[precision > -1]
        assert values.per_class[label] == pytest.approx(
            precision.mean() if precision.size else -1.0, abs=1e-12
        )
    return values.as_dict()


@pytest.mark.parametrize("seed", range(8))
def test_crowded_scenes_equal_pycocotools(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = assert_like_pycocotools([random_instances(random) for _ in range(6)])
    assert 0 < values["AP"] < 1


def test_scenes_of_several_sizes_equal_pycocotools() -> None:
    random = np.random.default_rng(90)
    sizes = [(67, 101), (31, 7), (211, 307), (1, 13)]
    pictures = [random_instances(random, size, most=12, largest=max(size) // 3) for size in sizes * 2]
    values = assert_like_pycocotools(pictures)
    assert values["APl"] > -1
    assert any(truth.layers.shape[0] > 1 and result.layers.shape[0] > 1 for result, truth in pictures)
    assert any(bool(truth.is_crowd.any()) for _, truth in pictures)


def test_all_scores_equal() -> None:
    random = np.random.default_rng(17)
    assert_like_pycocotools([random_instances(random, score_steps=1) for _ in range(5)])


def test_pictures_without_truth_or_without_results() -> None:
    random = np.random.default_rng(4)
    pictures = []
    for _ in range(3):
        result, truth = random_instances(random)
        nothing = segments(np.zeros(truth.size), [])
        pictures += [(result, truth), (nothing, truth), (result, nothing), (nothing, nothing)]
    assert_like_pycocotools(pictures)


def test_no_results_at_all() -> None:
    random = np.random.default_rng(8)
    truths = [random_instances(random)[1] for _ in range(3)]
    pictures = [(segments(np.zeros(truth.size), []), truth) for truth in truths]
    assert assert_like_pycocotools(pictures)["AP"] == 0.0


def test_nothing_at_all_is_minus_one() -> None:
    values = MaskAveragePrecision(CATEGORIES).compute()
    assert set(values.as_dict().values()) == {-1.0}
    assert values.per_class == (-1.0,) * len(CATEGORIES)


def test_segments_without_pixels_count_as_in_pycocotools() -> None:
    ids = np.zeros((5, 7))
    ids[1:4, 2:5] = 2
    truth, result = segments(ids, [0, 0, 2]), segments(ids, [0, 0, 2], [0.9, 0.8, 0.1])
    assert_like_pycocotools([(result, truth)])


def many_cells(random: np.random.Generator) -> tuple[Segments, Segments]:
    """More than a hundred instances of one class in a picture."""
    rows, columns = np.mgrid[:60, :84]
    ids = (rows // 6) * 14 + columns // 6 + 1
    ids[(rows % 6 == 0) | (columns % 6 == 0)] = 0
    truth = segments(ids, [0] * 140)
    noisy = np.where(random.random(ids.shape) < 0.1, 0, ids)
    return segments(noisy, [0] * 140, (random.integers(1, 20, 140) / 20).tolist()), truth


def test_more_than_a_hundred_instances() -> None:
    random = np.random.default_rng(2)
    pictures = [many_cells(random) for _ in range(2)]
    values = assert_like_pycocotools(pictures)
    more = by_pycocotools(pictures, [1, 10, 1000]).eval
    precision, recall = more["precision"][:, :, :, 0, 2], more["recall"][:, :, 0, 2]
    assert values["AP_all"] == pytest.approx(precision[precision > -1].mean(), abs=1e-12)
    assert values["AP50_all"] == pytest.approx(precision[0][precision[0] > -1].mean(), abs=1e-12)
    assert values["AP75_all"] == pytest.approx(precision[5][precision[5] > -1].mean(), abs=1e-12)
    assert values["AR_all"] == pytest.approx(recall[recall > -1].mean(), abs=1e-12)
    assert values["AP_all"] > values["AP"] + 0.1
    fewer = measured(pictures, most_detections=100).compute().as_dict()
    assert fewer["AP_all"] == fewer["AP"] == values["AP"]


def test_merged_states_equal_one_state() -> None:
    random = np.random.default_rng(6)
    pictures = [random_instances(random) for _ in range(7)]
    first = measured(pictures[:3])
    first.merge(pickle.loads(pickle.dumps(measured(pictures[3:]))))
    assert first.compute() == measured(pictures).compute()


def test_run_lengths_equal_those_of_pycocotools() -> None:
    random = np.random.default_rng(11)
    for size in [(1, 1), (1, 9), (9, 1), (23, 37)]:
        for _ in range(10):
            one, _ = random_instances(random, size, largest=7)
            full = segments(np.ones(size), [0])
            for which in (one, full):
                expected = coco_mask.encode(
                    np.asfortranarray(which.masks().permute(1, 2, 0).numpy().astype(np.uint8))
                )
                assert list(compressed_runs(which)) == [runs["counts"] for runs in expected]


def test_what_cannot_be_measured_is_refused() -> None:
    metric = MaskAveragePrecision(CATEGORIES)
    truth = segments(np.ones((3, 5)), [0])
    with pytest.raises(ValueError, match="not finite"):
        metric.update(segments(np.ones((3, 5)), [0], [float("nan")]), truth)
    with pytest.raises(ValueError, match="5 x 3 pixels"):
        metric.update(segments(np.ones((5, 3)), [0]), truth)
    with pytest.raises(ValueError, match="at least 100"):
        MaskAveragePrecision(CATEGORIES, 10)
    assert metric.compute() == MaskAveragePrecision(CATEGORIES).compute()


def test_results_in_half_precision_are_fine() -> None:
    ids = np.ones((3, 5))
    result = segments(ids, [0], [0.5])
    half = Segments(
        layers=result.layers,
        labels=result.labels,
        scores=result.scores.to(torch.bfloat16),
        is_crowd=result.is_crowd,
    )
    assert measured([(half, segments(ids, [0]))]).compute().as_dict()["AP"] == pytest.approx(1.0)
