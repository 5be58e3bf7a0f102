"""AP(t) = TP / (TP + FP + FN) with sets of pixels and matchings grown by augmenting paths."""

from fractions import Fraction

from oracles.slow_panoptic_quality import pixel_sets

from unimask.structures import Segments


def slow_matching(
    result: Segments, truth: Segments, is_thing: tuple[bool, ...], threshold: Fraction
) -> tuple[int, int, int]:
    """Matched, wrong and missed instances of one picture."""
    truths, results = pixel_sets(truth), pixel_sets(result)
    truth_labels, result_labels = truth.labels.tolist(), result.labels.tolist()
    crowds = [i for i in range(len(truth)) if bool(truth.is_crowd[i])]
    wanted = [i for i in range(len(truth)) if is_thing[truth_labels[i]] and truths[i] and i not in crowds]
    given = [j for j in range(len(result)) if is_thing[result_labels[j]] and results[j]]

    def fits(i: int, j: int) -> bool:
        shared, union = len(truths[i] & results[j]), len(truths[i] | results[j])
        return truth_labels[i] == result_labels[j] and Fraction(shared, union) >= threshold

    candidates = {i: [j for j in given if fits(i, j)] for i in wanted}
    partner: dict[int, int] = {}

    def place(i: int, tried: set[int]) -> bool:
        for j in candidates[i]:
            if j not in tried:
                tried.add(j)
                if j not in partner or place(partner[j], tried):
                    partner[j] = i
                    return True
        return False

    matched = sum(place(i, set()) for i in wanted)
    wrong = 0
    for j in given:
        excused = any(
            truth_labels[i] == result_labels[j] and 2 * len(truths[i] & results[j]) > len(results[j])
            for i in crowds
        )
        wrong += j not in partner and not excused
    return matched, wrong, len(wanted) - matched
