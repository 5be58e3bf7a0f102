"""The evaluation of a translator on lines whose translation is known."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from unimask.config.text import DecodingConfig
from unimask.data.text.pairs import Pairs
from unimask.errors import DataError
from unimask.files import write_json
from unimask.inference.translator import Translator
from unimask.metrics.bleu import Bleu, bleu_of_text, bleu_of_words

LINES_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class LineEvaluation:
    """What was measured, and what was written."""

    words: Bleu  # of lowercased words, against the data set's own words where it ships them: as published
    text: Bleu  # sacrebleu's standard, of ordinary lines, case-sensitive
    exact: float  # share of lines whose words are exactly those of the truth
    lines: tuple[str, ...]
    seconds: float  # for translating

    def values(self) -> dict[str, float]:
        """Return flat names and their values."""
        return {
            "BLEU": self.words.score,
            "BLEU_cased": self.text.score,
            "exact": self.exact,
            "brevity_penalty": self.words.brevity_penalty,
            "lines_per_second": len(self.lines) / self.seconds,
        }

    def to_json(self) -> dict[str, object]:
        """Return the values and what sacrebleu measured, ready for JSON."""
        return {**self.values(), "words": str(self.words), "signature": self.text.signature}

    def save(self, path: str | Path) -> None:
        """Write `to_json` and all lines as JSON; the file is complete when it appears.

        Raises:
            DataError: the file cannot be written.
        """
        try:
            write_json(Path(path), {**self.to_json(), "lines": self.lines})
        except OSError as error:
            raise DataError(path, f"cannot be written ({error.strerror or error})") from None


def evaluate_lines(
    translator: Translator,
    pairs: Pairs,
    decoding: DecodingConfig,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> LineEvaluation:
    """Return the BLEU of a translator on pairs.

    Raises:
        DataError: there are no pairs.
    """
    if not len(pairs):
        raise DataError("data", "there is no line to measure on")
    start = time.perf_counter()
    lines: list[str] = []
    words: list[str] = []
    for first in range(0, len(pairs), LINES_AT_ONCE):
        found = translator.translate_all(pairs.sources[first : first + LINES_AT_ONCE], decoding)
        lines += found.lines
        words += found.words
        progress(len(lines), len(pairs))
    seconds = time.perf_counter() - start
    same = sum(a.lower() == b.lower() for a, b in zip(words, pairs.words, strict=True))
    return LineEvaluation(
        words=bleu_of_words(words, pairs.words),
        text=bleu_of_text(lines, pairs.targets),
        exact=same / len(pairs),
        lines=tuple(lines),
        seconds=seconds,
    )
