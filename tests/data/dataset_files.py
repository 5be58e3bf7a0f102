"""Small data sets on disk, in every format."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def two_categories() -> list[dict[str, object]]:
    return [
        {"id": 3, "name": "cat", "supercategory": "animal", "isthing": 1},
        {"id": 7, "name": "dog", "supercategory": "animal", "isthing": 1},
    ]


def save_picture(path: Path, height: int, width: int, value: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (value, value // 2, 200 - value)).save(path)
    return path


def save_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def square(left: float, top: float, side: float) -> list[float]:
    return [left, top, left + side, top, left + side, top + side, left, top + side]


def annotation(
    number: int, image: int, shape: object, category: int = 3, crowd: int = 0
) -> dict[str, object]:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "iscrowd": crowd,
        "bbox": [0, 0, 1, 1],
        "area": 1,
        "segmentation": shape,
    }


def coco_instances(count: int = 2, height: int = 23, width: int = 31) -> dict[str, object]:
    """Each picture: two overlapping polygons and a crowd as plain run lengths."""
    images = [
        {"id": 10 + n, "file_name": f"p{n}.png", "height": height, "width": width} for n in range(count)
    ]
    annotations = []
    for n in range(count):
        column = [height * (width - 2), 5, height * 2 - 5]
        crowd = {"size": [height, width], "counts": column}
        annotations += [
            annotation(100 * n + 1, 10 + n, [square(2, 3, 8)], 3),
            annotation(100 * n + 2, 10 + n, [square(6, 5, 9), square(18, 2, 4)], 7),
            annotation(100 * n + 3, 10 + n, crowd, 3, crowd=1),
        ]
    return {"images": images, "annotations": annotations, "categories": two_categories()}


def save_coco_instances(
    path: Path, pictures: Path, count: int = 2, content: dict[str, object] | None = None
) -> Path:
    content = coco_instances(count) if content is None else content
    for image in content["images"]:
        save_picture(pictures / image["file_name"], image["height"], image["width"])
    return save_json(path, content)


def save_panoptic(path: Path, pngs: Path, pictures: Path, count: int = 2) -> dict[str, object]:
    """Each picture, 17 x 19: rows 0-4 cat (5), 5-9 dog (70000, crowd), 10-14 grass (257), the rest void."""
    categories = [*two_categories(), {"id": 9, "name": "grass", "isthing": 0, "color": [1, 2, 3]}]
    images, annotations = [], []
    for n in range(count):
        ids = np.zeros((17, 19), dtype=np.int64)
        ids[:5], ids[5:10], ids[10:15] = 5, 70000, 257
        save_ids(pngs / f"p{n}.png", ids)
        save_picture(pictures / f"p{n}.jpg", 17, 19)
        images.append({"id": n, "file_name": f"p{n}.jpg", "height": 17, "width": 19})
        segments = [
            {"id": 5, "category_id": 3, "iscrowd": 0, "area": 95, "bbox": [0, 0, 19, 5]},
            {"id": 70000, "category_id": 7, "iscrowd": 1, "area": 95, "bbox": [0, 5, 19, 5]},
            {"id": 257, "category_id": 9, "iscrowd": 0, "area": 95, "bbox": [0, 10, 19, 5]},
        ]
        annotations.append({"image_id": n, "file_name": f"p{n}.png", "segments_info": segments})
    content = {"images": images, "annotations": annotations, "categories": categories}
    save_json(path, content)
    return content


def save_ids(path: Path, ids: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)).save(path)
    return path


def save_labels(path: Path, numbers: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(numbers).save(path)
    return path


def class_map(height: int = 13, width: int = 11) -> np.ndarray:
    """Rows of class 0, 1, 2 and one row of 255."""
    numbers = np.zeros((height, width), dtype=np.uint8)
    numbers[4:8], numbers[8:], numbers[-1] = 1, 2, 255
    return numbers


CLASSES = {"classes": [{"id": 0, "name": "road"}, {"id": 1, "name": "car"}, {"id": 2, "name": "tree"}]}
