"""Every set of the reference data opens with every task that makes sense."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unimask.config.tasks import TASKS, Task
from unimask.data.formats.coco_instances import open_instances
from unimask.data.open import open_dataset
from unimask.data.read import read_labels
from unimask.errors import DataError

PANOPTIC, INSTANCE, SEMANTIC = TASKS

SETS: dict[str, tuple[dict[str, int], dict[Task, int]]] = {
    "nuclei_dsb2018": ({"train": 441, "val": 50}, {PANOPTIC: 2, INSTANCE: 1, SEMANTIC: 2}),
    "camvid11": ({"train": 367, "val": 101}, {PANOPTIC: 11, SEMANTIC: 11}),
    "ade20k_panoptic_mini": ({"train": 64, "val": 16}, {PANOPTIC: 150, INSTANCE: 100, SEMANTIC: 150}),
    "coco_stuff_panoptic_mini": ({"train": 12, "val": 1}, {PANOPTIC: 171, INSTANCE: 80, SEMANTIC: 171}),
    "coco_stuff_panoptic_mini/official_coco_panoptic": (
        {"train": 2, "val": 1, "all": 3},
        {PANOPTIC: 133, INSTANCE: 80, SEMANTIC: 133},
    ),
    "coco_tiny_instances": ({"train": 50, "val": 38}, {PANOPTIC: 81, INSTANCE: 80, SEMANTIC: 81}),
    "voc2007_mini": ({"train": 20, "val": 12}, {PANOPTIC: 21, INSTANCE: 20, SEMANTIC: 21}),
}


@pytest.mark.parametrize("name", SETS)
def test_set_opens(shared_data: Path, name: str) -> None:
    splits, tasks = SETS[name]
    for task, classes in tasks.items():
        for split, count in splits.items():
            dataset = open_dataset(shared_data / name, split, task)
            assert (len(dataset), len(dataset.categories)) == (count, classes)
            for index in (0, count // 2, count - 1):
                segments = dataset[index].truth
                assert segments.size == tuple(dataset[index].image.shape[1:])
                assert len(segments) > 0
                assert int(segments.labels.max()) < classes
                if task != INSTANCE:
                    assert segments.layers.shape[0] == 1
                if task == INSTANCE:
                    assert all(dataset.categories.is_thing)


def test_camvid_has_no_things(shared_data: Path) -> None:
    with pytest.raises(DataError, match="only stuff"):
        open_dataset(shared_data / "camvid11", "val", INSTANCE)


def test_every_mask_equals_pycocotools(shared_data: Path) -> None:
    from pycocotools import mask as reference

    for name in ("coco_tiny_instances", "voc2007_mini"):
        path = shared_data / name / "instances_val.json"
        content = json.loads(path.read_bytes())
        dataset = open_instances(path)
        for index, image in enumerate(sorted(content["images"], key=lambda one: one["id"])):
            entries = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
            masks = dataset[index].truth.masks().numpy().astype(np.uint8)
            assert len(masks) == len(entries)
            for mask, entry in zip(masks, entries):
                packed = entry["segmentation"]
                if isinstance(packed, list) or isinstance(packed["counts"], list):
                    packed = reference.frPyObjects(packed, image["height"], image["width"])
                packed = reference.merge(packed) if isinstance(packed, list) else packed
                assert reference.encode(np.asfortranarray(mask))["counts"] in (
                    packed["counts"],
                    str(packed["counts"]).encode(),
                )


def test_nuclei_equal_their_label_pictures(shared_data: Path) -> None:
    root = shared_data / "nuclei_dsb2018"
    dataset = open_dataset(root, "val", INSTANCE)
    for index in range(0, 50, 7):
        sample = dataset[index]
        labels = torch.from_numpy(read_labels(root / "labels" / f"{sample.image_id}.png"))
        assert len(sample.truth) == int(labels.max())
        assert float(((sample.truth.layers[0] > 0) == (labels > 0)).float().mean()) > 0.9999
        assert float((sample.truth.layers.amax(0) == labels).float().mean()) > 0.9999


def test_nuclei_also_open_from_their_label_pictures(shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "nuclei_dsb2018"
    for name in ("images", "labels", "splits.json"):
        (tmp_path / name).symlink_to(root / name)
    dataset = open_dataset(tmp_path, "val", PANOPTIC, follow_outside=True)
    by_json = open_dataset(root, "val", PANOPTIC)
    assert len(dataset) == 50
    assert dataset.categories.names == ("object", "background")
    assert dataset[3].image_id == by_json[3].image_id
    assert float((dataset[3].truth.layers == by_json[3].truth.layers).float().mean()) > 0.9999


def test_panoptic_areas_equal_the_json(shared_data: Path) -> None:
    root = shared_data / "coco_stuff_panoptic_mini" / "official_coco_panoptic"
    dataset = open_dataset(root, "all", PANOPTIC)
    content = json.loads((root / "panoptic.json").read_bytes())
    file_ids = torch.tensor(dataset.categories.file_ids)
    for index, annotation in enumerate(content["annotations"]):
        segments = dataset[index].truth
        listed = annotation["segments_info"]
        assert segments.areas().tolist() == [segment["area"] for segment in listed]
        assert file_ids[segments.labels].tolist() == [segment["category_id"] for segment in listed]


def test_semantic_view_equals_the_semantic_maps(shared_data: Path) -> None:
    root = shared_data / "ade20k_panoptic_mini"
    dataset = open_dataset(root, "val", SEMANTIC)
    for index in range(0, 16, 5):
        sample = dataset[index]
        file_ids = torch.tensor([0, *(dataset.categories.file_ids[k] for k in sample.truth.labels)])
        expected = np.array(Image.open(root / "semantic" / f"{sample.image_id}.png"))
        assert torch.equal(file_ids[sample.truth.layers[0].long()], torch.from_numpy(expected).long())


def test_boxes_alone_are_refused(shared_data: Path) -> None:
    with pytest.raises(DataError, match=r"detection_val\.json: annotation 901 has no mask, only a box"):
        open_dataset(shared_data / "voc2007_mini" / "detection_val.json", "all", INSTANCE)
