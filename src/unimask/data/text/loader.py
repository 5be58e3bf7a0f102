"""Batches of sequences of about the same length, filled up to a number of tokens."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unimask.config.text import TextConfig
from unimask.data.seeds import seeded_generator
from unimask.data.text.pairs import Pairs
from unimask.data.text.vocabulary import SPECIAL, Vocabulary
from unimask.errors import DataError
from unimask.structures import SequenceBatch


@dataclass(frozen=True, kw_only=True)
class SequencePair:
    """One source with its target, which ends with the end token; `name` is for messages."""

    source: Int64[Tensor, " places"] | Float[Tensor, "places features"]
    target: Int64[Tensor, " tokens"]
    name: str

    @property
    def lengths(self) -> tuple[int, int]:
        """The lengths of source and target."""
        return len(self.source), len(self.target)


def encode_pairs(pairs: Pairs, vocabulary: Vocabulary, config: TextConfig) -> list[SequencePair]:
    """Encode pairs as tokens, without those that have an empty side or are longer than `data.longest`.

    Raises:
        DataError: nothing is left.
    """
    sources = vocabulary.encode_all(pairs.sources, config.source_language)
    targets = vocabulary.encode_all(pairs.targets, config.target_language)
    kept = [
        SequencePair(
            source=torch.tensor([*source, SPECIAL.end]),
            target=torch.tensor([*target, SPECIAL.end]),
            name=f"line {number}",
        )
        for number, (source, target) in enumerate(zip(sources, targets, strict=True), start=1)
        if source and target and max(len(source), len(target)) < config.longest
    ]
    if not kept:
        raise DataError("data", "holds no pair of lines to learn from (all are empty or too long)")
    return kept


def token_batches(
    lengths: Sequence[tuple[int, int]], budget: int, generator: torch.Generator
) -> list[list[int]]:
    """Group indices into batches of about equal length, in random order.

    The number of sequences times the longest one, source or target, stays within `budget`; a longer one is
    alone. `generator` changes the order of batches and of sequences of equal length, not the batches' sizes.
    """
    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    in_order = sorted(shuffled, key=lambda index: (max(lengths[index]), lengths[index]))
    batches: list[list[int]] = []
    for index in in_order:
        longest = max(lengths[index])  # of the batch too, because lengths rise
        if batches and (len(batches[-1]) + 1) * longest <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]


def training_batches(
    pairs: Sequence[SequencePair], *, budget: int, seed: int, start_step: int, rank: int, world: int
) -> Generator[SequenceBatch, None, None]:
    """Yield batches without end, each epoch in a new order that depends on `seed` and the epoch only.

    Batches are dealt to `world` processes in turn; the first `start_step` of this process are skipped.
    """
    lengths = [pair.lengths for pair in pairs]
    position = start_step * world + rank
    count = len(token_batches(lengths, budget, seeded_generator(seed, 0)))
    epoch, batches = -1, list[list[int]]()
    while True:
        if position // count != epoch:
            epoch = position // count
            batches = token_batches(lengths, budget, seeded_generator(seed, epoch))
        yield collate([pairs[index] for index in batches[position % count]])
        position += world


def collate(pairs: Sequence[SequencePair]) -> SequenceBatch:
    """One batch, padded at the ends with 0."""
    source, source_valid = pad([pair.source for pair in pairs])
    target, target_valid = pad([pair.target for pair in pairs])
    return SequenceBatch(
        source=source,
        source_valid=source_valid,
        target=target,
        target_valid=target_valid,
        names=tuple(pair.name for pair in pairs),
    )


def pad(sequences: Sequence[Tensor]) -> tuple[Tensor, Bool[Tensor, "batch longest"]]:
    """Pad sequences at their ends with 0; also return which places are valid."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    padded = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True)
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]
