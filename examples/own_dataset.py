"""Train on your own data in Python, without any files in a known layout: ten lines make a data set."""

import argparse
from pathlib import Path

import numpy as np

import unimask

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--output", type=Path, default=Path("runs/own_dataset"))
given = parser.parse_args()


class Discs:
    """Bright discs on dark ground, drawn from the number of the sample: `categories`, a length, samples."""

    categories = unimask.make_categories(["disc"])

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> object:
        y, x = np.indices((64, 96))
        centers = np.random.default_rng(index).uniform((12, 12), (52, 84), size=(3, 2))
        masks = [(y - row) ** 2 + (x - column) ** 2 < 81 for row, column in centers]
        image = np.where(np.any(masks, axis=0), 200, 30).astype(np.uint8)
        return unimask.make_sample(image, labels=[0, 0, 0], masks=masks)


class Printer:
    """A logger: whatever has these three methods; it is told numbers and pictures."""

    def values(self, group: str, step: int, values: dict[str, float]) -> None:
        """Print the loss."""
        if group == "training":
            print(f"step {step}: loss {values.get('total', 0):.3f}")

    def picture(self, name: str, step: int, picture: object) -> None:
        """Leave pictures alone."""

    def close(self) -> None:
        """Nothing is open."""


settings = {"training.steps": given.steps, "training.batch_size": 2, "training.workers": 0}
experiment = unimask.override(unimask.presets.PRESETS["tiny"](), settings)
result = unimask.train(experiment, Discs(), given.output, task="instance", loggers=[Printer()])
segmenter = unimask.load(given.output / "model")
measured = unimask.evaluate(segmenter, Discs(), "instance")
print(f"after {result.steps} steps: AP {measured.values['AP']}")
