"""IoU of classes, counted pixel by pixel."""

from unimask.structures import Segments


def slow_ious(
    pictures: list[tuple[Segments, Segments]], classes: int
) -> tuple[list[float | None], float | None]:
    """The IoU of each class over pairs of result and truth (None: does not occur), and the accuracy."""
    shared, union, right, known = [0] * classes, [0] * classes, 0, 0
    for result, truth in pictures:
        true_labels, labels = [*truth.labels.tolist(), None], [*result.labels.tolist(), None]
        for true_line, line in zip(truth.layers[0].tolist(), result.layers[0].tolist()):
            for true_number, number in zip(true_line, line):
                if true_number == 0:
                    continue
                true_label, label = true_labels[true_number - 1], labels[number - 1]
                known += 1
                right += label == true_label
                for k in range(classes):
                    shared[k] += label == k and true_label == k
                    union[k] += label == k or true_label == k
    ious = [s / u if u else None for s, u in zip(shared, union)]
    return ious, right / known if known else None
