"""Panoptic quality with plain loops over sets of pixels, by the paper's rules and those of COCO."""

from dataclasses import dataclass, field

from unimask.structures import Segments


@dataclass
class Counts:
    """Matches, wrong results and missed truths of one class."""

    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0
    ious: list[float] = field(default_factory=list)


Pixels = set[tuple[int, int]]


def pixel_sets(segments: Segments) -> list[Pixels]:
    """The pixels of every segment."""
    sets: list[Pixels] = [set() for _ in range(len(segments))]
    for layer in segments.layers.tolist():
        for row, line in enumerate(layer):
            for column, number in enumerate(line):
                if number:
                    sets[number - 1].add((row, column))
    return sets


def slow_counts(pictures: list[tuple[Segments, Segments]], classes: int) -> list[Counts]:
    """The counts of every class over pairs of result and truth."""
    counts = [Counts() for _ in range(classes)]
    for result, truth in pictures:
        _count_picture(result, truth, counts)
    return counts


def _count_picture(result: Segments, truth: Segments, counts: list[Counts]) -> None:
    truths, results = pixel_sets(truth), pixel_sets(result)
    height, width = truth.size
    void = {(row, column) for row in range(height) for column in range(width)}
    for pixels in truths:
        void -= pixels
    truth_labels, result_labels = truth.labels.tolist(), result.labels.tolist()
    crowd = truth.is_crowd.tolist()
    found: set[int] = set()
    used: set[int] = set()
    for i, true_pixels in enumerate(truths):
        for j, pixels in enumerate(results):
            if crowd[i] or truth_labels[i] != result_labels[j] or not true_pixels & pixels:
                continue
            iou = len(true_pixels & pixels) / len((true_pixels | pixels) - (pixels & void))
            if iou > 0.5:
                assert i not in found
                assert j not in used
                found.add(i)
                used.add(j)
                counts[truth_labels[i]].true_positives += 1
                counts[truth_labels[i]].ious.append(iou)
    crowd_of_class: dict[int, Pixels] = {}
    for i, label in enumerate(truth_labels):
        if crowd[i]:
            crowd_of_class[label] = truths[i]  # a later one replaces an earlier one
        elif i not in found:
            counts[label].false_negatives += 1
    for j, label in enumerate(result_labels):
        if j in used or not results[j]:
            continue
        excused = void | crowd_of_class.get(label, set())
        if len(results[j] & excused) / len(results[j]) <= 0.5:
            counts[label].false_positives += 1


def slow_quality(counts: list[Counts], members: list[int]) -> tuple[float, float, float, int]:
    """PQ, SQ and RQ as the mean over those members that have a segment, and how many these are."""
    values = []
    for member in members:
        one = counts[member]
        if one.true_positives + one.false_positives + one.false_negatives == 0:
            continue
        recognition = one.true_positives / (
            one.true_positives + one.false_positives / 2 + one.false_negatives / 2
        )
        segmentation = sum(one.ious) / len(one.ious) if one.ious else 0.0
        values.append((segmentation * recognition, segmentation, recognition))
    if not values:
        return -1.0, -1.0, -1.0, 0
    pq, sq, rq = (sum(column) / len(values) for column in zip(*values))
    return pq, sq, rq, len(values)
