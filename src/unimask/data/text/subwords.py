"""Byte pairs that are joined by chance: a word comes in other pieces each time, and a model learns them all.

Source: Provilkov et al., BPE-Dropout (1910.13267), Sec. 3.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from random import Random

import torch

from unimask.data.text.loader import SequencePair
from unimask.data.text.vocabulary import SPECIAL, Vocabulary
from unimask.errors import ConfigError

VERSIONS = 8
"""So many versions of the pairs take turns, an epoch each, and so many of each word."""
KEY = "data.subword_dropout"


class SubwordDropout:
    """Encodes words with a vocabulary of byte pairs, and leaves out a share of the joins at random."""

    def __init__(self, vocabulary: Vocabulary, rate: float, seed: int) -> None:
        """`rate` is the probability with which a join is left out each time that it could be made.

        Raises:
            ConfigError: the vocabulary is of another kind.
        """
        known = json.loads(vocabulary.to_json())
        model, splits = known["model"], known["pre_tokenizer"] or {}
        plain = not any(model.get(key) for key in ("continuing_subword_prefix", "byte_fallback", "fuse_unk"))
        if model["type"] != "BPE" or splits.get("type") != "WhitespaceSplit" or not plain:
            raise ConfigError(KEY, "needs a vocabulary of byte pairs as a training here learns it")
        self._ids: dict[str, int] = model["vocab"]
        self._unknown = self._ids[model["unk_token"]]
        self._end = model["end_of_word_suffix"] or ""
        self._ranks = {(left, right): rank for rank, (left, right) in enumerate(map(_pair, model["merges"]))}
        self._rate = rate
        self._seed = seed
        self._versions: dict[str, tuple[tuple[int, ...], ...]] = {}

    def encode(self, words: str, choose: Random) -> list[int]:
        """Encode words with blanks between them, each in one of its versions."""
        return [token for word in words.split() for token in choose.choice(self._versions_of(word))]

    def _versions_of(self, word: str) -> tuple[tuple[int, ...], ...]:
        """Return `VERSIONS` encodings of a word, which depend on the word and the seed only."""
        if word not in self._versions:
            draw = Random(f"{self._seed} {word}")
            self._versions[word] = tuple(tuple(self._join(word, draw)) for _ in range(VERSIONS))
        return self._versions[word]

    def _join(self, word: str, draw: Random) -> list[int]:
        """Join letters as long as a join is left that is not left out; the most frequent pair is first."""
        pieces = [*word[:-1], word[-1] + self._end]
        while True:
            found = [
                (self._ranks[pair], place)
                for place, pair in enumerate(pairwise(pieces))
                if pair in self._ranks and draw.random() >= self._rate
            ]
            if not found:
                return [self._ids.get(piece, self._unknown) for piece in pieces]
            _, place = min(found)
            pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]


class SubwordVersions(Sequence[Sequence[SequencePair]]):
    """The versions of all pairs, made when they are asked for; one at a time is in memory.

    `lines` are the numbers of the lines, with the words of source and target and blanks between them.
    """

    def __init__(self, lines: Sequence[tuple[int, str, str]], dropout: SubwordDropout, seed: int) -> None:
        self._lines = lines
        self._dropout = dropout
        self._seed = seed
        self._last: tuple[int, list[SequencePair]] = (-1, [])

    def __len__(self) -> int:
        return VERSIONS

    def __getitem__(self, version: int) -> list[SequencePair]:  # type: ignore[override]  # no slices
        if not 0 <= version < VERSIONS:
            raise IndexError(version)
        if self._last[0] != version:
            choose = Random(f"{self._seed} {version}")
            self._last = (
                version,
                [
                    SequencePair(
                        source=torch.tensor([*self._dropout.encode(source, choose), SPECIAL.end]),
                        target=torch.tensor([*self._dropout.encode(target, choose), SPECIAL.end]),
                        line=line,
                    )
                    for line, source, target in self._lines
                ],
            )
        return self._last[1]


def _pair(merge: str | list[str]) -> tuple[str, str]:
    """Return a join's two pieces; older files have them in one text."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right
