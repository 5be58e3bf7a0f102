"""BLEU through sacrebleu, in the two ways that results are published in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unimask.errors import needs_extra


@dataclass(frozen=True, kw_only=True)
class Bleu:
    """BLEU-4 of a corpus, from 0 to 100, with what it is made of."""

    score: float
    precisions: tuple[float, ...]  # of 1, 2, 3, 4 words, in percent
    brevity_penalty: float
    result_words: int
    reference_words: int
    signature: str  # how it was computed, in sacrebleu's words

    def __str__(self) -> str:
        precisions = "/".join(f"{value:.1f}" for value in self.precisions)
        return (
            f"{self.score:.2f} ({precisions}, BP {self.brevity_penalty:.3f}, "
            f"{self.result_words} words, reference {self.reference_words})"
        )


def bleu_of_words(results: Sequence[str], references: Sequence[str]) -> Bleu:
    """Return BLEU of lines of words with blanks between them, whatever their case; nothing is split further.

    This is what papers on Multi30k call BLEU (`multi-bleu.perl -lc` on tokenised text).
    """
    return _measure(
        {"tokenize": "none", "lowercase": True, "smooth_method": "none", "force": True}, results, references
    )


def bleu_of_text(results: Sequence[str], references: Sequence[str]) -> Bleu:
    """Return BLEU of lines of plain text: sacrebleu's standard, which splits words itself and heeds case."""
    return _measure({}, results, references)


def _measure(settings: Mapping[str, Any], results: Sequence[str], references: Sequence[str]) -> Bleu:
    with needs_extra("text", "BLEU"):  # imported here: a training on images does without it
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
    """`BLEU` of lowercased words, 0 to 100; `exact`, the share of lines that are the truth to the letter."""

    values: Mapping[str, float]
    per_category: Mapping[str, Mapping[str, float]] = field(default_factory=dict, init=False)  # none


class LineMetrics:
    """A state that counts lines and adds. Lines are words with blanks between them."""

    def __init__(self) -> None:
        self.results: list[str] = []
        self.truth: list[str] = []

    def update(self, result: str, truth: str) -> None:
        """Count one line."""
        self.results.append(result)
        self.truth.append(truth)

    def merge(self, other: "LineMetrics") -> None:
        """Add the lines that another state has counted."""
        self.results += other.results
        self.truth += other.truth

    def compute(self) -> LineValues:
        """Return the values over all lines so far; there must be one."""
        same = sum(a == b for a, b in zip(self.results, self.truth, strict=True))
        bleu = bleu_of_words(self.results, self.truth).score
        return LineValues(values={"BLEU": bleu, "exact": same / len(self.results)})
