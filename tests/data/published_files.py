"""Small copies of published data sets, laid out as their owners give them out: pictures of 37 x 53."""

from pathlib import Path

import numpy as np
from data.dataset_files import save_ids, save_json, save_labels, save_picture
from PIL import Image

SIZE = (37, 53)


def rows(*numbers: int, kind: type = np.uint8) -> np.ndarray:
    """Bands of three rows for each number; the last one has the rest."""
    found = np.full(SIZE, numbers[-1], dtype=kind)
    for index, number in enumerate(numbers):
        found[3 * index : 3 * index + 3] = number
    found[3 * len(numbers) - 3 :] = numbers[-1]
    return found


CITY_CLASSES = (7, 4, 24, 26, 18, 33, 0, 23)  # road, static, person, car, polegroup, bicycle, unlabeled, sky
CITY_OBJECTS = (7, 24, 24000, 24001, 26003, 29001, 4, 23)  # road, group, 2 persons, car, caravan, static, sky
CITY_TRAIN_IDS = (0, 255, 11, 13, 255, 18, 255, 10)


def save_cityscapes(
    root: Path, kinds: dict[str, np.ndarray], splits: tuple[str, ...] = ("train", "val")
) -> None:
    for split in splits:
        for city, count in (("aachen", 2), ("ulm", 1)):
            for n in range(count):
                stem = f"{city}_{split}{n}_000019"
                save_picture(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", *SIZE)
                for kind, numbers in kinds.items():
                    save_labels(root / "gtFine" / split / city / f"{stem}_gtFine_{kind}.png", numbers)
                save_json(root / "gtFine" / split / city / f"{stem}_gtFine_polygons.json", {})


CITY_KINDS = {
    "labelIds": rows(*CITY_CLASSES),
    "instanceIds": rows(*CITY_OBJECTS, kind=np.uint16),
    "labelTrainIds": rows(*CITY_TRAIN_IDS),
    "color": rows(1, 2),
}

ADE_CLASSES = (1, 0, 13, 8, 150, 3)  # wall, other, person, bed, flag, sky


def save_ade20k(root: Path, counts: tuple[int, int] = (2, 2)) -> None:
    for (word, short), count in zip((("training", "train"), ("validation", "val")), counts):
        for n in range(1, count + 1):
            name = f"ADE_{short}_{n:08d}"
            save_picture(root / "images" / word / f"{name}.jpg", *SIZE)
            save_labels(root / "annotations" / word / f"{name}.png", rows(*ADE_CLASSES))
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1\t1\t1\t1\twall\n")


def save_ade20k_objects(root: Path) -> None:
    """Red is the class (bed 1, person 4, flag 100), green the object; a person is over the sky."""
    for labels in sorted((root / "annotations").glob("*/*.png")):
        classes, objects = rows(0, 0, 4, 1, 100, 0), rows(0, 0, 1, 2, 3, 0)
        objects[7, :], classes[7, :] = 0, 0  # a row of person in no object
        classes[30, :20], objects[30, :20] = 4, 9
        path = root / "annotations_instance" / labels.parent.name / labels.name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.stack([classes, objects, np.zeros_like(classes)], -1)).save(path)


def ade20k_names(things_only: bool) -> list[dict[str, object]]:
    """As detectron2's scripts write them: ids from 0, names of two lists that differ."""
    if things_only:
        named = {7: "bed", 8: "windowpane", 12: "person", 149: "flag"}
        return [{"id": n, "name": name} for n, name in named.items()]
    named = {0: "wall", 2: "sky", 7: "bed", 8: "window ", 12: "person", 149: "flag"}
    return [
        {"id": n, "name": name, "isthing": int(n not in (0, 2)), "color": [n, n, n]}
        for n, name in named.items()
    ]


def save_ade20k_json(root: Path, word: str, short: str) -> None:
    """Wall, two persons, stuff wholly under things (sky, without a pixel); instances: a window."""
    ids = np.zeros(SIZE, dtype=np.int64)
    ids[:9], ids[9:20, :20], ids[9:20, 20:] = 7895160, 300, 70001
    images, annotations, instances = [], [], []
    for number, picture in enumerate(sorted((root / "images" / word).glob("*.jpg"))):
        images.append({"id": picture.stem, "file_name": picture.name, "height": SIZE[0], "width": SIZE[1]})
        save_ids(root / f"ade20k_panoptic_{short}" / f"{picture.stem}.png", ids)
        segments = [(7895160, 0), (300, 12), (70001, 12), (5, 2)]
        infos = [
            {"id": n, "category_id": c, "iscrowd": 0, "area": 1, "bbox": [0, 0, 1, 1]} for n, c in segments
        ]
        annotations.append(
            {"image_id": picture.stem, "file_name": f"{picture.stem}.png", "segments_info": infos}
        )
        runs = {"size": list(SIZE), "counts": [SIZE[0] * 3, 74, SIZE[0] * 48]}
        instances.append(
            {"id": number + 1, "image_id": picture.stem, "category_id": 8, "iscrowd": 0, "area": 74}
            | {"bbox": [3, 0, 2, 37], "segmentation": runs}
        )
    common = {"images": images}
    panoptic = {**common, "annotations": annotations, "categories": ade20k_names(False)}
    save_json(root / f"ade20k_panoptic_{short}.json", panoptic)
    save_json(
        root / f"ade20k_instance_{short}.json",
        {**common, "annotations": instances, "categories": ade20k_names(True)},
    )


def vistas_labels(version: str) -> list[dict[str, object]]:
    """The first labels of a configuration, and one that is not evaluated."""
    named = [("Bird", "animal--bird", True), ("Curb", "construction--barrier--curb", False)]
    named += [("Sky", "nature--sky", False), ("Car", "object--vehicle--car", True)]
    named += [("Pole Group", "object--support--pole-group", False)] * (version == "v2.0")
    named += [("Unlabeled", "void--unlabeled", False)]
    return [
        {
            "readable": readable,
            "name": name,
            "instances": instances,
            "evaluate": readable not in ("Unlabeled", "Pole Group"),
            "color": [10 * n, n, 200],
        }
        for n, (readable, name, instances) in enumerate(named)
    ]


def save_vistas(root: Path, version: str, words: tuple[str, ...] = ("training", "validation")) -> None:
    """`version` is "v1.2", "v2.0" or "" (the old form). Bands: Bird, Curb, Sky, Car, Car, ..., void."""
    labels = vistas_labels(version)
    void = len(labels) - 1
    save_json(
        root / (f"config_{version}.json" if version else "config.json"), {"labels": labels, "version": 1.1}
    )
    bands = [0, 1, 2, 3, 3, *range(4, void), void]
    numbers = [3 * 256 + 1 if place == 4 else band * 256 for place, band in enumerate(bands)]
    for word in words:
        folder = root / word / version
        for name in ("_-1aBc", "xY_2"):
            save_picture(root / word / "images" / f"{name}.jpg", *SIZE)
            for kind, values in (("labels", rows(*bands)), ("instances", rows(*numbers, kind=np.uint16))):
                save_labels(folder / kind / f"{name}.png", values)
            palette = Image.fromarray(rows(*bands)).convert("P")
            palette.putpalette([value for label in labels for value in label["color"]])
            palette.save(folder / "labels" / f"{name}.png")


def save_vistas_panoptic(root: Path, version: str, word: str = "validation") -> None:
    """Bird, two cars, a curb (in 2.0 a group, which is not evaluated); names as each version writes them."""
    labels = vistas_labels(version)
    categories = [
        {
            "id": n,
            "name": label["name" if version == "v2.0" else "readable"],
            "isthing": int(label["instances"]),
        }
        | {"supercategory": label["name"], "color": label["color"]}
        for n, label in enumerate(labels, 1)
        if label["readable"] != "Unlabeled"
    ]
    ids = np.zeros(SIZE, dtype=np.int64)
    ids[:4], ids[4:9], ids[9:16], ids[16:18] = 1, 70000, 70001, 9
    segments = [(1, 1), (70000, 4), (70001, 4), (9, 5 if version == "v2.0" else 2)]
    year = "2020" if version == "v2.0" else "2018"
    folder = root / word / version / "panoptic"
    images, annotations = [], []
    for picture in sorted((root / word / "images").glob("*.jpg")):
        save_ids(folder / f"{picture.stem}.png", ids)
        images.append({"id": picture.stem, "file_name": picture.name, "height": SIZE[0], "width": SIZE[1]})
        infos = [
            {"id": n, "category_id": c, "iscrowd": 0, "area": 1, "bbox": [0, 0, 1, 1]} for n, c in segments
        ]
        annotations.append(
            {"image_id": picture.stem, "file_name": f"{picture.stem}.png", "segments_info": infos}
        )
    save_json(
        folder / f"panoptic_{year}.json",
        {"images": images, "annotations": annotations, "categories": categories},
    )
