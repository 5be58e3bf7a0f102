"""Converted weights know the categories of their data set in the original's order, and are measured on it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data.published_files import (
    ADE_CLASSES,
    CITY_KINDS,
    CITY_TRAIN_IDS,
    rows,
    save_ade20k,
    save_ade20k_json,
    save_cityscapes,
    save_vistas,
    save_vistas_panoptic,
)
from torch import Tensor

from unimask.checkpoints.images import ModelFile
from unimask.config.data import ShortSide
from unimask.config.models import PixelDecoderConfig, QueryDecoderConfig
from unimask.config.tasks import Task
from unimask.conversion import original
from unimask.conversion.data_sets import settings_for
from unimask.conversion.run import import_original
from unimask.data.category_tables import load_categories
from unimask.data.numbered import select_numbers
from unimask.data.open import open_dataset
from unimask.data.reading import PLAIN, Reading
from unimask.errors import DataError
from unimask.inference.evaluation import evaluate
from unimask.inference.segmenter import Segmenter
from unimask.models.build import build_model
from unimask.presets.mask2former import published_model
from unimask.structures import Categories, Segments

MODEL = replace(
    published_model("resnet50"),
    pixel_decoder=PixelDecoderConfig(channels=64, mask_channels=32, layers=1, feedforward_channels=96),
    query_decoder=QueryDecoderConfig(channels=64, queries=7, layers=1, feedforward_channels=64),
)


def save_ade20k_all(root: Path) -> None:
    save_ade20k(root)
    save_ade20k_json(root, "validation", "val")


def save_vistas_all(root: Path) -> None:
    save_vistas(root, "v1.2")
    save_vistas_panoptic(root, "v1.2")


@pytest.mark.parametrize(
    ("classes", "table", "save", "tasks"),
    [
        (
            19,
            "cityscapes",
            lambda root: save_cityscapes(root, CITY_KINDS),
            ("panoptic", "instance", "semantic"),
        ),
        (8, "cityscapes_instance", lambda root: save_cityscapes(root, CITY_KINDS), ("instance",)),
        (150, "ade20k", save_ade20k_all, ("panoptic", "instance", "semantic")),
        (100, "ade20k_instance", save_ade20k_all, ("instance",)),
        (65, "mapillary_vistas", save_vistas_all, ("panoptic", "instance", "semantic")),
    ],
)
def test_converted_weights_are_measured_on_their_data_set(
    tmp_path: Path, classes: int, table: str, save: Callable[[Path], None], tasks: tuple[Task, ...]
) -> None:
    save(tmp_path)
    torch.manual_seed(classes)
    experiment = settings_for(MODEL, classes)
    written = ModelFile(
        experiment=experiment,
        task="panoptic",
        categories=load_categories("cityscapes"),
        licence="MIT",
        provenance="a test",
    )
    tensors = original.MASK2FORMER.write(build_model(MODEL, classes), written)
    model, model_file = import_original(tensors, tmp_path / "model.pth", "MIT")
    assert model_file.categories == load_categories(table)
    small = replace(experiment, data=replace(experiment.data, resize=ShortSide(size=64, longest=96)))
    segmenter = Segmenter(model, replace(model_file, experiment=small))
    for task in tasks:
        measured = evaluate(segmenter, open_dataset(tmp_path, "val", task), task)
        assert measured.images > 1
        assert set(measured.per_category) <= set(model_file.categories.names)
        assert measured.per_category


@dataclass(frozen=True)
class Known:
    """Says for every picture that class n, as the original counts them, is where a label picture has it."""

    categories: Categories
    numbers: np.ndarray  # 255: nothing
    instance_threshold: float = 0.5
    background: bool = True
    set_reading: Reading = PLAIN
    task: Task = "semantic"

    def find(
        self, images: Iterable[Tensor], task: Task, *, threshold: float | None = None, batch_size: int = 4
    ) -> Iterator[Segments]:
        present = [number for number in np.unique(self.numbers).tolist() if number != 255]
        found = select_numbers(self.numbers, present, present, [False] * len(present))
        return (found for _ in images)


def shifted(numbers: Sequence[int]) -> tuple[int, ...]:
    return tuple(number - 1 if number else 255 for number in numbers)


@pytest.mark.parametrize(
    ("table", "save", "numbers"),
    [
        ("cityscapes", lambda root: save_cityscapes(root, CITY_KINDS), CITY_TRAIN_IDS),
        ("ade20k", save_ade20k, shifted(ADE_CLASSES)),
    ],
)
def test_labels_of_the_model_are_the_originals_class_numbers(
    tmp_path: Path, table: str, save: Callable[[Path], None], numbers: tuple[int, ...]
) -> None:
    save(tmp_path)
    known = Known(load_categories(table), rows(*numbers))
    measured = evaluate(known, open_dataset(tmp_path, "val", "semantic"), "semantic")
    assert measured.values["mIoU"] == 1.0
    assert len(measured.per_category) == len({number for number in numbers if number != 255})


def test_labels_of_mapillary_vistas_count_its_configuration(tmp_path: Path) -> None:
    """The small configuration has four of the 65 names, so labels are those of the names."""
    save_vistas(tmp_path, "v1.2")
    table = load_categories("mapillary_vistas")
    places = [table.names.index(name) for name in ("Bird", "Curb", "Sky", "Car", "Car")]
    known = Known(table, rows(*places, 255))
    measured = evaluate(known, open_dataset(tmp_path, "val", "semantic"), "semantic")
    assert (measured.values["mIoU"], len(measured.per_category)) == (1.0, 4)


def test_a_category_that_the_model_lacks_is_named(tmp_path: Path) -> None:
    save_cityscapes(tmp_path, CITY_KINDS)
    known = Known(load_categories("ade20k"), rows(0))
    with pytest.raises(DataError, match="has 8 categories that the model does not know: road, sidewalk"):
        evaluate(known, open_dataset(tmp_path, "val", "semantic"), "semantic")
