"""Pictures a second that each metric counts."""

import statistics
import time
from dataclasses import dataclass

import torch

from benchmarks.settings import Outcome, Settings
from unimask.benchmark.tables import Table
from unimask.data.formats.shapes import CATEGORIES, shapes_dataset
from unimask.data.views import view
from unimask.inference.measures import Metric
from unimask.metrics.average_precision import MaskAveragePrecision
from unimask.metrics.matched_precision import MatchedPrecision
from unimask.metrics.mean_iou import MeanIoU
from unimask.metrics.panoptic_quality import PanopticQuality
from unimask.structures import Segments


@dataclass(frozen=True, kw_only=True)
class Counted:
    name: str
    updates: float  # a second
    compute: float  # seconds


METRICS: dict[str, type] = {
    "PQ": PanopticQuality,
    "AP": MaskAveragePrecision,
    "mIoU": MeanIoU,
    "AP(t)": MatchedPrecision,
}


def shifted(truth: Segments) -> Segments:
    """A result that is a little wrong everywhere."""
    return Segments(
        layers=truth.layers.roll((3, 5), (1, 2)),
        labels=truth.labels,
        scores=torch.linspace(0.9, 0.5, len(truth)),
        is_crowd=truth.is_crowd,
    )


def run(settings: Settings) -> Outcome:
    size, count = ((96, 128), 5) if settings.quick else ((480, 640), 60)
    shapes = shapes_dataset(size=size, count=count, most=20)
    found = []
    for name, kind in METRICS.items():
        data = view(shapes, "instance" if name.startswith("AP") else "panoptic")
        truths = [data[index].truth for index in range(count)]
        metric: Metric = kind(data.categories)
        times = []
        for truth in truths:
            result = shifted(truth)
            start = time.perf_counter()
            metric.update(result, truth)
            times.append(time.perf_counter() - start)
        start = time.perf_counter()
        metric.compute()
        done = time.perf_counter() - start
        found.append(Counted(name=name, updates=1 / statistics.median(times), compute=done))
    table = Table(
        title="Metrics",
        about=f"On {count} pictures of {size[0]} x {size[1]} with up to 20 things of {len(CATEGORIES)} "
        "categories: pictures counted a second (median), and milliseconds to compute the values at the end.",
        columns=("metric", "updates a second", "compute ms"),
        rows=tuple((one.name, round(one.updates, 1), round(1000 * one.compute, 1)) for one in found),
    )
    details = {one.name: {"updates_a_second": one.updates, "compute_seconds": one.compute} for one in found}
    return Outcome(tables=(table,), details=details)
