"""A picture becomes segments: time of each stage, peak memory, and whether both say the same."""

from benchmarks.models import KINDS, random_model
from benchmarks.settings import Outcome, Settings
from unimask.benchmark.measure import Conditions, measure, plain_side, to_table
from unimask.benchmark.sides import Side, UnimaskSide
from unimask.benchmark.transformers_side import side_like

SIZES = ((640, 640), (800, 1088))
QUICK_SIZES = ((96, 128),)
REDUCED = "bf16-mixed"


def run(settings: Settings) -> Outcome:
    tables, details = [], {}
    for kind in KINDS:
        sizes = QUICK_SIZES if settings.quick else SIZES
        with random_model(kind, sizes[0]) as folders:
            sides: list[Side] = [
                side_like(folders.model_file, folders.theirs, "panoptic"),
                UnimaskSide(folder=folders.ours, task="panoptic"),
                UnimaskSide(folder=folders.ours, task="panoptic", precision=REDUCED),
            ]
            if settings.device != "cpu":
                sides.insert(1, side_like(folders.model_file, folders.theirs, "panoptic", REDUCED))
            for size in sizes:
                rounds = 1 if settings.quick else 5 if settings.device == "cpu" else 30
                conditions = Conditions(
                    size=size,
                    device=settings.device,
                    threads=settings.threads,
                    rounds=rounds,
                    warm_up=1 if settings.device == "cpu" else 5,
                )
                measured = measure(sides, conditions)
                title = f"Inference, {kind}, {size[0]} x {size[1]}"
                tables.append(to_table(title, measured))
                details[title] = {name: plain_side(measured, name) for name in measured.sides}
    return Outcome(tables=tuple(tables), details=details)
