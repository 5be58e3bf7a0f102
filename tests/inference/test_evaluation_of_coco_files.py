"""AP over a COCO file is that of pycocotools over the same file: its areas, the order of its images."""

import contextlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.dataset_files import save_json, save_picture
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from unimask.config.tasks import Task
from unimask.data.formats.coco_instances import open_boxes, open_instances
from unimask.data.reading import PLAIN, Reading
from unimask.inference.evaluation import measure
from unimask.ops.id_maps import pack_masks
from unimask.structures import Categories, Detections, Segments

SIDE, COUNT = 120, 14
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def write_file(folder: Path) -> Path:
    """Images out of the order of their ids; areas that are not those of masks or boxes, and some missing."""
    random = np.random.default_rng(3)
    images, annotations = [], []
    for number, image_id in enumerate(random.permutation(COUNT).tolist()):
        save_picture(folder / "images" / f"{number:02d}.png", SIDE, SIDE, value=number)
        images.append({"id": image_id, "file_name": f"{number:02d}.png", "height": SIDE, "width": SIDE})
        for _ in range(6):
            left, top = random.integers(0, 70, 2).tolist()
            width, height = random.integers(20, 50, 2).tolist()
            right, bottom = left + width, top + height
            area = float(width * height) * random.choice([0.3, 0.5, 1.0, 1.7, 9.0])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(random.integers(1, 3)),
                    "iscrowd": 0,
                    "bbox": [left, top, width, height],
                    "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                    "area": area,
                }
            )
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return save_json(folder / "instances_val.json", content)


@dataclass(frozen=True, kw_only=True)
class Shifted:
    """Finds each object of a file a little beside its place, with one of two scores."""

    categories: Categories
    found: dict[int, Detections]  # by the red value of the image
    task: Task
    background: bool = True
    set_reading: Reading = PLAIN
    instance_threshold: float = 0.5

    def find(
        self, images: Iterable[Tensor], task: Task, *, threshold: float | None = None, batch_size: int = 4
    ) -> Iterator[Segments | Detections]:
        """Yield boxes, or the masks that fill them."""
        for image in images:
            boxes = self.found[int(image[0, 0, 0])]
            yield boxes if task == "detection" else filled(boxes)


def filled(boxes: Detections) -> Segments:
    masks = torch.zeros((len(boxes), SIDE, SIDE), dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.boxes.long().tolist()):
        mask[top:bottom, left:right] = True
    return Segments(
        layers=pack_masks(masks), labels=boxes.labels, scores=boxes.scores, is_crowd=boxes.is_crowd
    )


def shifted(path: Path) -> dict[int, Detections]:
    """By the number of the image's file: its boxes, moved by a few pixels."""
    random, content = np.random.default_rng(5), json.loads(path.read_text())
    numbers = {image["id"]: int(image["file_name"][:2]) for image in content["images"]}
    corners: dict[int, list[list[float]]] = {number: [] for number in numbers.values()}
    labels: dict[int, list[int]] = {number: [] for number in numbers.values()}
    for one in content["annotations"]:
        left, top, width, height = one["bbox"]
        left, top = max(0, left + random.integers(-6, 7)), max(0, top + random.integers(-6, 7))
        corners[numbers[one["image_id"]]].append([left, top, left + width, top + height])
        labels[numbers[one["image_id"]]].append(one["category_id"] - 1)
    return {
        number: Detections(
            boxes=torch.tensor(corners[number], dtype=torch.float32),
            labels=torch.tensor(labels[number]),
            scores=torch.from_numpy(random.choice([0.5, 0.75], len(labels[number]))).float(),
            areas=torch.zeros(len(labels[number])),
            is_crowd=torch.zeros(len(labels[number]), dtype=torch.bool),
        )
        for number in corners
    }


def by_pycocotools(path: Path, found: dict[int, Detections], kind: str) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        results: list[dict[str, Any]] = []
        for image in truth.dataset["images"]:
            boxes = found[int(image["file_name"][:2])]
            masks = filled(boxes).masks().numpy().astype(np.uint8)
            for place, label, score, mask in zip(boxes.boxes.tolist(), boxes.labels, boxes.scores, masks):
                left, top, right, bottom = place
                record = {"image_id": image["id"], "category_id": int(label) + 1, "score": float(score)}
                shape: dict[str, Any] = {"bbox": [left, top, right - left, bottom - top]}
                if kind == "segm":
                    shape = {"segmentation": coco_mask.encode(np.asfortranarray(mask))}
                results.append(record | shape)
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


@pytest.mark.parametrize("task", ["instance", "detection"])
def test_every_number_is_that_of_pycocotools_over_the_same_file(tmp_path: Path, task: Task) -> None:
    path = write_file(tmp_path)
    dataset = open_boxes(path) if task == "detection" else open_instances(path)
    finder = Shifted(categories=dataset.categories, found=shifted(path), task=task)
    expected = by_pycocotools(path, finder.found, "bbox" if task == "detection" else "segm")

    def values(indices: list[int]) -> list[float | None]:
        measured = measure(finder, dataset, task, indices).compute().values
        return [measured[name] for name in NAMES]

    in_order = list(range(COUNT))
    assert values(in_order) == pytest.approx(expected, abs=1e-12)
    file_order = sorted(in_order, key=lambda index: dataset.items[index].image_id)
    assert values(file_order) != pytest.approx(expected, abs=1e-12)  # equal scores: order counts
    parts = [measure(finder, dataset, task, part) for part in (in_order[:5], in_order[5:])]
    parts[0].merge(parts[1])
    assert [parts[0].compute().values[name] for name in NAMES] == pytest.approx(expected, abs=1e-12)


def test_areas_of_the_file_decide_what_is_small(tmp_path: Path) -> None:
    path = write_file(tmp_path)
    content = json.loads(path.read_text())
    dataset = open_instances(path)
    stated = {one["id"]: one["area"] for one in content["annotations"]}
    for index, item in enumerate(dataset.items):
        truth = dataset[index].truth
        assert isinstance(truth, Segments)
        assert truth.object_areas().tolist() == [stated[one.id] for one in item.instances]
        assert truth.object_areas().tolist() != truth.areas().tolist()
    for one in content["annotations"]:
        del one["area"]
    truth = open_instances(save_json(path, content))[0].truth
    assert truth.object_areas().tolist() == truth.areas().tolist()  # none stated: those of the masks
