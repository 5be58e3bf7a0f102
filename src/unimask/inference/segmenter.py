"""A trained model that turns images into results."""

import copy
import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, overload

import torch
from torch import nn

from unimask.checkpoints.images import ModelFile
from unimask.config.data import AnyView, SlidingWindow, Square, Tiles
from unimask.config.images import PostprocessConfig
from unimask.config.models import EomtConfig, tasks_of
from unimask.config.overrides import override
from unimask.config.tasks import Task
from unimask.config.values import check_count
from unimask.data.read import AnyImage, Channels
from unimask.data.reading import Reading, reading_of
from unimask.errors import ConfigError, NotFiniteError, choices
from unimask.inference.given import Given, Speaker, as_given, read_given
from unimask.inference.joining import Joiner
from unimask.inference.postprocessing import Postprocessor, Tell, thresholds_for
from unimask.inference.predictions import TilePrediction
from unimask.inference.predictor import AUTOCAST, Image, Predictor
from unimask.inference.tta import PLAIN, Augmentation, augmentations_of
from unimask.models.build import Model
from unimask.models.optimize import prepare_for_inference
from unimask.results.result import Result
from unimask.structures import Categories, Detections, Segments

_log = logging.getLogger(__name__)
IN_MEMORY = "in memory"
"""The name of a segmenter that was not loaded from files."""
SegmentTask = Literal["panoptic", "instance", "semantic"]


class Segmenter:
    """A model that is ready to predict, in two stages.

    `see` runs the model on images: preprocessing, tiles, test-time augmentation and batches. `postprocess`
    turns what it predicted into segments or boxes, by thresholds. `find` is both, for a stream of images, and
    `predict` wraps what was found with its image.
    """

    def __init__(
        self,
        model: nn.Module,
        model_file: ModelFile,
        device: torch.device | str = "cpu",
        precision: str = "32-true",
        tta: Sequence[Augmentation] = (PLAIN,),
        *,
        name: str = IN_MEMORY,
        weights: str = "",
    ) -> None:
        """Put `model` on `device`, ready to predict: a prepared copy (`models/optimize.py`).

        `weights` is a digest of the file that it was loaded from, if there is one. An exported model
        (`checkpoints/onnx.py:ExportedNetwork`) is taken as it is.

        Raises:
            ConfigError: the precision does not exist.
        """
        if precision not in AUTOCAST:
            raise ConfigError("precision", f"{precision!r} does not exist; {choices(precision, AUTOCAST)}")
        self.device = torch.device(device)
        self.precision = precision
        dtype = AUTOCAST[precision]
        ours = isinstance(model, Model)
        self.model = (
            prepare_for_inference(model, dtype, self.device) if ours else model.eval().to(self.device)
        )
        self.model_file = model_file
        self.own_view = model_file.experiment.data.view  # which `with_tiles` may replace
        self.tta = tuple(tta)
        self.name = name
        self.weights = weights

    def __repr__(self) -> str:
        """Return name, kind, task, number of categories, view, device and precision."""
        kind, view = self.model_file.experiment.model.kind, self.view.kind
        return (
            f"<Segmenter {self.name}: {kind}, {self.task}, {len(self.categories)} categories, sees {view}, "
            f"{self.device}, {self.precision}>"
        )

    def with_reading(
        self,
        *,
        depth: str | int | None = None,
        page: str | int | None = None,
        channel: str | int | None = None,
        orientation: str | None = None,
    ) -> "Segmenter":
        """Return the same model with another way of reading images (`data/reading.py:Reading`).

        Raises:
            ConfigError: a value is impossible.
        """
        given = {"depth": depth, "page": page, "channel": channel, "orientation": orientation}
        asked = {f"data.{name}": value for name, value in given.items() if value is not None}
        other = copy.copy(self)
        experiment = override(self.model_file.experiment, asked)
        other.model_file = dataclasses.replace(self.model_file, experiment=experiment)
        return other

    def with_tiles(self, size: int, overlap: int) -> "Segmenter":
        """Return the same model for images in overlapping tiles, whose segments are joined.

        A model of sliding windows gets tiles at the size of its windows. A model that was trained on tiles
        keeps its own tiles, in which objects have the size that it has learned; larger ones change nothing,
        and the logger `unimask.inference.segmenter` warns of it.

        Raises:
            ConfigError: tiles have no size, overlap as much as they are long, or are smaller than the
                model's own.
        """
        check_count(size, "tile")
        check_count(overlap, "overlap", least=0)
        if overlap >= size:
            raise ConfigError("tile", f"{size} with an overlap of {overlap}; it must be below the size")
        if isinstance(self.own_view, Tiles):
            own = self.own_view
            about = f"this model was trained on tiles of {own.size} pixels that share {own.overlap}"
            if size < own.size:
                raise ConfigError("tile", f"{about}; got {size}, leave it out")
            _log.warning("%s, and keeps them: tiles of %d change nothing", about, size)
            return self
        experiment = self.model_file.experiment
        data = dataclasses.replace(experiment.data, view=Tiles(size=size, overlap=overlap))
        if isinstance(self.own_view, SlidingWindow):
            data = dataclasses.replace(data, resize=Square(size=self.own_view.size))
        other = copy.copy(self)
        other.model_file = dataclasses.replace(
            self.model_file, experiment=dataclasses.replace(experiment, data=data)
        )
        return other

    def with_tta(self, names: Sequence[str]) -> "Segmenter":
        """Return the same model with test-time augmentation: `flip`, `scales` or both, in 2, 3 or 6 passes.

        Raises:
            ConfigError: there is no such augmentation, or the model predicts boxes, or takes one size only.
        """
        model = self.model_file.experiment.model
        if "detection" in tasks_of(model):
            raise ConfigError("tta", "is for models of masks, and this one finds boxes")
        if "scales" in names and isinstance(model, EomtConfig) and model.backbone.kind == "dinov2":
            raise ConfigError("tta", f"this model takes squares of {model.backbone.size} only; take flip")
        other = copy.copy(self)
        other.tta = augmentations_of(names)
        return other

    @property
    def predictor(self) -> Predictor:
        """The first stage, step by step: preprocess images, call the model."""
        return Predictor(
            model=self.model,
            experiment=self.model_file.experiment,
            device=self.device,
            precision=self.precision,
            tta=self.tta,
        )

    @property
    def task(self) -> Task:
        """The task that the model was trained for, and the one of a prediction unless another is named."""
        return self.model_file.task

    @property
    def categories(self) -> Categories:
        """The categories that the model knows."""
        return self.model_file.categories

    @property
    def view(self) -> AnyView:
        """How the model sees an image: whole, in tiles, or in sliding windows."""
        return self.model_file.experiment.data.view

    @property
    def reading(self) -> Reading:
        """How images are read: like those of the training set."""
        return reading_of(self.model_file.experiment.data)

    @property
    def set_reading(self) -> Reading:
        """How images with labels are read: the labels decide whether images are turned, if they can."""
        reading = self.reading
        if reading.orientation == "auto":
            return reading
        return dataclasses.replace(reading, orientation="auto", undecided=reading.orientation)

    @property
    def background(self) -> bool:
        """Whether data without stuff get a category "background" for panoptic and semantic segments."""
        return self.model_file.experiment.data.background

    @property
    def instance_threshold(self) -> float:
        """The lowest score of an instance in a result of `predict`, unless another is given."""
        return self.model_file.experiment.postprocess.instance_threshold

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is a sequence of str, but it means one path
        self,
        image: AnyImage,
        task: Task | None = ...,
        *,
        threshold: float | None = ...,
        batch_size: int = ...,
        channels: Channels = ...,
    ) -> Result: ...

    @overload
    def predict(  # type: ignore[overload-overlap]  # a sequence can be iterated over, too
        self,
        image: Sequence[AnyImage],
        task: Task | None = ...,
        *,
        threshold: float | None = ...,
        batch_size: int = ...,
        channels: Channels = ...,
    ) -> list[Result]: ...

    @overload
    def predict(
        self,
        image: Iterable[AnyImage],
        task: Task | None = ...,
        *,
        threshold: float | None = ...,
        batch_size: int = ...,
        channels: Channels = ...,
    ) -> Iterator[Result]: ...

    def predict(
        self,
        image: object,
        task: Task | None = None,
        *,
        threshold: float | None = None,
        batch_size: int = 8,
        channels: Channels = "rgb",
    ) -> Result | list[Result] | Iterator[Result]:
        """Return what is in an image, or for a list or tuple of images a list of what is in each.

        `task` is that of the model (`task`) unless another is named.
        An image is a path, the bytes of a file or a stream of them, a PIL image, an array (H,W[,C]) or a
        tensor ([C,]H,W) of integers. Colours of arrays and tensors are red, green, blue; those of OpenCV are
        `channels="bgr"`. A generator, or any other iterable of images, gives an iterator of results, which
        holds a few batches in memory. What is not read of a file (other pages, other
        channels), and what was guessed about it, is a warning of the logger `unimask.inference.given`;
        `with_reading` changes it.

        `threshold` replaces the model's own lowest score: of a query in panoptic segmentation, of an instance
        in instance segmentation, of a box in detection. Semantic segmentation has none. `batch_size` is that
        of `see`; results are those of each image alone, up to rounding.

        Raises:
            DataError: an image cannot be read, or the prediction for it is not finite (`NotFiniteError`).
            ConfigError: the model does not have the task, or the threshold is not from 0 to 1.
        """
        task = task or self.task
        given = as_given(image)
        check_count(batch_size, "batch_size")
        thresholds_for(self.model_file.experiment, task, threshold)  # before anything is read
        results = self._predict_given(given, task, threshold, batch_size, channels)
        if given.form == "stream":
            return results
        found = list(results)
        return found if given.form == "list" else found[0]

    __call__ = predict

    def _predict_given(
        self, given: Given, task: Task, threshold: float | None, batch_size: int, channels: Channels
    ) -> Iterator[Result]:
        """Yield the results of images; images that wait for theirs are kept."""
        waiting: dict[int, tuple[str, Image]] = {}
        speaker = Speaker()

        def pixels() -> Iterator[Image]:
            for number, (name, one) in enumerate(read_given(given, self.reading, channels, speaker)):
                waiting[number] = (name, one.pixels)
                yield one.pixels

        def tell(number: int, sentence: str) -> None:
            speaker(waiting[number][0], sentence)

        try:
            found = self.find(pixels(), task, threshold=threshold, batch_size=batch_size, tell=tell)
            for number, one in enumerate(found):
                yield self.result(*waiting.pop(number), one, task)
        except NotFiniteError as error:
            raise error.of(waiting[error.image][0]) from None

    def result(self, name: str, image: Image, found: Segments | Detections, task: Task) -> Result:
        """Return what was found in an image together with the image."""
        return Result(task=task, name=name, image=image, prediction=found, categories=self.categories)

    @overload
    def find(
        self,
        images: Iterable[Image],
        task: SegmentTask,
        *,
        threshold: float | None = ...,
        batch_size: int = ...,
        tell: Tell = ...,
    ) -> Iterator[Segments]: ...

    @overload
    def find(
        self,
        images: Iterable[Image],
        task: Literal["detection"],
        *,
        threshold: float | None = ...,
        batch_size: int = ...,
        tell: Tell = ...,
    ) -> Iterator[Detections]: ...

    @overload
    def find(
        self,
        images: Iterable[Image],
        task: Task,
        *,
        threshold: float | None = ...,
        batch_size: int = ...,
        tell: Tell = ...,
    ) -> Iterator[Segments | Detections]: ...

    def find(
        self,
        images: Iterable[Image],
        task: Task,
        *,
        threshold: float | None = None,
        batch_size: int = 8,
        tell: Tell = lambda image, sentence: None,
    ) -> Iterator[Segments] | Iterator[Detections] | Iterator[Segments | Detections]:
        """Yield the segments or boxes of each image, in the order of the images, on the CPU.

        Images are taken from the iterable as they are needed, a few batches ahead of what is yielded.
        Segments have the size of the image; boxes are in its pixels, by falling score. `tell` is called with
        the index of an image and a sentence where so much is found that more may be missing. Otherwise as
        `predict`.

        Raises:
            ConfigError: the model does not have the task, or sees parts of an image that cannot be joined for
                it, or the threshold is not from 0 to 1.
            NotFiniteError: the prediction for an image holds NaN or infinity.
        """
        check_count(batch_size, "batch_size")
        thresholds = thresholds_for(self.model_file.experiment, task, threshold)
        return self._find(images, task, thresholds, batch_size, tell)

    def _find(
        self, images: Iterable[Image], task: Task, thresholds: PostprocessConfig, batch_size: int, tell: Tell
    ) -> Iterator[Segments | Detections]:
        postprocessor = self._postprocessor(task, thresholds, tell)
        joiners: dict[int, Joiner] = {}
        done: dict[int, Segments | Detections] = {}
        following = 0
        for one in self.see(images, batch_size=batch_size):
            if one.image not in joiners:
                joiners[one.image] = postprocessor.joiner()
            joiners[one.image].add(one)
            if one.is_last:
                done[one.image] = joiners.pop(one.image).result()
            while following in done:
                yield done.pop(following)
                following += 1

    def see(self, images: Iterable[Image], *, batch_size: int = 8) -> Iterator[TilePrediction]:
        """Yield what the model predicts for each tile of each image: the first of the two stages.

        An image that is not cut into tiles is one tile. Tiles of one canvas, of whatever images, go through
        the model together: `batch_size` is the largest number of tiles in one forward pass (of each version
        of test-time augmentation). Predictions come as soon as their batch is done; those of one image come
        row by row, but images may overtake each other. A prediction is a part of its batch: to keep it,
        `copy` it.

        Raises:
            NotFiniteError: the prediction for an image holds NaN or infinity.
        """
        check_count(batch_size, "batch_size")
        return self.predictor.see(images, batch_size)

    def postprocess(
        self, tiles: Sequence[TilePrediction], task: Task, thresholds: PostprocessConfig
    ) -> Segments | Detections:
        """Return the segments or boxes of an image, from the predictions of its tiles: the second stage."""
        joiner = self._postprocessor(task, thresholds).joiner()
        for one in tiles:
            joiner.add(one)
        return joiner.result()

    def _postprocessor(
        self, task: Task, thresholds: PostprocessConfig, tell: Tell = lambda image, sentence: None
    ) -> Postprocessor:
        return Postprocessor(
            experiment=self.model_file.experiment,
            categories=self.categories,
            task=task,
            thresholds=thresholds,
            augmented=len(self.tta) > 1,
            tell=tell,
        )
