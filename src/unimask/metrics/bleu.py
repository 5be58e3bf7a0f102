"""BLEU by sacrebleu, on tokenised and on plain text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unimask.errors import needs_extra


@dataclass(frozen=True, kw_only=True)
class Bleu:
    """BLEU-4 of a corpus, from 0 to 100, with its components."""

    score: float
    precisions: tuple[float, ...]  # of 1- to 4-grams, in percent
    brevity_penalty: float
    result_words: int
    reference_words: int
    signature: str  # sacrebleu's record of the settings

    def __str__(self) -> str:
        precisions = "/".join(f"{value:.1f}" for value in self.precisions)
        return (
            f"{self.score:.2f} ({precisions}, BP {self.brevity_penalty:.3f}, "
            f"{self.result_words} words, reference {self.reference_words})"
        )


def bleu_of_words(results: Sequence[str], references: Sequence[str]) -> Bleu:
    """Return case-insensitive BLEU of tokenised lines, whose words are separated by blanks.

    Papers on Multi30k report this BLEU (`multi-bleu.perl -lc` on tokenised text).

    Raises:
        ValueError: there are no lines, or the numbers of results and references differ.
        MissingPackageError: sacrebleu is not installed.
    """
    return _measure(
        {"tokenize": "none", "lowercase": True, "smooth_method": "none", "force": True}, results, references
    )


def bleu_of_text(results: Sequence[str], references: Sequence[str]) -> Bleu:
    """Return case-sensitive BLEU of plain text lines, tokenised by sacrebleu (its default settings).

    Raises:
        ValueError: there are no lines, or the numbers of results and references differ.
        MissingPackageError: sacrebleu is not installed.
    """
    return _measure({}, results, references)


def _measure(settings: Mapping[str, Any], results: Sequence[str], references: Sequence[str]) -> Bleu:
    with needs_extra("text", "BLEU"):  # imported here, because training on images does not need it
        from sacrebleu.metrics import BLEU
    metric = BLEU(**settings)
    if len(results) != len(references) or not results:
        raise ValueError(f"{len(results)} results and {len(references)} references")
    found = metric.corpus_score(list(results), [list(references)])
    return Bleu(
        score=found.score,
        precisions=tuple(found.precisions),
        brevity_penalty=found.bp,
        result_words=found.sys_len,
        reference_words=found.ref_len,
        signature=str(metric.get_signature()),
    )


@dataclass(frozen=True, kw_only=True)
class LineValues:
    """`BLEU` of lowercased words, 0 to 100, and `exact`, the share of lines equal to the ground truth."""

    values: Mapping[str, float]
    per_category: Mapping[str, Mapping[str, float]] = field(default_factory=dict, init=False)  # none


class LineMetrics:
    """Accumulates lines, whose words are separated by blanks."""

    def __init__(self) -> None:
        self.results: list[str] = []
        self.truth: list[str] = []

    def update(self, result: str, truth: str) -> None:
        """Add one line."""
        self.results.append(result)
        self.truth.append(truth)

    def merge(self, other: "LineMetrics") -> None:
        """Append the lines of another accumulator."""
        self.results += other.results
        self.truth += other.truth

    def compute(self) -> LineValues:
        """Return the values over all lines so far.

        Raises:
            ValueError: there are none.
        """
        same = sum(a == b for a, b in zip(self.results, self.truth, strict=True))
        bleu = bleu_of_words(self.results, self.truth).score
        return LineValues(values={"BLEU": bleu, "exact": same / len(self.results)})
