"""Panoptic quality of the stored cases, equal to panopticapi's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unimask.metrics.panoptic_quality import PanopticQuality, PanopticQualityValues, Quality
from unimask.structures import Categories, Segments


def read_segments(picture: dict[str, Any], folder: Path, labels: dict[int, int]) -> Segments:
    rgb = np.asarray(Image.open(folder / picture["file_name"]).convert("RGB")).astype(np.int64)
    ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
    listed = picture["segments_info"]
    numbers = np.zeros_like(ids)
    for number, segment in enumerate(listed, start=1):
        numbers[ids == segment["id"]] = number
    assert ((numbers > 0) == (ids > 0)).all()
    return Segments(
        layers=torch.from_numpy(numbers.astype(np.int16))[None],
        labels=torch.tensor([labels[segment["category_id"]] for segment in listed], dtype=torch.int64),
        scores=torch.ones(len(listed)),
        is_crowd=torch.tensor([bool(segment.get("iscrowd", 0)) for segment in listed], dtype=torch.bool),
    )


class Cases:
    def __init__(self, folder: Path) -> None:
        self.expected = json.loads((folder / "expected.json").read_text())
        truth, result = (json.loads((folder / name).read_text()) for name in ("gt.json", "pred.json"))
        self.categories = Categories(
            names=tuple(category["name"] for category in truth["categories"]),
            is_thing=tuple(bool(category["isthing"]) for category in truth["categories"]),
            file_ids=tuple(category["id"] for category in truth["categories"]),
            colors=((0, 0, 0),) * len(truth["categories"]),
        )
        labels = {file_id: label for label, file_id in enumerate(self.categories.file_ids)}
        self.pictures = {
            true["image_id"]: (
                read_segments(given, folder / "pred", labels),
                read_segments(true, folder / "gt", labels),
            )
            for true, given in zip(truth["annotations"], result["annotations"])
            if true["image_id"] == given["image_id"]
        }

    def measure(self, image_ids: list[int]) -> tuple[PanopticQuality, PanopticQualityValues]:
        metric = PanopticQuality(self.categories)
        for image_id in image_ids:
            metric.update(*self.pictures[image_id])
        return metric, metric.compute()


@pytest.fixture(scope="module")
def cases(golden: Path) -> Cases:
    return Cases(golden / "pq_cases")


def assert_quality(quality: Quality, expected: dict[str, float]) -> None:
    assert quality.panoptic == pytest.approx(expected["pq"], abs=1e-9)
    assert quality.segmentation == pytest.approx(expected["sq"], abs=1e-9)
    assert quality.recognition == pytest.approx(expected["rq"], abs=1e-9)


def assert_equal(
    metric: PanopticQuality, values: PanopticQualityValues, expected: dict[str, Any], categories: Categories
) -> None:
    for label, file_id in enumerate(categories.file_ids):
        counts = expected["per_class_counts"][str(file_id)]
        assert int(metric.matched[label]) == counts["tp"]
        assert int(metric.wrong[label]) == counts["fp"]
        assert int(metric.missed[label]) == counts["fn"]
        assert float(metric.iou[label]) == pytest.approx(counts["iou"], abs=1e-9)
        if counts["tp"] + counts["fp"] + counts["fn"]:
            assert_quality(values.per_class[label], expected["per_class"][str(file_id)])
        else:
            assert values.per_class[label].classes == 0
    groups = {"All": values.all, "Things": values.things, "Stuff": values.stuff}
    compared = 0
    for name, group in groups.items():
        average = expected["averages"].get(name) or {"n": 0}
        assert group.classes == average["n"]
        if group.classes:
            assert_quality(group, average)
            compared += 1
    assert compared


def test_six_pictures_together(cases: Cases) -> None:
    assert len(cases.pictures) == 6
    metric, values = cases.measure(list(cases.pictures))
    assert_equal(metric, values, cases.expected["dataset"], cases.categories)


def test_each_picture_alone(cases: Cases) -> None:
    for expected in cases.expected["single_images"].values():
        metric, values = cases.measure([expected["image_id"]])
        assert_equal(metric, values, expected, cases.categories)


def test_merged_pictures(cases: Cases) -> None:
    metric, _ = cases.measure([])
    for image_id in cases.pictures:
        metric.merge(cases.measure([image_id])[0])
    assert_equal(metric, metric.compute(), cases.expected["dataset"], cases.categories)
