"""The public face: load a model, hand it pictures, get results."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, overload

import torch
from jaxtyping import UInt8
from torch import Tensor

from unimask.checkpoint import ModelFile, load_model, resolve_weights
from unimask.config import TASKS, DataConfig, PostprocessConfig, Task, Tiles
from unimask.data.loader import batch_images, placement_for
from unimask.data.read import Picture, read_image
from unimask.errors import ConfigError
from unimask.models.mask_classifier import MaskClassifier
from unimask.postprocess import read
from unimask.results import Result
from unimask.structures import Categories, MaskPrediction, Placement, Segments, Size
from unimask.tiles import Tile, grid, stitch, whole

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
_AUTOCAST = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def load(name_or_folder: str | Path, device: str = "auto", precision: str = "32-true") -> "Segmenter":
    """A segmenter from a model that ships with the package (`nuclei`) or from a model folder.

    `device` is `auto` (a CUDA device if there is one, else Apple's `mps`, else the CPU) or one that torch
    knows. `precision` is `32-true`, `bf16-mixed` or `16-mixed`; masks are read in float32 in any case.

    Raises:
        WeightsError: there is no such model, or its files are broken or do not fit each other.
        ConfigError: its `config.json` holds an impossible setting, or the device or precision does not exist.
    """
    chosen = find_device(device)
    model, model_file = load_model(resolve_weights(name_or_folder), chosen)
    return Segmenter(model, model_file, chosen, precision)


def find_device(name: str) -> torch.device:
    """The torch device of a name; `auto` is CUDA, else mps, else the CPU.

    Raises:
        ConfigError: torch does not know the device, or this machine does not have it.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError("device", f"{name!r} cannot be used ({reason}); try auto or cpu") from None
    return device


class Segmenter:
    """A model that is ready to segment pictures."""

    def __init__(
        self,
        model: MaskClassifier,
        model_file: ModelFile,
        device: torch.device | str = "cpu",
        precision: str = "32-true",
    ) -> None:
        """Put `model` on `device` in eval mode.

        Raises:
            ConfigError: the precision does not exist.
        """
        if precision not in _AUTOCAST:
            raise ConfigError("precision", f"{precision!r} does not exist; there are: {', '.join(_AUTOCAST)}")
        self.device = torch.device(device)
        self.precision = precision
        self.model = model.to(self.device).eval()
        self.model_file = model_file

    @property
    def categories(self) -> Categories:
        """What the model tells apart."""
        return self.model_file.categories

    @property
    def instance_threshold(self) -> float:
        """The score from which on `predict` lists an instance, unless it is told another."""
        return self.model_file.experiment.postprocess.instance_threshold

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is a sequence of str, but it means one path
        self, picture: Picture, task: Task = ..., *, threshold: float | None = ..., batch_size: int = ...
    ) -> Result: ...

    @overload
    def predict(
        self,
        picture: Sequence[Picture],
        task: Task = ...,
        *,
        threshold: float | None = ...,
        batch_size: int = ...,
    ) -> list[Result]: ...

    def predict(
        self,
        picture: Picture | Sequence[Picture],
        task: Task = "panoptic",
        *,
        threshold: float | None = None,
        batch_size: int = 8,
    ) -> Result | list[Result]:
        """What is in a picture, or for a list or tuple of pictures a list of what is in each.

        A picture is a path, a PIL image, an array (H,W[,C]) or a tensor ([C,]H,W) of 8-bit values. Pictures
        with the same canvas share a batch of up to `batch_size`; the results are those of each picture alone.
        `threshold` replaces the model's own lowest score: of a query in panoptic segmentation, of an instance
        in instance segmentation. Semantic segmentation has none.

        Raises:
            DataError: a picture cannot be read.
            ConfigError: the task does not exist or is not the model's, or the threshold is not from 0 to 1.
        """
        several = isinstance(picture, list | tuple)
        pictures: list[Picture] = list(picture) if several else [picture]  # type: ignore[arg-type, list-item]
        check_task(task)
        images = [read_image(one) for one in pictures]
        found = self.segment(images, task, threshold=threshold, batch_size=batch_size)
        results = [
            Result(
                task=task,
                name=Path(one).stem if isinstance(one, str | Path) else f"picture_{index}",
                image=image,
                prediction=segments,
                categories=self.categories,
            )
            for index, (one, image, segments) in enumerate(zip(pictures, images, found, strict=True))
        ]
        return results if several else results[0]

    def segment(
        self,
        images: Sequence[UInt8[Tensor, "3 _height _width"]],
        task: Task,
        *,
        threshold: float | None = None,
        batch_size: int = 8,
    ) -> list[Segments]:
        """The bare segments of pictures that are read already, each at its picture's size, on the CPU.

        Otherwise as `predict`; evaluation uses this.

        Raises:
            ConfigError: the task does not exist, or the threshold is not from 0 to 1.
        """
        check_task(task)
        check_classification(self.model_file.experiment.model.classification, task)
        postprocess = _with_threshold(self.model_file.experiment.postprocess, task, threshold)
        config = self.model_file.experiment.data
        views = [(index, tile) for index, image in enumerate(images) for tile in _tiles(image, config)]
        placements = [placement_for(tile.size, config) for _, tile in views]
        found: dict[int, Segments] = {}
        for members in _batches(placements, batch_size):
            seen = [images[views[member][0]][:, *views[member][1].window] for member in members]
            prediction = self._predict_batch(seen, [placements[member] for member in members])
            for position, member in enumerate(members):
                segments = read(prediction, position, placements[member], self.categories, postprocess, task)
                found[member] = _to_cpu(segments)
        parts: list[list[tuple[Tile, Segments]]] = [[] for _ in images]
        for member, (index, tile) in enumerate(views):
            parts[index].append((tile, found[member]))
        unites = _unites(self.categories, task)
        return [
            stitch(tiles, (image.shape[1], image.shape[2]), unites)
            for image, tiles in zip(images, parts, strict=True)
        ]

    @torch.inference_mode()
    def _predict_batch(
        self, images: Sequence[UInt8[Tensor, "3 _height _width"]], placements: Sequence[Placement]
    ) -> MaskPrediction:
        backbone = self.model_file.experiment.model.backbone
        batch = batch_images(images, placements, backbone.image_mean, backbone.image_std)
        dtype = _AUTOCAST[self.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            prediction: MaskPrediction = self.model(batch.pixels.to(self.device))
        return prediction


def check_task(task: str) -> None:
    """Nothing, if the task exists.

    Raises:
        ConfigError: it does not; the message lists those that do.
    """
    if task not in TASKS:
        raise ConfigError("task", f"{task!r} does not exist; there are: {', '.join(TASKS)}")


def check_classification(classification: str, task: str) -> None:
    """Nothing, if a model that classifies so can do the task.

    Raises:
        ConfigError: it classifies pixels, which tell no objects apart.
    """
    if classification == "pixels" and task != "semantic":
        raise ConfigError(
            "task", f"a model with model.classification=pixels has semantic results only, not {task}"
        )


def _tiles(image: Tensor, config: DataConfig) -> list[Tile]:
    """The views of a picture."""
    size = (image.shape[1], image.shape[2])
    if isinstance(config.view, Tiles):
        return grid(size, config.view.size, config.view.overlap)
    return whole(size)


def _unites(categories: Categories, task: Task) -> Tensor:
    """The categories of which a picture holds at most one segment, per task."""
    if task == "panoptic":
        return ~torch.tensor(categories.is_thing)
    return torch.full((len(categories),), task == "semantic")


def _with_threshold(config: PostprocessConfig, task: Task, threshold: float | None) -> PostprocessConfig:
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError("threshold", f"must be from 0 to 1; got {threshold}")
    if threshold is None or task == "semantic":
        return config
    if task == "panoptic":
        return dataclasses.replace(config, object_threshold=threshold)
    return dataclasses.replace(config, instance_threshold=threshold)


def _batches(placements: Sequence[Placement], batch_size: int) -> Iterator[list[int]]:
    """Which pictures go together: those of one canvas, at most `batch_size` of them."""
    groups: dict[Size, list[int]] = {}
    for index, placement in enumerate(placements):
        groups.setdefault(placement.canvas, []).append(index)
    for members in groups.values():
        for start in range(0, len(members), max(1, batch_size)):
            yield members[start : start + max(1, batch_size)]


def _to_cpu(segments: Segments) -> Segments:
    return Segments(
        layers=segments.layers.cpu(),
        labels=segments.labels.cpu(),
        scores=segments.scores.cpu(),
        is_crowd=segments.is_crowd.cpu(),
    )
