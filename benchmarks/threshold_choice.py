"""What the choice of the lowest score is worth: five-fold cross-validation over labelled images.

    python -m benchmarks.threshold_choice --weights nuclei --data nuclei_dsb2018

For each threshold, which `predict` applies in each tile, AP(0.5) and AP(0.75) over all images of the split;
then those of the threshold that is best by AP(0.5) on all of them, and by cross-validation: every fifth image
is counted with the threshold that is best on the four other fifths.
"""

import argparse
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

import unimask
from unimask.data.open import open_dataset
from unimask.data.views import match_categories
from unimask.inference.postprocessing import thresholds_for
from unimask.metrics.matched_precision import THRESHOLDS, MatchedPrecision
from unimask.structures import Segments

FOLDS = 5
SHOWN = (0.5, 0.75)  # the IoU at which AP is shown; the first one chooses

Counts = NDArray[np.int64]


def counts(weights: str, data: str, split: str, scores: Sequence[float], device: str) -> Counts:
    """Return matched, wrong and missed instances by threshold, image, IoU and kind."""
    segmenter = unimask.load(weights, device=device)
    given = open_dataset(data, split, "instance", segmenter.background, reading=segmenter.set_reading)
    dataset = match_categories(given, segmenter.categories, "instance")
    experiment = segmenter.model_file.experiment
    result = np.zeros((len(scores), len(dataset), len(THRESHOLDS), 3), dtype=np.int64)
    for image in range(len(dataset)):
        sample = dataset[image]
        tiles = [tile.copy() for tile in segmenter.see([sample.image])]
        for row, score in enumerate(scores):
            thresholds = thresholds_for(experiment, "instance", score)
            found = segmenter.postprocess(tiles, "instance", thresholds)
            assert isinstance(found, Segments)
            assert isinstance(sample.truth, Segments)
            one = MatchedPrecision(segmenter.categories)
            one.update(found, sample.truth)
            result[row, image] = np.stack((one.matched, one.wrong, one.missed), axis=-1)
    return result


def precision(these: Counts) -> NDArray[np.float64]:
    """Return AP of the images together, for each IoU of `SHOWN`."""
    total = these.sum(axis=0)[[THRESHOLDS.index(iou) for iou in SHOWN]]
    quality: NDArray[np.float64] = total[:, 0] / np.maximum(total.sum(axis=1), 1)
    return quality


def best(of: Counts) -> int:
    """Return the threshold with the highest AP at the first IoU of `SHOWN`."""
    return int(np.argmax([precision(row)[0] for row in of]))


def cross_validated(of: Counts) -> tuple[Counts, list[int]]:
    """Return the counts of each image with the threshold that the other folds chose, and these thresholds."""
    fold = np.arange(of.shape[1]) % FOLDS
    chosen = [best(of[:, fold != number]) for number in range(FOLDS)]
    return np.stack([of[chosen[number], image] for image, number in enumerate(fold)]), chosen


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--weights", default="nuclei")
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--scores", type=float, nargs="+", default=[0.5, 0.6, 0.7, 0.75, 0.8, 0.85])
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    found = counts(given.weights, given.data, given.split, given.scores, given.device)
    print(f"| lowest score | {' | '.join(f'AP({iou})' for iou in SHOWN)} |")
    print(f"|---|{'---|' * len(SHOWN)}")
    for score, row in zip(given.scores, found):
        print(f"| {score} | {' | '.join(f'{value:.3f}' for value in precision(row))} |")
    first, (validated, chosen) = best(found), cross_validated(found)
    scores = ", ".join(f"{given.scores[row]}" for row in chosen)
    for name, these in (
        (f"best on all: {given.scores[first]}", found[first]),
        (f"cross-validated: {scores}", validated),
    ):
        print(f"| {name} | {' | '.join(f'{value:.3f}' for value in precision(these))} |")


if __name__ == "__main__":
    main()
