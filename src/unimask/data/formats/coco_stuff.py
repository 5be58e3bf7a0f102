"""COCO-Stuff: `stuffthingmaps/` as unzipped beside COCO's images."""

from functools import partial
from pathlib import Path

from unimask.config.tasks import Task
from unimask.data.category_tables import load_categories
from unimask.data.formats.folders_pairs import pair_up
from unimask.data.formats.folders_scheme import CLASSES_FILE
from unimask.data.items import ItemDataset
from unimask.data.numbered import NumberScheme, numbered_dataset
from unimask.data.sources import Format, Source, Sources, refused

MAPS = "stuffthingmaps"


def open_coco_stuff(root: Path, word: str) -> ItemDataset:
    """Open a set with the 171 categories of COCO-Stuff; label maps hold the id less 1, and 255 is void.

    Source: `labels.txt` and the description of stuffthingmaps in github.com/nightrome/cocostuff.

    Raises:
        DataError: images or labels are missing.
    """
    places = [root / "images" / word, root / word]
    images = next((place for place in places if place.is_dir()), places[-1])
    categories = load_categories("coco_stuff")
    scheme = NumberScheme(
        categories=categories,
        classes=tuple(number - 1 for number in categories.file_ids),
        ignored=(255,),
        plain=0,
        divisor=1,
        way_out="copy it again from the data set",
    )
    return numbered_dataset(pair_up(images, root / MAPS / word), scheme)


def _find(path: Path, task: Task) -> Sources:
    """Return the sets at `stuffthingmaps`, or at the folder that holds it, without panoptic JSON of COCO."""
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


COCO_STUFF = Format(
    layouts="  stuffthingmaps/train2017/, train2017/, and val2017/ alike (COCO-Stuff)",
    find=_find,
)
