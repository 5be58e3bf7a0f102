"""Average precision of instance masks and boxes by COCO's rules, computed by hotcoco."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import hotcoco
import numpy as np
from numpy.typing import NDArray

from unimask.metrics.overlaps import (
    NOT_MEASURED,
    Integers,
    as_numbers,
    check_pair,
    check_same_categories,
)
from unimask.structures import Categories, Detections, Segments, Size

_IOU_50, _IOU_75 = 0, 5  # indices into COCO's IoU thresholds .50, .55, ... .95
_AREAS = {"": 0, "s": 1, "m": 2, "l": 3}  # indices of COCO's areas: all, below 32^2, below 96^2, larger
_LIMITS = (1, 10, 100)  # COCO's largest numbers of detections per image and class


@dataclass(frozen=True, kw_only=True)
class AveragePrecisionValues:
    """Average precision and recall, each in [0, 1]; -1 where the ground truth has no such instance."""

    values: dict[str, float]  # by the names of `as_dict`
    per_class: tuple[float, ...]  # AP per category; -1 for stuff and for things without ground truth

    def as_dict(self) -> dict[str, float]:
        """Return COCO's twelve numbers, and four more with all detections.

        - `AP` (mean over IoU .50 to .95), `AP50`, `AP75`, and `APs`, `APm`, `APl` by area: 100 detections per
          image and class, COCO's standard
        - `AR1`, `AR10`, `AR100`: the maximum recall with that many detections per image and class; `ARs`,
          `ARm`, `ARl`: by area with 100
        - `AP_all`, `AP50_all`, `AP75_all`, `AR_all`: with up to `most_detections` per image and class
        """
        return dict(self.values)

    def by_class(self) -> dict[str, tuple[float, ...]]:
        """Return `AP` of each category, in the order of the categories."""
        return {"AP": self.per_class}


@dataclass(frozen=True, kw_only=True)
class _Instances:
    """The things of one image: their masks as compressed run lengths, and COCO's attributes."""

    runs: tuple[bytes, ...]
    labels: Integers
    areas: NDArray[np.float64]
    scores: NDArray[np.float64]
    is_crowd: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class _ImageRecord:
    size: Size
    truth: _Instances
    result: _Instances


@dataclass
class _GroundTruth:
    """Images, ground truth and results as COCO's JSON records, the input of hotcoco."""

    images: list[dict[str, object]] = field(default_factory=list)
    truth: list[dict[str, object]] = field(default_factory=list)
    results: list[dict[str, object]] = field(default_factory=list)


class MaskAveragePrecision:
    """Accumulates COCO's mask AP over images; the values are exactly those of pycocotools.

    COCO's standard counts the 100 best detections per image and class; dense images need more, so the
    values with up to `most_detections` are given as well. Only things count, in ground truth and results.
    Areas of the ground truth are the stated ones, else those of its masks. Equal scores keep the order
    of the images, then that of the segments, as in pycocotools. An instance without pixels counts as it
    does there: as a miss in the ground truth, as a false positive in the results. Images are kept as
    compressed run lengths until `compute`.

    Raises:
        ValueError: `most_detections` is below 100.

    Source: pycocotools' `COCOeval`, iouType "segm".
    """

    def __init__(self, categories: Categories, most_detections: int = 1000) -> None:
        _check_limit(most_detections)
        self.categories = categories
        self.most_detections = most_detections
        self._images: list[_ImageRecord] = []

    def update(self, result: Segments, truth: Segments) -> None:
        """Add one image.

        Raises:
            ValueError: sizes differ, a label or an id is out of range, or a score is not finite.
        """
        check_pair(result, truth, self.categories)
        if not bool(result.scores.isfinite().all()):
            raise ValueError("a score of the result is not finite")
        is_thing = np.array(self.categories.is_thing, dtype=bool)
        image = _ImageRecord(
            size=result.size, truth=_instances(truth, is_thing), result=_instances(result, is_thing)
        )
        self._images.append(image)

    def merge(self, other: "MaskAveragePrecision") -> None:
        """Append the images of another accumulator.

        Raises:
            ValueError: its categories differ.
        """
        check_same_categories(self.categories, other.categories)
        self._images.extend(other._images)

    def compute(self) -> AveragePrecisionValues:
        """Return the values over all images so far."""
        tables = _GroundTruth()
        for number, image in enumerate(self._images, start=1):
            _append(tables, number, image)
        return _measure(tables, "segm", self.categories, self.most_detections)


class BoxAveragePrecision:
    """Accumulates COCO's box AP over images, by the rules of `MaskAveragePrecision`.

    Areas of the ground truth are the stated ones: in COCO's files, those of the masks.

    Raises:
        ValueError: `most_detections` is below 100.

    Source: pycocotools' `COCOeval`, iouType "bbox".
    """

    def __init__(self, categories: Categories, most_detections: int = 1000) -> None:
        _check_limit(most_detections)
        self.categories = categories
        self.most_detections = most_detections
        self._images: list[tuple[Detections, Detections]] = []

    def update(self, result: Detections, truth: Detections) -> None:
        """Add one image; the boxes of both arguments are in pixels of it.

        Raises:
            ValueError: a label is out of range, or a number of the result is not finite.
        """
        if not bool(result.scores.isfinite().all() and result.boxes.isfinite().all()):
            raise ValueError("a score or a box of the result is not finite")
        for labels in (result.labels, truth.labels):
            if bool(((labels < 0) | (labels >= len(self.categories))).any()):
                raise ValueError(f"a label is not below {len(self.categories)}, the number of categories")
        self._images.append((result, truth))

    def merge(self, other: "BoxAveragePrecision") -> None:
        """Append the images of another accumulator.

        Raises:
            ValueError: its categories differ.
        """
        check_same_categories(self.categories, other.categories)
        self._images.extend(other._images)

    def compute(self) -> AveragePrecisionValues:
        """Return the values over all images so far."""
        tables = _GroundTruth()
        is_thing = np.array(self.categories.is_thing, dtype=bool)
        for number, (result, truth) in enumerate(self._images, start=1):
            tables.images.append({"id": number, "height": 1, "width": 1})  # sizes are not used for boxes
            areas, crowd = truth.areas.tolist(), truth.is_crowd.tolist()
            for index, record in _box_records(truth, number, is_thing):
                more = {"id": len(tables.truth) + 1, "area": areas[index], "iscrowd": int(crowd[index])}
                tables.truth.append(record | more)
            scores = result.scores.tolist()
            for index, record in _box_records(result, number, is_thing):
                tables.results.append(record | {"score": scores[index]})
        return _measure(tables, "bbox", self.categories, self.most_detections)


def _check_limit(most_detections: int) -> None:
    if most_detections < _LIMITS[-1]:
        raise ValueError(f"most_detections is {most_detections}; at least {_LIMITS[-1]} are needed")


def _box_records(
    boxes: Detections, number: int, is_thing: NDArray[np.bool_]
) -> Iterator[tuple[int, dict[str, object]]]:
    corners, labels = boxes.boxes.detach().cpu().double().numpy(), boxes.labels.tolist()
    for index, (left, top, right, bottom) in enumerate(corners.tolist()):
        if is_thing[labels[index]]:
            place = [left, top, right - left, bottom - top]
            yield index, {"image_id": number, "category_id": labels[index] + 1, "bbox": place}


def _measure(
    tables: _GroundTruth, kind: str, categories: Categories, most_detections: int
) -> AveragePrecisionValues:
    """Return all values of COCO's evaluation of a kind ("segm" or "bbox")."""
    things = [label for label, is_thing in enumerate(categories.is_thing) if is_thing]
    precision, recall = _curves(
        tables, kind, [(label, categories.names[label]) for label in things], most_detections
    )
    standard, everything = 2, precision.shape[-1] - 1  # indices of 100 and of most_detections
    values = {f"AP{name}": _mean(precision[..., area, standard]) for name, area in _AREAS.items()}
    values |= _at_thresholds(precision[..., 0, standard], "")
    values |= {f"AR{limit}": _mean(recall[..., 0, index]) for index, limit in enumerate(_LIMITS)}
    values |= {f"AR{name}": _mean(recall[..., area, standard]) for name, area in _AREAS.items() if name}
    values["AP_all"] = _mean(precision[..., 0, everything])
    values |= _at_thresholds(precision[..., 0, everything], "_all")
    values["AR_all"] = _mean(recall[..., 0, everything])
    per_class = [NOT_MEASURED] * len(categories)
    for index, label in enumerate(things):
        per_class[label] = _mean(precision[:, :, index, 0, standard])
    return AveragePrecisionValues(values=values, per_class=tuple(per_class))


def _curves(
    tables: _GroundTruth, kind: str, things: list[tuple[int, str]], most_detections: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return precision (IoU, recall, thing, area, limit) and recall (IoU, thing, area, limit).

    Both are -1 where there is no ground truth.
    """
    names = [{"id": label + 1, "name": name} for label, name in things]
    truth = hotcoco.COCO({"images": tables.images, "annotations": tables.truth, "categories": names})
    evaluation = hotcoco.COCOeval(truth, truth.load_res(tables.results), kind)
    evaluation.params.max_dets = sorted({*_LIMITS, most_detections})
    evaluation.evaluate()
    evaluation.accumulate()
    curves = evaluation.eval
    assert curves is not None
    return curves["precision"], curves["recall"]


def _mean(values: NDArray[np.float64]) -> float:
    measured = values[values > NOT_MEASURED]
    return float(measured.mean()) if measured.size else NOT_MEASURED


def _at_thresholds(precision: NDArray[np.float64], suffix: str) -> dict[str, float]:
    return {f"AP50{suffix}": _mean(precision[_IOU_50]), f"AP75{suffix}": _mean(precision[_IOU_75])}


def _append(tables: _GroundTruth, number: int, image: _ImageRecord) -> None:
    height, width = image.size
    tables.images.append({"id": number, "height": height, "width": width})
    for annotation, area, crowd in zip(
        _annotations(image.truth, number, image.size), image.truth.areas, image.truth.is_crowd
    ):
        # the box is not used for masks, but is required
        more = {"id": len(tables.truth) + 1, "area": float(area), "iscrowd": int(crowd), "bbox": [0, 0, 0, 0]}
        tables.truth.append(annotation | more)
    for annotation, score in zip(_annotations(image.result, number, image.size), image.result.scores):
        tables.results.append(annotation | {"score": float(score)})


def _annotations(instances: _Instances, number: int, size: Size) -> Iterator[dict[str, object]]:
    for runs, label in zip(instances.runs, instances.labels):
        mask = {"size": list(size), "counts": runs}
        yield {"image_id": number, "category_id": int(label) + 1, "segmentation": mask}


def _instances(segments: Segments, is_thing: NDArray[np.bool_]) -> _Instances:
    labels = as_numbers(segments.labels)
    keep = np.flatnonzero(is_thing[labels])
    runs = compressed_runs(segments)
    return _Instances(
        runs=tuple(runs[index] for index in keep),
        labels=labels[keep],
        areas=segments.object_areas().cpu().double().numpy()[keep],
        scores=segments.scores.detach().cpu().double().numpy()[keep],
        is_crowd=segments.is_crowd.cpu().numpy()[keep],
    )


def compressed_runs(segments: Segments) -> tuple[bytes, ...]:
    """Return each segment's mask as COCO's compressed run lengths, computed without dense masks."""
    height, width = segments.size
    everything = height * width
    counts: list[list[int]] = [[everything] for _ in range(len(segments))]
    for layer in segments.layers.cpu().numpy():
        for number, runs in _runs_of_layer(layer.T.reshape(-1)):
            counts[number - 1] = runs
    masks = hotcoco.mask.frPyObjects(
        [{"size": [height, width], "counts": one} for one in counts], height, width
    )
    return tuple(mask["counts"] for mask in masks)


def _runs_of_layer(ids: NDArray[np.int16]) -> Iterator[tuple[int, list[int]]]:
    """Yield the id and the run lengths of each segment of a layer (flattened by columns), outside first."""
    starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
    ends = np.append(starts[1:], ids.size)
    owners = ids[starts]
    order = np.argsort(owners, kind="stable")
    order = order[owners[order] > 0]
    owners, starts, ends = owners[order], starts[order], ends[order]
    first = np.flatnonzero(np.diff(owners, prepend=np.int16(0)))
    for begin, end in zip(first, np.append(first[1:], len(owners))):
        edges = np.stack([starts[begin:end], ends[begin:end]], axis=1).reshape(-1)
        lengths = np.diff(edges, prepend=0, append=ids.size).tolist()
        yield int(owners[begin]), lengths if lengths[-1] else lengths[:-1]
