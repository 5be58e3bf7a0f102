"""The libraries that are compared: each makes segments of an image in four stages."""

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from unimask.benchmark.timing import Stopwatch
from unimask.checkpoints.images import ModelFile, load_model
from unimask.config.data import Scale, SlidingWindow, Square, Whole
from unimask.config.models import tasks_of
from unimask.config.tasks import Task
from unimask.errors import ConfigError
from unimask.files import json_text
from unimask.inference.predictions import of_whole_image
from unimask.inference.segmenter import Segmenter
from unimask.structures import ImageBatch, MaskPrediction

STAGES = ("pre", "forward", "post", "encode")
FULL = "32-true"


@dataclass(frozen=True, kw_only=True)
class Logits:
    """What a model says about one image, on the CPU, in float32."""

    classes: Float[Tensor, "queries classes_and_none"]
    masks: Float[Tensor, "queries height width"]  # at stride 4


@runtime_checkable
class Pipeline(Protocol):
    """A loaded model with all that is around it."""

    @property
    def model(self) -> nn.Module:
        """The network, to count its weights."""

    def run(self, image: UInt8[Tensor, "3 height width"], watch: Stopwatch) -> int:
        """Segment the image in the stages `STAGES`; return the number of segments."""

    def logits(self, pixels: Float[Tensor, "1 3 height width"]) -> Logits:
        """Return what the network predicts for normalised pixels."""


@runtime_checkable
class Side(Protocol):
    """A description of a pipeline that can be sent to another process."""

    @property
    def name(self) -> str:
        """As tables show it."""

    def load(self, device: str) -> Pipeline:
        """Return the pipeline on a device."""


def side_name(library: str, precision: str) -> str:
    """Return the library, and the precision where it is not the full one."""
    return library if precision == FULL else f"{library} {precision}"


def seen_as_it_is(model_file: ModelFile) -> ModelFile:
    """Return the model's file, changed so that an image is seen in one piece and at its own size.

    An EoMT sees it in its square: most have positions for no other size.
    """
    given = model_file.experiment.data
    resize = given.resize if isinstance(given.resize, Square) else Scale(factor=1.0)
    if isinstance(given.view, SlidingWindow):
        resize = Square(size=given.view.size)
    data = replace(given, resize=resize, view=Whole())
    return replace(model_file, experiment=replace(model_file.experiment, data=data))


@dataclass(frozen=True, kw_only=True)
class UnimaskSide:
    """This library with a model folder."""

    folder: Path
    task: Task
    precision: str = FULL

    @property
    def name(self) -> str:
        """As tables show it."""
        return side_name("unimask", self.precision)

    def load(self, device: str) -> "UnimaskPipeline":
        """Return the model, ready to predict.

        Raises:
            WeightsError, ConfigError: it cannot be loaded.
        """
        model, model_file = load_model(self.folder, device)
        if self.task not in tasks_of(model_file.experiment.model):
            raise ConfigError("task", f"the benchmark is of masks, which {self.folder} does not predict")
        segmenter = Segmenter(model, seen_as_it_is(model_file), device, self.precision)
        return UnimaskPipeline(segmenter, self.task)


class UnimaskPipeline:
    """Segments images as the segmenter does, with a watch."""

    def __init__(self, segmenter: Segmenter, task: Task) -> None:
        self.segmenter = segmenter
        self.task: Task = task

    @property
    def model(self) -> nn.Module:
        """The network, to count its weights."""
        return self.segmenter.model

    def run(self, image: UInt8[Tensor, "3 height width"], watch: Stopwatch) -> int:
        """Segment the image in the stages `STAGES`; return the number of segments."""
        segmenter = self.segmenter
        with watch.stage("pre"):
            batch = segmenter.predictor.preprocess([image])
        with watch.stage("forward"):
            prediction = segmenter.predictor.forward(batch)
        with watch.stage("post"):
            seen = of_whole_image(prediction, batch.placements[0])
            found = segmenter.postprocess([seen], self.task, segmenter.model_file.experiment.postprocess)
        with watch.stage("encode"):
            result = segmenter.result("image", image, found, self.task)
            json_text(result.to_json(), None)
            if self.task != "instance":
                result.to_panoptic_png().save(io.BytesIO(), format="PNG", optimize=True)
        return len(found)

    def logits(self, pixels: Float[Tensor, "1 3 height width"]) -> Logits:
        """Return what the network predicts for normalised pixels."""
        moved = pixels.to(self.segmenter.device, memory_format=torch.channels_last)
        valid = torch.ones_like(moved[:, 0], dtype=torch.bool)
        prediction = self.segmenter.predictor.forward(ImageBatch(pixels=moved, valid=valid, placements=()))
        assert isinstance(prediction, MaskPrediction)
        masks = torch.einsum(
            "qc,chw->qhw", prediction.mask_embeddings[-1, 0].float(), prediction.features()[0].float()
        )
        return Logits(classes=prediction.class_logits[-1, 0].float().cpu(), masks=masks.cpu())


@dataclass(frozen=True, kw_only=True)
class LogitAgreement:
    """How far the logits of one side are from those of another."""

    class_difference: float  # largest
    mask_difference: float  # largest
    mask_iou: float  # mean over queries of the masks where the logit is above 0


def agreement(mine: Logits, theirs: Logits) -> LogitAgreement:
    """Return how far two sides are apart on one image; two empty masks agree.

    Masks are those of the queries that found something (no-object is not their best class in `theirs`), or of
    all where there is none.
    """
    found = theirs.classes.argmax(dim=1) != theirs.classes.shape[1] - 1
    if not bool(found.any()):
        found = torch.ones_like(found)
    first, second = mine.masks[found] > 0, theirs.masks[found] > 0
    both = (first & second).sum(dim=(1, 2))
    either = (first | second).sum(dim=(1, 2))
    iou = torch.where(either > 0, both / either.clamp(min=1), 1.0)
    return LogitAgreement(
        class_difference=float((mine.classes - theirs.classes).abs().max()),
        mask_difference=float((mine.masks - theirs.masks).abs().max()),
        mask_iou=float(iou.mean()),
    )
