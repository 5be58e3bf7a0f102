"""How much masks change under `bf16-mixed`, with the trained model of the package on the example pictures."""

from pathlib import Path

import torch

from benchmarks.settings import Outcome, Settings, progress
from unimask.benchmark.tables import Table
from unimask.data.read import read_image
from unimask.inference.loading import load
from unimask.structures import Segments

EXAMPLES = Path(__file__).parents[1] / "examples"
PRECISION = "bf16-mixed"


def best_ious(first: Segments, second: Segments) -> list[float]:
    """For each segment of the first result the largest IoU with one of the second; 0 where there is none."""
    if not len(first) or not len(second):
        return [0.0] * len(first)
    own, others = first.masks().flatten(1).float(), second.masks().flatten(1).float()
    both = own @ others.T
    either = own.sum(dim=1)[:, None] + others.sum(dim=1)[None] - both
    found: list[float] = (both / either.clamp(min=1)).amax(dim=1).tolist()
    return found


def run(settings: Settings) -> Outcome:
    torch.set_num_threads(settings.threads)
    paths = sorted(path for path in EXAMPLES.iterdir() if path.suffix in (".png", ".jpg"))
    full, reduced = load("nuclei", settings.device), load("nuclei", settings.device, PRECISION)
    rows, ious = [], []
    for path in paths[:1] if settings.quick else paths:
        progress(f"bf16, {path.name}")
        image = read_image(path)
        expected, found = (next(segmenter.find([image], "panoptic")) for segmenter in (full, reduced))
        of_picture = best_ious(expected, found)
        ious += of_picture
        mean = sum(of_picture) / max(1, len(of_picture))
        lost = sum(iou < 0.5 for iou in of_picture)
        rows.append((path.name, len(expected), len(found), round(mean, 4), lost))
    mean = sum(ious) / max(1, len(ious))
    table = Table(
        title="bf16 beside float32, trained model (nuclei)",
        about=f"Panoptic segments of the example pictures: the mean over the {len(ious)} segments in float32 "
        f"of the best IoU with a segment in bf16 is {mean:.4f}. Lost: below 0.5.",
        columns=("picture", "segments in float32", "in bf16", "mean IoU", "lost"),
        rows=tuple(rows),
    )
    return Outcome(tables=(table,), details={"mean_iou": mean, "segments": len(ious)})
