"""Hostile files by the thousand: what is not read must end in one sentence, soon, and in little memory.

    python -m campaigns.hostile --cases 10000 --seed 1       (in `tests/`)

Each case takes a small sound input (a data set of each format, images, weights, a model folder), hurts one of
its files at random, and reads everything, in a process apart from this one. The outcome is one of: read,
refused (a `UnimaskError`), unprintable (a message that is long or has control characters), traceback, hang
(more than `SECONDS`), memory (more than `MEGABYTES` beyond the start) or died. Only the first two are good. A
case is named by its number and the seed, and can be run again alone.
"""

import argparse
import io
import json
import os
import pickle
import random
import re
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from unimask.checkpoints.images import load_model
from unimask.conversion.foreign_files import read_foreign_tensors
from unimask.data.open import LAYOUTS, open_dataset
from unimask.data.read import read_image
from unimask.errors import UnimaskError

SECONDS = 20
MEGABYTES = 700
TOGETHER = 25  # cases in one process
GOOD = ("read", "refused")
HEIGHT, WIDTH = 23, 31


# --- sound inputs -----------------------------------------------------------------------------------------


def image(path: Path, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(HEIGHT * WIDTH * 3, dtype=np.uint32).reshape(HEIGHT, WIDTH, 3) * 7 % 251
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(path)


def labels(path: Path, values: tuple[int, ...] = (0, 1, 2)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = np.zeros((HEIGHT, WIDTH), np.uint8)
    for place, value in enumerate(values):
        numbers[place * 6 : place * 6 + 6] = value
    Image.fromarray(numbers).save(path)


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1))


def coco(root: Path) -> None:
    polygon = [2, 3, 10, 3, 10, 11, 2, 11]
    runs = {"size": [HEIGHT, WIDTH], "counts": [40, 12, HEIGHT * WIDTH - 52]}
    images, annotations = [], []
    for n in (1, 2, 3):
        image(root / f"images/{n}.png")
        images.append({"id": n, "file_name": f"{n}.png", "height": HEIGHT, "width": WIDTH})
        for m, (shape, crowd) in enumerate((([polygon], 0), (runs, 1), ([polygon], 0))):
            annotations.append(
                {"id": 10 * n + m, "image_id": n, "category_id": 1 + m // 2, "iscrowd": crowd, "area": 64,
                 "bbox": [2, 3, 8, 8], "segmentation": shape}
            )  # fmt: skip
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    write_json(
        root / "instances_train.json",
        {"images": images, "annotations": annotations, "categories": categories},
    )


def panoptic(root: Path) -> None:
    images, annotations = [], []
    for n in (1, 2):
        image(root / f"images/{n}.jpg")
        ids = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        ids[:8, :, 0], ids[8:16, :, 1] = 5, 7
        (root / "panoptic_train").mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids).save(root / f"panoptic_train/{n}.png")
        images.append({"id": n, "file_name": f"{n}.jpg", "height": HEIGHT, "width": WIDTH})
        segments = [
            {"id": 5, "category_id": 1, "iscrowd": 0, "area": 248, "bbox": [0, 0, WIDTH, 8]},
            {"id": 7 * 256, "category_id": 2, "iscrowd": 0, "area": 248, "bbox": [0, 8, WIDTH, 8]},
        ]
        annotations.append({"image_id": n, "file_name": f"{n}.png", "segments_info": segments})
    categories = [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "grass", "isthing": 0}]
    write_json(
        root / "panoptic_train.json", {"images": images, "annotations": annotations, "categories": categories}
    )


def folders(root: Path) -> None:
    for name in "ab":
        image(root / f"images/{name}.png")
        labels(root / f"labels/{name}.png")
    classes = [{"id": n, "name": name} for n, name in enumerate(("ground", "tree", "road"))]
    write_json(root / "classes.json", {"classes": classes})


def yolo(root: Path) -> None:
    for split in ("train", "val"):
        for n in range(2):
            image(root / f"images/{split}/{split}{n}.png")
        (root / f"labels/{split}").mkdir(parents=True)
        (root / f"labels/{split}/{split}0.txt").write_text("1 .1 .1 .5 .1 .5 .6 .1 .6\n0 .5 .5 .25 .5\n")
    (root / "data.yaml").write_text(
        "path: .\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n"
    )


def labelme(root: Path) -> None:
    shapes = [
        {"label": "dog", "points": [[2, 3], [10, 3], [10, 11]], "group_id": None, "shape_type": "polygon"},
        {"label": "cat", "points": [[20, 2], [14, 8]], "group_id": 4, "shape_type": "rectangle"},
        {"label": "cat", "points": [[20, 12], [22, 12]], "group_id": 4, "shape_type": "circle"},
    ]
    for name in ("a", "b"):
        image(root / f"{name}.png")
        write_json(
            root / f"{name}.json",
            {"version": "5", "shapes": shapes, "imagePath": f"{name}.png", "imageHeight": HEIGHT,
             "imageWidth": WIDTH},
        )  # fmt: skip


def label_studio(root: Path) -> None:
    def result(kind: str, value: dict[str, object]) -> dict[str, object]:
        return {"type": kind, "original_width": WIDTH, "original_height": HEIGHT,
                "value": {**value, kind: ["cat"]}}  # fmt: skip

    image(root / "images/one.png")
    bits = (
        f"{WIDTH * HEIGHT * 4:032b}{7:05b}{1:04b}{3:04b}{7:04b}{15:04b}1{3:02b}{WIDTH * HEIGHT * 4 - 1:016b}"
    )
    bits += "0" * 8
    bits += "0" * (-len(bits) % 8)
    packed = [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]
    results = [
        result("polygonlabels", {"points": [[5, 5], [40, 5], [40, 60]]}),
        result("rectanglelabels", {"x": 5, "y": 5, "width": 20, "height": 20, "rotation": 0}),
        result("ellipselabels", {"x": 50, "y": 50, "radiusX": 9, "radiusY": 9, "rotation": 30}),
        result("brushlabels", {"format": "rle", "rle": packed}),
    ]
    tasks = [
        {"id": 7, "data": {"image": "/data/upload/1/0a1b2c3d-one.png"}, "annotations": [{"result": results}]}
    ]
    write_json(root / "project-1.json", tasks)


def cvat(root: Path) -> None:
    for name in ("one.png", "two.png"):
        image(root / f"images/{name}")
    (root / "annotations.xml").write_text(
        f"""<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><job><labels>
<label><name>dog</name></label><label><name>cat</name></label>
</labels></job></meta>
<image id="0" name="one.png" width="{WIDTH}" height="{HEIGHT}">
<polygon label="cat" points="2,3;10,3;10,11" z_order="0"/>
<mask label="dog" rle="0,8,56" left="2" top="3" width="8" height="8"/>
<box label="dog" xtl="2" ytl="3" xbr="10" ybr="11"/>
<ellipse label="dog" cx="15" cy="11" rx="4" ry="4"/>
</image>
<image id="1" name="two.png" width="{WIDTH}" height="{HEIGHT}"/>
</annotations>"""
    )


def voc(root: Path) -> None:
    for stem in "ab":
        image(root / f"JPEGImages/{stem}.jpg")
        for folder, values in (("SegmentationClass", (0, 8, 255)), ("SegmentationObject", (0, 1, 255))):
            labels(root / folder / f"{stem}.png", values)
        (root / "Annotations").mkdir(exist_ok=True)
        (root / f"Annotations/{stem}.xml").write_text(
            f"""<annotation><filename>{stem}.jpg</filename>
<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>
<object><name>dog</name><difficult>0</difficult>
<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>10</xmax><ymax>11</ymax></bndbox></object></annotation>"""
        )
    for kind in ("Segmentation", "Main"):
        lists = root / "ImageSets" / kind
        lists.mkdir(parents=True)
        (lists / "train.txt").write_text("a\n")
        (lists / "val.txt").write_text("b\n")


def pictures(root: Path) -> None:
    for suffix in ("png", "jpg", "tif", "gif", "bmp", "webp"):
        image(root / f"rgb.{suffix}")
    for mode in ("L", "1", "P", "RGBA"):
        image(root / f"{mode}.png", mode)
    Image.fromarray(np.arange(700, dtype=np.uint16).reshape(20, 35) * 90).save(root / "deep.png")


def pickles(root: Path) -> None:
    root.mkdir(exist_ok=True)
    arrays = {f"layer.{n}.weight": np.ones((3, n + 1), np.float32) for n in range(4)}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (root / f"weights{protocol}.pkl").write_bytes(pickle.dumps({"model": arrays}, protocol))
    torch.save(
        {"model": {key: torch.from_numpy(value) for key, value in arrays.items()}}, root / "weights.pth"
    )


def model_folder(root: Path) -> None:
    source = Path(sys.modules["unimask"].__file__ or "").parent / "assets" / "nuclei"
    root.mkdir(exist_ok=True)
    shutil.copy(source / "config.json", root)
    shutil.copy(source / "model.safetensors", root)


# --- reading everything -----------------------------------------------------------------------------------


def read_data(root: Path, chance: random.Random) -> None:
    task = chance.choice(("instance", "semantic", "panoptic", "detection"))
    split = chance.choice(("train", "all", "val"))
    dataset = open_dataset(root, split, task)  # type: ignore[arg-type]
    for index in range(min(len(dataset), 5)):
        dataset[index]


def read_pictures(root: Path, chance: random.Random) -> None:
    for path in sorted(root.iterdir()):
        read_image(path)


def read_pickles(root: Path, chance: random.Random) -> None:
    for path in sorted(root.iterdir()):
        read_foreign_tensors(path)


def read_model(root: Path, chance: random.Random) -> None:
    load_model(root)


Make = Callable[[Path], None]
Read = Callable[[Path, random.Random], None]
INPUTS: dict[str, tuple[Make, Read]] = {
    **{
        make.__name__: (make, read_data)
        for make in (coco, panoptic, folders, yolo, labelme, label_studio, cvat, voc)
    },
    "pictures": (pictures, read_pictures),
    "pickles": (pickles, read_pickles),
    "model_folder": (model_folder, read_model),
}


# --- hurting a file ---------------------------------------------------------------------------------------


SCALARS: tuple[object, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**40, 4_000_000_000, 50_000),
    *(0.5, -0.0, 1e300, float("nan"), float("inf")),
    *("", "0", "no", "1" * 5000, "a" * 300, "../../etc/passwd", "/etc/passwd", "a\x00b", "2020-01-01"),
    *("\x1b[31mred", "\u202eabc", "\ud800"),
)
LONG: tuple[object, ...] = (
    [1e300] * 8,
    [float("nan")] * 6,
    list(range(3000)),
    {"size": [50_000, 50_000], "counts": [2_500_000_000]},
)


def value(chance: random.Random) -> object:
    """Something that a file can say where something else is due."""
    deep: object = []
    for _ in range(chance.choice((2, 900))):
        deep = [deep]
    return chance.choice((*SCALARS, [], {}, [None], [[]], ["a", 1], {"a": {}}, deep, *LONG))


def hurt_json(path: Path, chance: random.Random) -> None:
    content = json.loads(path.read_text())
    places: list[tuple[object, object]] = []

    def walk(node: object) -> None:
        for key, below in (
            node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        ):
            places.append((node, key))
            walk(below)

    walk(content)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        node, key = chance.choice(places)
        what = chance.random()
        if isinstance(node, dict) and key in node:
            if what < 0.2:
                del node[key]
            elif what < 0.3:
                node["extra"] = value(chance)
            else:
                node[key] = value(chance)
        elif isinstance(node, list) and isinstance(key, int) and key < len(node):
            if what < 0.15:
                del node[key]
            elif what < 0.3:
                node.append(node[key])
            else:
                node[key] = value(chance)
    path.write_bytes(json.dumps(content).encode("utf-8", "surrogatepass"))


def hurt_text(path: Path, chance: random.Random) -> None:
    text = path.read_text()
    words = re.findall(r"[\w./-]+", text) or ["x"]
    word = chance.choice(words)
    said = value(chance)
    new = chance.choice(
        (
            str(said) if not isinstance(said, list) else "[" * 500,
            "&a [*a, *a]",
            "!!python/object/apply:os.system [ls]",
            "2020-01-01",
            "\ufeff",
            "0x" + "f" * 5000,
            "4000000000",
            "&x;",
            "<!DOCTYPE a [<!ENTITY x 'y'>]>",
            "a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: &d [*c,*c]\n",
        )
    )
    at = text.find(word)
    text = text[:at] + new + text[at + len(word) :]
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


def hurt_bytes(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    kind = chance.random()
    if kind < 0.3:
        content = content[: chance.randrange(len(content) + 1)]
    elif kind < 0.5:
        at = chance.randrange(len(content) + 1)
        content[at:at] = chance.randbytes(chance.choice((1, 4, 64)))
    else:
        for _ in range(chance.choice((1, 2, 8, 64))):
            if content:
                content[chance.randrange(min(len(content), chance.choice((60, 10**9))))] = chance.randrange(
                    256
                )
    path.write_bytes(content)


def hurt_header(path: Path, chance: random.Random) -> None:
    """A PNG with another size, depth or kind of colour in its head, with a right checksum."""
    content = bytearray(path.read_bytes())
    if content[:4] != b"\x89PNG":
        hurt_bytes(path, chance)
        return
    at = chance.choice((16, 20))
    content[at : at + 4] = struct.pack(">I", chance.choice((0, 1, 22, 24, 4000, 50_000, 2**31 - 1)))
    if chance.random() < 0.3:
        content[24] = chance.choice((1, 2, 4, 8, 16, 3))
        content[25] = chance.choice((0, 2, 3, 4, 6, 9))
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    path.write_bytes(content)


def hurt_kind(path: Path, chance: random.Random) -> None:
    """Another kind of thing in the file's place."""
    path.unlink()
    kind = chance.choice(("directory", "fifo", "dangling", "loop", "missing", "empty", "unreadable", "other"))
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "dangling":
        path.symlink_to("/nowhere/at/all")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "empty":
        path.touch()
    elif kind == "unreadable":
        path.symlink_to("/dev/zero")
    elif kind == "other":
        path.write_bytes(io.BytesIO(b"GIF89a" + chance.randbytes(300)).getvalue())


def hurt_name(path: Path, chance: random.Random) -> None:
    """The file under another name, or a second one beside it."""
    target = path.with_name(
        chance.choice(
            (path.name.upper(), path.stem, f"{path.stem}.jfif", "é.png", "a" * 200 + path.suffix, ".hidden")
        )
    )
    if chance.random() < 0.5 or target.exists():
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    else:
        path.rename(target)


def hurt(root: Path, chance: random.Random) -> str:
    """Hurt one file of a sound input; return what was done."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    wordy = [path for path in files if path.suffix in (".json", ".xml", ".yaml", ".txt")]
    path = chance.choice(wordy if wordy and chance.random() < 0.7 else files)
    ways: list[Callable[[Path, random.Random], None]] = [hurt_bytes, hurt_kind, hurt_name]
    if path.suffix == ".json":
        ways += [hurt_json] * 9
    elif path in wordy:
        ways += [hurt_text] * 6
    elif path.suffix == ".png":
        ways += [hurt_header] * 3
    way = chance.choice(ways)
    way(path, chance)
    return f"{way.__name__} {path.relative_to(root)}"


# --- cases, in processes apart ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    number: int
    kind: str  # read, refused, unprintable, traceback, hang, memory, died
    about: str


def campaign(cases: Sequence[int], seed: int) -> list[Outcome]:
    """Run the cases one after the other, a few in each process; number and seed say all about a case."""
    torch.set_num_threads(1)
    left, outcomes = list(cases), list[Outcome]()
    while left:
        done = _run_apart(left[:TOGETHER], seed)
        outcomes += done
        left = left[len(done) :]
    return outcomes


def _run_apart(cases: Sequence[int], seed: int) -> list[Outcome]:
    """The outcomes of the cases up to the first that ends or holds up the process."""
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiving)
        _answer(cases, seed, sending)
    os.close(sending)
    outcomes = []
    with os.fdopen(receiving, encoding="utf-8", errors="replace") as lines:
        for number in cases:
            ready, _, _ = select.select([lines], [], [], SECONDS)
            line = lines.readline() if ready else ""
            if not line:
                kind, about = ("died", "") if ready else ("hang", f"more than {SECONDS} s")
                outcomes.append(Outcome(number, kind, about))
                break
            outcomes.append(Outcome(number, *json.loads(line)))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return outcomes


def _answer(cases: Sequence[int], seed: int, sending: int) -> None:
    """In the child: a line for each case, and an end without any of the parent's clean-up."""
    try:
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + 2 * MEGABYTES * 2**20,) * 2)
        for number in cases:
            kind, about = _run_case(number, seed)
            os.write(sending, (json.dumps([kind, about[:3000]]) + "\n").encode())
        signal.pause()  # until the parent has read everything
    finally:
        os._exit(0)


def _run_case(number: int, seed: int) -> tuple[str, str]:
    """Make, hurt and read one input."""
    chance = random.Random(f"{seed}:{number}")
    name = chance.choice(sorted(INPUTS))
    make, read = INPUTS[name]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "input"
        root.mkdir()
        make(root)
        done = hurt(root, chance)
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            read(root, chance)
            kind, about = "read", ""
        except UnimaskError as error:
            kind, about = "refused", str(error)
            echoed = about.replace(LAYOUTS, "")  # a table of ours, which no file can make longer
            if len(echoed) > 1500 or any(ord(letter) < 32 and letter != "\n" for letter in about):
                kind = "unprintable"
        except MemoryError:
            kind, about = "memory", traceback.format_exc(limit=-3)
        except Exception:
            kind, about = "traceback", traceback.format_exc(limit=-4)
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used) / 1024
    if more > MEGABYTES:
        kind, about = "memory", f"{more:.0f} MB more; {about}"
    return kind, f"{name}, {done}: {about}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=20, help="how many bad outcomes are printed")
    said = parser.parse_args()
    outcomes = campaign(range(said.first, said.first + said.cases), said.seed)
    bad = [outcome for outcome in outcomes if outcome.kind not in GOOD]
    for outcome in bad[: said.show]:
        print(f"--- case {outcome.number}, seed {said.seed}: {outcome.kind}\n{outcome.about}\n")
    print(dict(Counter(outcome.kind for outcome in outcomes)))
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
