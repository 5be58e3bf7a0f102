"""Train on a folder of labelled images: `python examples/train_on_folder.py my_data --task instance`.

The folder may have any of the layouts of docs/guide/own-data.md. The best model is in OUTPUT/best.
"""

import argparse
from pathlib import Path

import unimask

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("data", help="the folder; the word `shapes` stands for generated images")
parser.add_argument("--task", default="panoptic", choices=("panoptic", "instance", "semantic", "detection"))
parser.add_argument("--preset", default="small")
parser.add_argument("--steps", type=int, default=4000)
parser.add_argument(
    "--initial", default="imagenet", help="where weights start: none, imagenet, a model folder"
)
parser.add_argument("--output", type=Path, default=Path("runs/example"))
given = parser.parse_args()

settings = {"training.steps": given.steps, "training.evaluate_every": max(1, given.steps // 4)}
experiment = unimask.override(unimask.presets.PRESETS[given.preset](), settings)
result = unimask.train(
    experiment,
    given.data,
    given.output,
    task=given.task,
    initial=None if given.initial == "none" else given.initial,
    resume=True,  # the same command goes on after a stop
)
print(f"best after step {result.best_step}: {result.best}")
print(f"predict with it: unimask predict photo.jpg --weights {given.output / 'best'}")
