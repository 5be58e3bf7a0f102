"""Writing tokens one at a time: greedy, by sampling, or with a beam.

Every function gives, for each source of a batch, its tokens without begin and end token. What comes out for a
source does not depend on the others in the batch, but for rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unimask.models.seq2seq import Progress, Seq2Seq
from unimask.structures import Special, Uniform

Choose = Callable[[Float[Tensor, "batch vocabulary"]], Int64[Tensor, " batch"]]
"""Picks the next token of each sequence from its logits."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written for one source: tokens without begin and end, and their log-probability, end included.

    With a beam the latter is divided by the length to the power of the length penalty.
    """

    tokens: tuple[int, ...]
    score: float


def likeliest(logits: Float[Tensor, "batch vocabulary"]) -> Int64[Tensor, " batch"]:
    """Return the likeliest token; the first one of equals."""
    return logits.argmax(dim=1)


def sampler(uniform: Uniform, *, temperature: float = 1.0, top: int = 0) -> Choose:
    """Draws tokens by their probability, after division of logits by `temperature`, from the `top` likeliest.

    `top` = 0: out of all. One number is drawn for each sequence and step.
    """

    def choose(logits: Float[Tensor, "batch vocabulary"]) -> Int64[Tensor, " batch"]:
        count = logits.shape[1] if top == 0 else min(top, logits.shape[1])
        values, tokens = (logits / temperature).topk(count, dim=1)
        shares = values.softmax(dim=1).cumsum(dim=1)
        drawn = uniform((len(logits),))[:, None] * shares[:, -1:]
        place = (shares <= drawn).sum(dim=1, keepdim=True).clamp(max=count - 1)
        return tokens.gather(1, place)[:, 0]

    return choose


@torch.inference_mode()
def decode(
    model: Seq2Seq,
    source: Int64[Tensor, "batch places"] | Float[Tensor, "batch places features"],
    source_valid: Bool[Tensor, "batch places"],
    limits: Int64[Tensor, " batch"],
    special: Special,
    choose: Choose = likeliest,
) -> list[Written]:
    """One token after the other, as `choose` says, until the end token or the limit of the source."""
    progress = model.start(model.encode(source, source_valid))
    rows = torch.arange(len(source), device=source.device)  # the source of each sequence not at its end
    newest = torch.full_like(rows, special.begin)
    written: list[list[int]] = [[] for _ in rows]
    scores = [0.0] * len(written)
    while len(rows):
        states, progress = model.step(newest, progress, source_valid[rows])
        logits = model.logits(states).float()
        newest = choose(_permitted(logits, special))
        steps = logits.log_softmax(dim=1).gather(1, newest[:, None])[:, 0]
        for row, token, score in zip(rows.tolist(), newest.tolist(), steps.tolist(), strict=True):
            scores[row] += score
            if token != special.end:
                written[row].append(token)
        going = (newest != special.end) & (progress.place < limits[rows])
        if not bool(going.all()):
            kept = going.nonzero()[:, 0]
            rows, newest, progress = rows[kept], newest[kept], progress.rows(kept)
    return [Written(tokens=tuple(t), score=s) for t, s in zip(written, scores, strict=True)]


def _permitted(
    logits: Float[Tensor, "rows vocabulary"], special: Special
) -> Float[Tensor, "rows vocabulary"]:
    """Padding is never written, nor is the begin token. (Probabilities of the others stay as they are.)"""
    logits = logits.clone()
    logits[:, [special.padding, special.begin]] = -torch.inf
    return logits


@torch.inference_mode()
def beam_search(
    model: Seq2Seq,
    source: Int64[Tensor, "batch places"] | Float[Tensor, "batch places features"],
    source_valid: Bool[Tensor, "batch places"],
    limits: Int64[Tensor, " batch"],
    special: Special,
    *,
    beams: int,
    length_penalty: float,
) -> list[Written]:
    """Return the best hypothesis of each source, of which `beams` are followed at a time.

    A hypothesis is worth its log-probability divided by its number of tokens (with the end token) to the
    power `length_penalty`. The search for a source ends when `beams` of its hypotheses have ended and the
    best open one is worth no more than the worst of them, or at its limit, where open ones count as ended.

    Source: Attention Is All You Need, Sec. 6.1; when it ends, as in Hugging Face transformers. The paper's
    penalty (Wu et al., 1609.08144, Eq. 14) is ((5 + length) / 6) ** 0.6.
    """
    search = _Search(model, source, source_valid, limits, special, beams, length_penalty)
    while len(search.open):
        search.advance()
    return search.results()


class _Search:
    """The hypotheses of a batch: `beams` rows for each source that is still open, the best first."""

    def __init__(
        self,
        model: Seq2Seq,
        source: Tensor,
        source_valid: Bool[Tensor, "batch places"],
        limits: Int64[Tensor, " batch"],
        special: Special,
        beams: int,
        length_penalty: float,
    ) -> None:
        self.model, self.special, self.beams, self.length_penalty = model, special, beams, length_penalty
        self.limits = limits
        self.open = torch.arange(len(source), device=source.device)  # sources with open hypotheses
        rows = self.open.repeat_interleave(beams)
        self.valid = source_valid[rows]
        self.progress: Progress = model.start(model.encode(source, source_valid)).rows(rows)
        # all hypotheses of a source are alike at first: only one of them counts
        self.scores = torch.full((len(source), beams), -torch.inf, device=source.device)
        self.scores[:, 0] = 0.0
        self.tokens = torch.full((len(source), beams, 1), special.begin, device=source.device)
        self.ended: list[list[Written]] = [[] for _ in source]

    def advance(self) -> None:
        """Each hypothesis grows by a token; the best `beams` of each source stay."""
        states, progress = self.model.step(self.tokens[:, :, -1].flatten(), self.progress, self.valid)
        steps = _permitted(self.model.logits(states).float().log_softmax(dim=1), self.special)
        totals = self.scores[:, :, None] + steps.unflatten(0, (-1, self.beams))
        vocabulary = totals.shape[2]
        # twice as many as are kept: at most half of them can have ended
        best, places = totals.flatten(1).topk(min(2 * self.beams, self.beams * vocabulary), dim=1)
        parents, tokens = places // vocabulary, places % vocabulary
        length = progress.place
        at_limit = length >= self.limits[self.open]
        ends = (tokens == self.special.end) | at_limit[:, None]
        self._collect(best, parents, tokens, ends, length)
        order = ends.long().argsort(dim=1, stable=True)[:, : self.beams]  # open ones first, the best first
        parents, tokens, self.scores = (x.gather(1, order) for x in (parents, tokens, best))
        grown = self.tokens.gather(1, parents[:, :, None].expand(-1, -1, length))
        self.tokens = torch.cat((grown, tokens[:, :, None]), dim=2)
        going = (~at_limit & ~self._settled(length)).nonzero()[:, 0]
        rows = (going[:, None] * self.beams + parents[going]).flatten()
        self.progress, self.valid = progress.rows(rows), self.valid[rows]
        self.open, self.scores, self.tokens = self.open[going], self.scores[going], self.tokens[going]

    def _collect(self, best: Tensor, parents: Tensor, tokens: Tensor, ends: Tensor, length: int) -> None:
        """Takes what has ended among the best `beams` of each source."""
        possible = ends & (best > -torch.inf)
        for index, place in possible[:, : self.beams].nonzero().tolist():
            text = [*self.tokens[index, parents[index, place], 1:].tolist(), int(tokens[index, place])]
            if text[-1] == self.special.end:
                text.pop()
            worth = float(best[index, place]) / length**self.length_penalty
            ended = self.ended[int(self.open[index])]
            ended.append(Written(tokens=tuple(text), score=worth))
            ended.sort(key=lambda one: -one.score)
            del ended[self.beams :]

    def _settled(self, length: int) -> Bool[Tensor, " sources"]:
        """Return whether no open hypothesis of a source can become better than the worst that has ended."""
        worth = (self.scores[:, 0] / length**self.length_penalty).tolist()
        settled = [
            len(ended) == self.beams and value <= ended[-1].score
            for value, ended in zip(worth, (self.ended[i] for i in self.open.tolist()), strict=True)
        ]
        return torch.tensor(settled, dtype=torch.bool, device=self.open.device)

    def results(self) -> list[Written]:
        """Return the best of each source."""
        return [ended[0] for ended in self.ended]
