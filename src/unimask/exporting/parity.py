"""Compares an exported model with the model itself: numbers, final maps, and time."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from unimask.checkpoints.onnx import ExportedNetwork, final_tensors
from unimask.config.data import why_not_joined
from unimask.config.models import tasks_of
from unimask.config.tasks import Task
from unimask.exporting.wrappers import only_size
from unimask.inference.segmenter import Segmenter, SegmentTask
from unimask.machine import seconds_of
from unimask.metrics.overlaps import segment_overlaps
from unimask.ops.boxes import box_iou
from unimask.structures import Segments

SHAPES = ((1, 96, 64), (1, 96, 160), (3, 160, 96), (2, 224, 288))  # batch, height, width of random inputs
ODD = (-15, -1)  # pixels added to them where the model takes any size
SAME = 0.5  # IoU above which two segments of one category are the same one
TIMED = (1, 512, 512)
REPEATS = 5


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How alike the results of both models are, over all images of a task."""

    task: Task
    images: int
    pixels: float  # share of pixels with the same categories in both results
    segments: float  # share of the segments of both results that have a partner: the F1 at IoU 0.5


@dataclass(frozen=True, kw_only=True)
class BoxAgreement:
    """How alike the boxes of both models are, over all images."""

    task: Literal["detection"]
    images: int
    boxes: float  # share of the boxes of both results that have a partner: the F1 at IoU 0.5
    corner: float  # pixels by which the corners of partners differ at most


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Median seconds of one pass, without reading and post-processing."""

    input: tuple[int, int, int]  # batch, height, width
    threads: int
    model: float
    exported: float
    load: float  # 1-minute load average of the machine before measuring, over its cores; near 0 is idle


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The largest difference of an output over random inputs of several sizes, and the largest value."""

    output: str
    difference: float
    largest: float


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """What `unimask export` writes beside the file."""

    format: str
    megabytes: float
    differences: tuple[Difference, ...]
    agreement: tuple[Agreement | BoxAgreement, ...]
    latency: Latency


def compare(
    segmenter: Segmenter,
    exported: ExportedNetwork,
    images: Sequence[UInt8[Tensor, "3 _height _width"]],
    *,
    format: str,
    megabytes: float,
) -> ParityReport:
    """Return the report on an exported model against the one it was made from."""
    other = Segmenter(exported, segmenter.model_file)
    experiment = segmenter.model_file.experiment
    return ParityReport(
        format=format,
        megabytes=round(megabytes, 2),
        differences=differences(segmenter.model, exported, experiment.data.divisor),
        agreement=tuple(
            box_agreement(segmenter, other, images)
            if task == "detection"
            else agreement(segmenter, other, images, task)
            for task in tasks_of(experiment.model)
            if not why_not_joined(experiment.data.view, task)
        ),
        latency=latency(segmenter.model, exported),
    )


@torch.inference_mode()
def differences(model: nn.Module, exported: ExportedNetwork, divisor: int) -> tuple[Difference, ...]:
    """Return the largest difference of each output, over random inputs of `SHAPES`, all but the first padded.

    A model that takes one size only gets that. Where canvases need not be multiples of 32 pixels, their
    sizes are odd.
    """
    generator = torch.Generator().manual_seed(0)
    names = exported.signature.outputs
    worst, largest = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for index, (batch, *sides) in enumerate(SHAPES):
        height, width = only_size(model) or (
            -(-(side + odd) // divisor) * divisor for side, odd in zip(sides, ODD)
        )
        pixels = torch.randn((batch, 3, height, width), generator=generator)
        valid = torch.zeros((batch, height, width), dtype=torch.bool)
        valid[:, : height - 8 * index, : width - 16 * index] = True
        outputs = final_tensors(model(pixels, valid)), final_tensors(exported(pixels, valid))
        for name, one, other in zip(names, *outputs, strict=True):
            worst[name] = max(worst[name], float((one - other).abs().max()))
            largest[name] = max(largest[name], float(one.abs().max()))
    return tuple(Difference(output=name, difference=worst[name], largest=largest[name]) for name in names)


def box_agreement(
    one: Segmenter, other: Segmenter, images: Sequence[UInt8[Tensor, "3 _height _width"]]
) -> BoxAgreement:
    """Return how alike the boxes of two segmenters are."""
    partners = boxes = 0
    corner = 0.0
    for image in images:
        (mine,), (theirs,) = one.find([image], "detection"), other.find([image], "detection")
        iou, _ = box_iou(mine.boxes[:, None], theirs.boxes[None])
        pairs = _best_pairs(iou * (mine.labels[:, None] == theirs.labels[None])).nonzero()
        far = (mine.boxes[pairs[:, 0]] - theirs.boxes[pairs[:, 1]]).abs()
        corner = max(corner, float(far.max()) if len(far) else 0.0)
        partners += len(pairs[:, 0].unique()) + len(pairs[:, 1].unique())
        boxes += len(mine) + len(theirs)
    return BoxAgreement(
        task="detection", images=len(images), boxes=partners / boxes if boxes else 1.0, corner=corner
    )


def agreement(
    one: Segmenter, other: Segmenter, images: Sequence[UInt8[Tensor, "3 _height _width"]], task: SegmentTask
) -> Agreement:
    """Return how alike the results of two segmenters are."""
    same_pixels = pixels = partners = segments = 0
    for image in images:
        (mine,), (theirs,) = one.find([image], task), other.find([image], task)
        same_pixels += int((_category_map(mine) == _category_map(theirs)).sum())
        pixels += mine.size[0] * mine.size[1]
        partners += 2 * _partners(mine, theirs)
        segments += len(mine) + len(theirs)
    return Agreement(
        task=task,
        images=len(images),
        pixels=same_pixels / max(pixels, 1),
        segments=partners / segments if segments else 1.0,
    )


def _category_map(segments: Segments) -> Tensor:
    """Return a number per pixel that is equal for two pixels with the same categories, in any order."""
    most = int(segments.labels.max()) + 1 if len(segments) else 0
    codes = torch.randint(2**40, (most,), generator=torch.Generator().manual_seed(1))
    table = torch.cat([torch.zeros(1, dtype=torch.int64), codes[segments.labels]])
    return table[segments.layers.long()].sum(dim=0)


def _partners(one: Segments, other: Segments) -> int:
    """Pairs of segments of one category with an IoU above one half, each the best partner of the other."""
    shared = segment_overlaps(result=other, truth=one)
    iou = torch.zeros(len(one), len(other))
    rows, columns, pixels = (torch.from_numpy(part) for part in (shared.truth, shared.result, shared.pixels))
    iou.index_put_((rows - 1, columns - 1), pixels.float(), accumulate=True)
    iou = iou / (one.areas()[:, None] + other.areas()[None] - iou).clamp(min=1)
    iou = iou * (one.labels[:, None] == other.labels[None])
    best = _best_pairs(iou)
    return min(int(best.any(0).sum()), int(best.any(1).sum()))


def _best_pairs(iou: Float[Tensor, "mine theirs"]) -> Bool[Tensor, "mine theirs"]:
    """Pairs with an IoU above one half, each the best partner of the other."""
    if iou.numel() == 0:
        return torch.zeros(iou.shape, dtype=torch.bool)
    return (iou == iou.amax(0, keepdim=True)) & (iou == iou.amax(1, keepdim=True)) & (iou > SAME)


@torch.inference_mode()
def latency(model: nn.Module, exported: nn.Module) -> Latency:
    """Both timed in turn, so that what else the machine does hits both."""
    batch, height, width = timed = (TIMED[0], *(only_size(model) or TIMED[1:]))
    busy = os.getloadavg()[0] / (os.cpu_count() or 1)
    pixels = torch.randn((batch, 3, height, width), generator=torch.Generator().manual_seed(0))
    times: list[list[float]] = [[], []]
    for _ in range(REPEATS + 1):
        for network, seconds in zip((model, exported), times, strict=True):
            seconds.append(seconds_of(partial(network, pixels), pixels.device))
    ours, theirs = (sorted(seconds[1:])[REPEATS // 2] for seconds in times)  # the first pass warms up
    return Latency(
        input=timed,
        threads=torch.get_num_threads(),
        model=round(ours, 4),
        exported=round(theirs, 4),
        load=round(busy, 2),
    )
