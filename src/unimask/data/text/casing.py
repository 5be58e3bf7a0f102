"""Give lowercased words the capitals that text of their language has: "truecasing"."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from unimask.errors import DataError

_ENDS = frozenset(".!?")
_LONGEST_ENDING = 8
"""Letters of the longest ending that decides the case of an unknown word."""
_TRUST = 4
"""A neighbour says as much about a word as this many of its occurrences elsewhere."""
_SEEN = 2
"""A neighbour that a word had less often is not kept."""

_Forms = Mapping[str, Mapping[str, int]]


class Casing:
    """The case of words, learned from text: counts of their forms, alone and beside their neighbours.

    Each lowercased word takes the likeliest of the forms that it had. Where it had several (German `essen`
    and `Essen`), the words before and after it decide, as independent witnesses. A word that the text did not
    have takes the case that most words with its longest known ending have (`Eisfischerhütte` as `Hütte`),
    part by part where it has hyphens. The first word of a sentence begins with a capital if most lines do.

    Source: Lita et al., tRuEcasIng (ACL 2003), with neighbours in place of its trigram model and search.
    """

    def __init__(self, *, forms: _Forms, before: _Forms, after: _Forms, capital_starts: bool) -> None:
        """`forms`: lowercased word -> form -> count. `before` and `after`: the same by two lowercased words.

        Only words with several forms need `before` (keys are `PREVIOUS WORD`) and `after` (`WORD NEXT`).
        """
        self._forms = forms
        self._before = before
        self._after = after
        self._capital_starts = capital_starts
        self._endings = _shapes_of_endings(forms)

    def __bool__(self) -> bool:
        """Return whether it can change anything."""
        return bool(self._forms)

    def restore(self, words: str) -> str:
        """Return lowercased words with blanks between them, in the case that the text would have."""
        if not self:
            return words
        small = words.split()
        written = []
        for index, word in enumerate(small):
            previous = small[index - 1] if index else ""
            following = small[index + 1] if index + 1 < len(small) else ""
            form = self._form(word, previous, following)
            starts = self._capital_starts and (index == 0 or previous in _ENDS)
            written.append(_capital(form) if starts else form)
        return " ".join(written)

    def _form(self, word: str, previous: str, following: str) -> str:
        forms = self._forms.get(word)
        if forms is None and "-" in word:
            return "-".join(self._form(part, previous, "") for part in word.split("-"))
        if forms is None:
            return _capital(word) if self._looks_capital(word) else word
        if len(forms) == 1:
            return next(iter(forms))
        total = sum(forms.values())
        before = self._before.get(f"{previous} {word}", {})
        after = self._after.get(f"{word} {following}", {})

        def probability(form: str) -> float:
            alone = forms[form] / total
            return _blend(before, form, alone) * _blend(after, form, alone) / alone

        return max(forms, key=probability)

    def _looks_capital(self, word: str) -> bool:
        for length in range(min(_LONGEST_ENDING, len(word)), 1, -1):
            capital, small = self._endings.get(word[-length:], (0, 0))
            if capital != small:
                return capital > small
        return False

    def to_dict(self) -> dict[str, object]:
        """Return it as plain values, ready for JSON; `casing_from_dict` is the inverse."""
        return {
            "capital_starts": self._capital_starts,
            "forms": self._forms,
            "before": self._before,
            "after": self._after,
        }


def learn_casing(lines: Iterable[str]) -> Casing:
    """Learn the case of words from lines of split words (`split_words`), each as its author wrote it.

    The first word of a sentence says nothing about itself.
    """
    forms, before, after = (defaultdict[str, Counter[str]](Counter) for _ in range(3))
    starts: Counter[bool] = Counter()
    for line in lines:
        words = line.split()
        small = [word.lower() for word in words]
        if words and words[0][0].isalpha():
            starts[words[0][0].isupper()] += 1
        for index in range(1, len(words)):
            if small[index - 1] in _ENDS or not any(letter.isalpha() for letter in words[index]):
                continue
            following = small[index + 1] if index + 1 < len(small) else ""
            forms[small[index]][words[index]] += 1
            before[f"{small[index - 1]} {small[index]}"][words[index]] += 1
            after[f"{small[index]} {following}"][words[index]] += 1

    def tells(word: str, counts: Counter[str]) -> bool:
        return len(forms[word]) > 1 and counts.total() >= _SEEN

    return Casing(
        forms=forms,
        before={key: counts for key, counts in before.items() if tells(key.split(" ")[1], counts)},
        after={key: counts for key, counts in after.items() if tells(key.split(" ")[0], counts)},
        capital_starts=starts[True] > starts[False],
    )


def casing_from_dict(values: Any) -> Casing:
    """Return the casing of plain values.

    Raises:
        DataError: they are not what `Casing.to_dict` returns.
    """
    names = {"capital_starts", "forms", "before", "after"}
    if not isinstance(values, dict) or set(values) != names or not isinstance(values["capital_starts"], bool):
        raise DataError("casing.json", f"must be an object with the keys {', '.join(sorted(names))}")
    for name in sorted(names - {"capital_starts"}):
        table = values[name]
        if not isinstance(table, dict) or not all(_is_counts(counts) for counts in table.values()):
            raise DataError("casing.json", f"{name} must give words, each with its forms and their counts")
    return Casing(**values)


def _is_counts(counts: Any) -> bool:
    return (
        isinstance(counts, dict)
        and len(counts) > 0
        and all(type(count) is int and count > 0 for count in counts.values())
    )


def _blend(seen: Mapping[str, int], form: str, alone: float) -> float:
    """Return the share of a form beside a neighbour, drawn towards its share everywhere (`alone`)."""
    return (seen.get(form, 0) + _TRUST * alone) / (sum(seen.values()) + _TRUST)


def _shapes_of_endings(forms: _Forms) -> dict[str, tuple[int, int]]:
    """Return for each ending how many words with it begin with a capital, and how many do not."""
    shapes = defaultdict[str, list[int]](lambda: [0, 0])
    for word, counts in forms.items():
        likeliest = max(counts, key=lambda form: counts[form])
        for length in range(2, min(_LONGEST_ENDING, len(word)) + 1):
            shapes[word[-length:]][not likeliest[0].isupper()] += 1
    return {ending: (capital, small) for ending, (capital, small) in shapes.items()}


def _capital(word: str) -> str:
    return word[:1].upper() + word[1:]


AS_WRITTEN = Casing(forms={}, before={}, after={}, capital_starts=False)
"""Changes nothing: for models that write capitals themselves."""
