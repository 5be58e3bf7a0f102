"""How well written lines agree with the truth."""

from collections.abc import Mapping
from dataclasses import dataclass

from unimask.metrics.bleu import bleu_of_words


@dataclass(frozen=True, kw_only=True)
class LineValues:
    """`BLEU` of lowercased words, 0 to 100; `exact`, the share of lines that are the truth to the letter."""

    values: Mapping[str, float]


class LineMetrics:
    """A state that counts lines and adds. Lines are words with blanks between them."""

    def __init__(self) -> None:
        self.results: list[str] = []
        self.truth: list[str] = []

    def update(self, result: str, truth: str) -> None:
        """Counts one line."""
        self.results.append(result)
        self.truth.append(truth)

    def merge(self, other: "LineMetrics") -> None:
        """Adds the lines that another state has counted."""
        self.results += other.results
        self.truth += other.truth

    def compute(self) -> LineValues:
        """The values over all lines so far; at least one."""
        same = sum(a == b for a, b in zip(self.results, self.truth, strict=True))
        bleu = bleu_of_words(self.results, self.truth).score
        return LineValues(values={"BLEU": bleu, "exact": same / len(self.results)})
