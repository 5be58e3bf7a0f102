"""Decodes sequences token by token: greedily, by sampling, or with beam search.

Up to rounding, the result for a source does not depend on the other sources in the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unimask.models.seq2seq import Progress, Seq2Seq
from unimask.structures import Special, Uniform

Choose = Callable[[Float[Tensor, "batch vocabulary"]], Int64[Tensor, " batch"]]
"""Chooses the next token of each sequence from its logits."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """The tokens decoded for one source, without begin and end token, and their score.

    The score is the log-probability of the tokens and the end token. In beam search it is divided by their
    number to the power of the length penalty.
    """

    tokens: tuple[int, ...]
    score: float


def likeliest(logits: Float[Tensor, "batch vocabulary"]) -> Int64[Tensor, " batch"]:
    """Return the token with the largest logit of each sequence; the first of several equal ones."""
    return logits.argmax(dim=1)


def sampler(uniform: Uniform, *, temperature: float = 1.0, top: int = 0) -> Choose:
    """Return a function that samples among the `top` likeliest tokens, with logits divided by `temperature`.

    `top` = 0 samples from all tokens. One random number is drawn per sequence and step.
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
    """Return, for each source, the tokens that `choose` selects one by one.

    A sequence ends with the end token, or at the limit of its source (a number of tokens).
    """
    progress = model.start(model.encode(source, source_valid))
    rows = torch.arange(len(source), device=source.device)  # the sources whose sequences have not ended
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
    """Return the logits with those of padding and begin token set to -infinity: neither is ever chosen."""
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
    """Return the best hypothesis of each source, by beam search with `beams` hypotheses per source.

    The score of a hypothesis is its log-probability divided by its number of tokens (with the end token) to
    the power `length_penalty`. The search for a source stops when `beams` of its hypotheses have ended and
    the best open one has no higher score than the worst of those, or at its limit, where open hypotheses
    count as ended.

    Source: Attention Is All You Need, Sec. 6.1; the rule for stopping as in Hugging Face transformers. The
    paper's penalty (Wu et al., 1609.08144, Eq. 14) is ((5 + length) / 6) ** 0.6.
    """
    search = _Search(model, source, source_valid, limits, special, beams, length_penalty)
    while len(search.open):
        search.advance()
    return search.results()


class _Search:
    """The hypotheses of a batch: `beams` rows for each source whose search goes on, the best first."""

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
        self.open = torch.arange(len(source), device=source.device)  # sources whose search goes on
        rows = self.open.repeat_interleave(beams)
        self.valid = source_valid[rows]
        self.progress: Progress = model.start(model.encode(source, source_valid)).rows(rows)
        # all hypotheses of a source are equal at first, so only one gets a finite score
        self.scores = torch.full((len(source), beams), -torch.inf, device=source.device)
        self.scores[:, 0] = 0.0
        self.tokens = torch.full((len(source), beams, 1), special.begin, device=source.device)
        self.ended: list[list[Written]] = [[] for _ in source]

    def advance(self) -> None:
        """Extend each hypothesis by a token, and keep the best `beams` hypotheses of each source."""
        states, progress = self.model.step(self.tokens[:, :, -1].flatten(), self.progress, self.valid)
        steps = _permitted(self.model.logits(states).float().log_softmax(dim=1), self.special)
        totals = self.scores[:, :, None] + steps.unflatten(0, (-1, self.beams))
        vocabulary = totals.shape[2]
        # twice as many as are kept, since at most half of them can have ended
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
        """Store the hypotheses that have ended among the best `beams` of each source."""
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
        """Return, per source, whether `beams` hypotheses have ended and no open one is better."""
        worth = (self.scores[:, 0] / length**self.length_penalty).tolist()
        settled = [
            len(ended) == self.beams and value <= ended[-1].score
            for value, ended in zip(worth, (self.ended[i] for i in self.open.tolist()), strict=True)
        ]
        return torch.tensor(settled, dtype=torch.bool, device=self.open.device)

    def results(self) -> list[Written]:
        """Return the best hypothesis of each source."""
        return [ended[0] for ended in self.ended]
