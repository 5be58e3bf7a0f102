"""EoMT beside that of transformers: a picture becomes segments (S, B); a training step under masks (S)."""

import torch

from benchmarks.inference import of_models
from benchmarks.settings import Outcome, Settings, case_details
from benchmarks.training import SIDES, Work, step_table, steps_of

KINDS = ("EoMT-S", "EoMT-B")
TRAINED = "EoMT-S"
SIZE = (640, 640)
QUICK_SIZE = (64, 64)
STEPS = (Work(size=SIZE, batch=1, segments=10, first=SIZE),)
QUICK_STEPS = (Work(size=QUICK_SIZE, batch=2, segments=7),)


def run(settings: Settings) -> Outcome:
    from benchmarks.models import random_model  # not in the processes that measure peaks

    torch.set_num_threads(settings.threads)
    size, steps = (QUICK_SIZE, QUICK_STEPS) if settings.quick else (SIZE, STEPS)
    inference = of_models(KINDS[:1] if settings.quick else KINDS, (size,), settings)
    with random_model(TRAINED, size, masked=True) as folders:
        where = dict(zip(SIDES, (folders.theirs, folders.ours), strict=True))
        found = steps_of(where, steps, settings)
    return Outcome(
        tables=(*inference.tables, step_table(TRAINED, found, settings)),
        details={**inference.details, **case_details(found)},
    )
