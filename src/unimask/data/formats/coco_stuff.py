"""COCO-Stuff: `stuffthingmaps/` as it is unzipped beside COCO's pictures."""

from functools import partial
from pathlib import Path

from unimask.config.images import Task
from unimask.data.category_tables import load_categories
from unimask.data.formats.folders import CLASSES_FILE, pair_up
from unimask.data.numbered import NumberedPictures, NumberScheme
from unimask.data.read import read_labels
from unimask.data.sources import Listed, Source, refused

MAPS = "stuffthingmaps"


def coco_stuff_sets(path: Path, task: Task) -> dict[str, Source]:
    """The semantic sets of COCO-Stuff by split; empty where there are none, and for other tasks.

    The path is `stuffthingmaps`, or the folder it lies in, if that has no panoptic JSON of COCO.
    """
    named = path.name == MAPS and path.is_dir()
    root = path.parent if named else path
    words = {split: f"{split}2017" for split in ("train", "val") if (root / MAPS / f"{split}2017").is_dir()}
    if not words or (root / CLASSES_FILE).exists():
        return {}
    if not named and (task != "semantic" or any((root / "annotations").glob("panoptic_*.json"))):
        return {}
    if task != "semantic":
        reason = f"serves the task 'semantic' only; for {task!r} name the folder with annotations/"
        return {split: refused(root / MAPS, reason) for split in words}
    return {
        split: Source(path=root / MAPS / word, open=partial(open_coco_stuff, root, word))
        for split, word in words.items()
    }


def open_coco_stuff(root: Path, word: str) -> Listed:
    """The 171 categories of COCO-Stuff; label pictures hold the id less 1, and 255 is void.

    Source: `labels.txt` and the description of stuffthingmaps in github.com/nightrome/cocostuff.

    Raises:
        DataError: pictures or labels are missing.
    """
    places = [root / "images" / word, root / word]
    pictures = next((place for place in places if place.is_dir()), places[-1])
    categories = load_categories("coco_stuff")
    scheme = NumberScheme(
        categories=categories,
        classes=tuple(number - 1 for number in categories.file_ids),
        ignored=(255,),
        plain=0,
        divisor=1,
        way_out="copy it again from the data set",
    )
    return NumberedPictures(pair_up(pictures, root / MAPS / word), scheme, read_labels)
