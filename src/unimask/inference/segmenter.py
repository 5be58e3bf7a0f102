"""The public face: load a model, hand it pictures, get results."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar, overload

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from unimask.checkpoints.images import ModelFile, load_model, resolve_weights
from unimask.checkpoints.onnx import is_exported, load_exported
from unimask.config.images import DataConfig, PostprocessConfig, Task, Tiles, Whole, check_task, tasks_of
from unimask.data.loader import batch_images, placement_for
from unimask.data.read import Picture, read_image
from unimask.errors import ConfigError
from unimask.inference.stitching import stitch
from unimask.inference.tiles import Tile, grid, whole
from unimask.inference.tta import DUPLICATE_IOU, PLAIN, Variant, change, combine, variants_of
from unimask.inference.tta import place as place_variant
from unimask.models.build import Model
from unimask.models.optimize import prepare_for_inference
from unimask.postprocess.boxes import read_boxes, read_panoptic
from unimask.postprocess.masks import read
from unimask.results.boxes import BoxResult
from unimask.results.segments import Result
from unimask.structures import (
    BoxMaskPrediction,
    Categories,
    Detections,
    ImageBatch,
    MaskPrediction,
    Placement,
    Prediction,
    Segments,
    Size,
)

SegmentTask = Literal["panoptic", "instance", "semantic"]
Postprocessed = TypeVar("Postprocessed")
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
_AUTOCAST = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def load(name_or_folder: str | Path, device: str = "auto", precision: str = "32-true") -> "Segmenter":
    """A segmenter from a model that ships with the package (`nuclei`), a model folder or an ONNX file.

    `device` is `auto` (a CUDA device if there is one, else Apple's `mps`, else the CPU) or one that torch
    knows. `precision` is `32-true`, `bf16-mixed` or `16-mixed`; masks are read in float32 in any case. An
    ONNX file runs with onnxruntime, in the numbers that it holds.

    Raises:
        WeightsError: there is no such model, or its files are broken or do not fit each other.
        ConfigError: its `config.json` holds an impossible setting, or the device or precision does not exist.
    """
    if is_exported(name_or_folder):
        if precision != "32-true":
            raise ConfigError(
                "precision", f"is {precision!r}; an exported model has the one it was made with"
            )
        network, model_file = load_exported(Path(name_or_folder).expanduser(), device)
        return Segmenter(network, model_file)
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
        model: nn.Module,
        model_file: ModelFile,
        device: torch.device | str = "cpu",
        precision: str = "32-true",
        variants: Sequence[Variant] = (PLAIN,),
    ) -> None:
        """Put `model` on `device`, ready to predict: of a model of ours a copy (`models/optimize.py`).

        An exported model (`exported.ExportedNetwork`) is taken as it is.

        Raises:
            ConfigError: the precision does not exist.
        """
        if precision not in _AUTOCAST:
            raise ConfigError("precision", f"{precision!r} does not exist; there are: {', '.join(_AUTOCAST)}")
        self.device = torch.device(device)
        self.precision = precision
        dtype = _AUTOCAST[precision]
        ours = isinstance(model, Model)
        self.model = (
            prepare_for_inference(model, dtype, self.device) if ours else model.eval().to(self.device)
        )
        self.model_file = model_file
        self.variants = tuple(variants)

    def seeing(self, view: Whole | Tiles) -> "Segmenter":
        """The same model with another view of pictures: whole, or in tiles whose segments are joined.

        Raises:
            ConfigError: tiles have no size, or overlap as much as they are long.
        """
        if isinstance(view, Tiles) and not 0 <= view.overlap < view.size:
            raise ConfigError(
                "tile", f"{view.size} with an overlap of {view.overlap}; it must be below the size"
            )
        experiment = self.model_file.experiment
        experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, view=view))
        other = copy.copy(self)
        other.model_file = dataclasses.replace(self.model_file, experiment=experiment)
        return other

    def augmented(self, names: Sequence[str]) -> "Segmenter":
        """The same model with test-time augmentation: `flip`, `scales` or both; it takes 2, 3 or 6 passes.

        Raises:
            ConfigError: there is no such augmentation, or the model is one of boxes.
        """
        if self.model_file.experiment.model.kind != "masks":
            raise ConfigError("tta", "is for models of masks, and this one finds boxes")
        other = copy.copy(self)
        other.variants = variants_of(names)
        return other

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
        self,
        picture: Picture,
        task: SegmentTask = ...,
        *,
        threshold: float | None = ...,
        batch_size: int = ...,
    ) -> Result: ...

    @overload
    def predict(  # type: ignore[overload-overlap]
        self, picture: Picture, task: Task, *, threshold: float | None = ..., batch_size: int = ...
    ) -> Result | BoxResult: ...

    @overload
    def predict(
        self,
        picture: Sequence[Picture],
        task: SegmentTask = ...,
        *,
        threshold: float | None = ...,
        batch_size: int = ...,
    ) -> list[Result]: ...

    @overload
    def predict(
        self,
        picture: Sequence[Picture],
        task: Task,
        *,
        threshold: float | None = ...,
        batch_size: int = ...,
    ) -> list[Result] | list[BoxResult]: ...

    def predict(
        self,
        picture: Picture | Sequence[Picture],
        task: Task = "panoptic",
        *,
        threshold: float | None = None,
        batch_size: int = 8,
    ) -> Result | BoxResult | list[Result] | list[BoxResult]:
        """What is in a picture, or for a list or tuple of pictures a list of what is in each.

        A picture is a path, a PIL image, an array (H,W[,C]) or a tensor ([C,]H,W) of 8-bit values. Pictures
        with the same canvas share a batch of up to `batch_size`; the results are those of each picture alone.
        `threshold` replaces the model's own lowest score: of a query in panoptic segmentation, of an instance
        in instance segmentation, of a box in detection. Semantic segmentation has none.

        Raises:
            DataError: a picture cannot be read.
            ConfigError: the model does not have the task, or the threshold is not from 0 to 1.
        """
        several = isinstance(picture, list | tuple)
        pictures: list[Picture] = list(picture) if several else [picture]  # type: ignore[arg-type, list-item]
        self._check_task(task)
        images = [read_image(one) for one in pictures]
        names = [
            Path(one).stem if isinstance(one, str | Path) else f"picture_{index}"
            for index, one in enumerate(pictures)
        ]
        results = self.predict_images(images, names, task, threshold=threshold, batch_size=batch_size)
        return results if several else results[0]

    def predict_images(
        self,
        images: Sequence[UInt8[Tensor, "3 _height _width"]],
        names: Sequence[str],
        task: Task,
        *,
        threshold: float | None = None,
        batch_size: int = 8,
    ) -> list[Result] | list[BoxResult]:
        """As `predict`, of pictures that are read already.

        Raises:
            ConfigError: the model does not have the task, or the threshold is not from 0 to 1.
        """
        if task == "detection":
            boxes = self.detect(images, threshold=threshold, batch_size=batch_size)
            return [
                BoxResult(name=name, image=image, prediction=one, categories=self.categories)
                for name, image, one in zip(names, images, boxes, strict=True)
            ]
        segments = self.segment(images, task, threshold=threshold, batch_size=batch_size)
        return [
            Result(task=task, name=name, image=image, prediction=one, categories=self.categories)
            for name, image, one in zip(names, images, segments, strict=True)
        ]

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
            ConfigError: the model does not have the task, or the threshold is not from 0 to 1.
        """
        self._check_task(task)
        if task == "detection":
            raise ConfigError("task", "detection finds boxes, not segments")
        postprocess = _with_threshold(self.model_file.experiment.postprocess, task, threshold)
        if len(self.variants) > 1:
            duplicate_iou = min(postprocess.duplicate_iou, DUPLICATE_IOU)
            postprocess = dataclasses.replace(postprocess, duplicate_iou=duplicate_iou)
        config = self.model_file.experiment.data
        views = [(index, tile) for index, image in enumerate(images) for tile in tiles_of(image, config)]
        seen = [images[index][:, *tile.window] for index, tile in views]

        def read_one(prediction: Prediction, position: int, placement: Placement) -> Segments:
            return read_segments(prediction, position, placement, self.categories, postprocess, task)

        parts: list[list[tuple[Tile, Segments]]] = [[] for _ in images]
        for (index, tile), found in zip(views, self.read_each(seen, read_one, batch_size), strict=True):
            parts[index].append((tile, found.cpu()))
        unites = categories_united(self.categories, task)
        return [
            stitch(tiles, (image.shape[1], image.shape[2]), unites, overlapping=task == "instance")
            for image, tiles in zip(images, parts, strict=True)
        ]

    def detect(
        self,
        images: Sequence[UInt8[Tensor, "3 _height _width"]],
        *,
        threshold: float | None = None,
        batch_size: int = 8,
    ) -> list[Detections]:
        """The bare boxes of pictures that are read already, in pixels, by falling score, on the CPU.

        Raises:
            ConfigError: the model predicts no boxes, or sees pictures in tiles, or the threshold is not from
                0 to 1.
        """
        self._check_task("detection")
        postprocess = _with_threshold(self.model_file.experiment.postprocess, "detection", threshold)
        if isinstance(self.model_file.experiment.data.view, Tiles):
            raise ConfigError(
                "data.view", "boxes of tiles are not joined; take {'kind': 'whole'} for detection"
            )

        def read_one(prediction: Prediction, position: int, placement: Placement) -> Detections:
            assert not isinstance(prediction, MaskPrediction)
            return read_boxes(prediction, position, placement, postprocess.instance_threshold)

        found = self.read_each(images, read_one, batch_size)
        return [one.cpu() for one in found]

    def _check_task(self, task: str) -> None:
        check_task(task)
        known = tasks_of(self.model_file.experiment.model)
        if task not in known:
            raise ConfigError("task", f"this model does not know {task!r}; it knows: {', '.join(known)}")

    def read_each(
        self,
        images: Sequence[UInt8[Tensor, "3 _height _width"]],
        read_one: Callable[[Prediction, int, Placement], Postprocessed],
        batch_size: int,
    ) -> list[Postprocessed]:
        """What `read_one` makes of the prediction about each picture; those of one canvas go together."""
        config = self.model_file.experiment.data
        placements = [placement_for((image.shape[1], image.shape[2]), config) for image in images]
        # versions of another scale fit one canvas only if the plain ones have one size
        sizes = [one.canvas if self.variants == (PLAIN,) else one.resized for one in placements]
        found: dict[int, Postprocessed] = {}
        for members in _batches(sizes, batch_size):
            prediction = self._predict_variants(
                [images[member] for member in members], [placements[member] for member in members]
            )
            for position, member in enumerate(members):
                found[member] = read_one(prediction, position, placements[member])
        return [found[index] for index in range(len(images))]

    @torch.inference_mode()
    def _predict_variants(
        self, images: Sequence[UInt8[Tensor, "3 _height _width"]], placements: Sequence[Placement]
    ) -> Prediction:
        """One prediction from all versions of the pictures."""
        if self.variants == (PLAIN,):
            return self.predict_placed(self.place(images, placements))
        divisor = self.model_file.experiment.data.divisor
        rows = [[place_variant(one, variant, divisor) for one in placements] for variant in self.variants]
        predictions = []
        for variant, row in zip(self.variants, rows, strict=True):
            changed = [change(image, variant) for image in images]
            prediction = self.predict_placed(self.place(changed, row))
            assert isinstance(prediction, MaskPrediction)  # `augmented` takes no other model
            predictions.append(prediction)
        return combine(predictions, rows, self.variants)

    def place(
        self, images: Sequence[UInt8[Tensor, "3 _height _width"]], placements: Sequence[Placement]
    ) -> ImageBatch:
        """Pictures of one canvas as what the model takes: normalised, on the device."""
        backbone = self.model_file.experiment.model.backbone
        batch = batch_images(images, placements, backbone.image_mean, backbone.image_std)
        return dataclasses.replace(
            batch,
            pixels=batch.pixels.to(self.device, memory_format=torch.channels_last),
            valid=batch.valid.to(self.device),
        )

    @torch.inference_mode()
    def predict_placed(self, images: ImageBatch) -> Prediction:
        """What the model says about placed pictures, in the segmenter's precision."""
        with self.autocast():
            prediction: Prediction = self.model(images.pixels, images.valid)
        return prediction

    def autocast(self) -> torch.autocast:
        """The context in which `model` is to be called: its weights may have the type of the precision."""
        dtype = _AUTOCAST[self.precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)


def read_segments(
    prediction: Prediction,
    position: int,
    placement: Placement,
    categories: Categories,
    postprocess: PostprocessConfig,
    task: Task,
) -> Segments:
    """The segments of one picture of a batch, of a prediction that has masks."""
    if isinstance(prediction, BoxMaskPrediction):
        if task == "panoptic":
            return read_panoptic(prediction, position, placement, categories, postprocess)
        prediction = prediction.of_masks()
    assert isinstance(prediction, MaskPrediction)
    return read(prediction, position, placement, categories, postprocess, task)


def tiles_of(image: Tensor, config: DataConfig) -> list[Tile]:
    """The views of a picture."""
    size = (image.shape[1], image.shape[2])
    if isinstance(config.view, Tiles):
        return grid(size, config.view.size, config.view.overlap)
    return whole(size)


def categories_united(categories: Categories, task: Task) -> Tensor:
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


def _batches(sizes: Sequence[Size], batch_size: int) -> Iterator[list[int]]:
    """Which pictures go together: those of one size, at most `batch_size` of them."""
    groups: dict[Size, list[int]] = {}
    for index, size in enumerate(sizes):
        groups.setdefault(size, []).append(index)
    for members in groups.values():
        for start in range(0, len(members), max(1, batch_size)):
            yield members[start : start + max(1, batch_size)]
