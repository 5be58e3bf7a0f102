"""Published data sets whose folders are recognised as their owners give them out."""

from pathlib import Path

from unimask.config.images import Task
from unimask.data.formats.ade20k import ade20k_sets
from unimask.data.formats.cityscapes import cityscapes_sets
from unimask.data.formats.coco_stuff import coco_stuff_sets
from unimask.data.formats.vistas import vistas_sets
from unimask.data.sources import Source

_SETS = (cityscapes_sets, ade20k_sets, vistas_sets, coco_stuff_sets)


def published_sets(path: Path, task: Task) -> dict[str, Source]:
    """The sets by split, with the annotations that fit the task; empty where the path is no such data set."""
    return next((sets for find in _SETS if (sets := find(path, task))), {})
