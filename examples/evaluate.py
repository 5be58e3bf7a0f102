"""Measure a model on labelled images: `python examples/evaluate.py my_data --weights runs/example/best`."""

import argparse

import unimask
from unimask.data.open import open_dataset

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("data", help="a folder as docs/guide/own-data.md describes it")
parser.add_argument("--weights", default="nuclei")
parser.add_argument("--task", default="instance", choices=("panoptic", "instance", "semantic", "detection"))
parser.add_argument("--split", default="val")
given = parser.parse_args()

dataset = open_dataset(given.data, given.split, given.task)
evaluation = unimask.evaluate(unimask.load(given.weights), dataset, given.task)
for name, value in evaluation.values.items():
    print(f"{name:24} {value:.3f}")
