import pytest
import torch
from models.copying import CHANNELS, HEADS, SPECIAL, WORDS, copying_model, small_model, sources
from torch import Tensor

from unimask.models.decoding import beam_search, decode, sampler
from unimask.models.seq2seq import Seq2Seq

NORMS = pytest.mark.parametrize("norm", ["post", "pre"])


@NORMS
def test_later_tokens_leave_earlier_logits_alone(norm: str) -> None:
    model = small_model(norm=norm)
    source, valid = sources()
    tokens = torch.randint(3, WORDS, (5, 13), generator=torch.Generator().manual_seed(4))
    changed = tokens.clone()
    changed[:, 7:] = (tokens[:, 7:] + 5) % WORDS
    with torch.no_grad():
        before = model.logits(model(source, valid, tokens))
        after = model.logits(model(source, valid, changed))
    assert torch.equal(before[:, :7], after[:, :7])
    assert (before[:, 7:] - after[:, 7:]).abs().amax() > 0.1


@NORMS
def test_padding_is_not_seen(norm: str) -> None:
    model = small_model(norm=norm)
    source, valid = sources()
    tokens = torch.randint(3, WORDS, (5, 6), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        together = model(source, valid, tokens)
        other = model(source.masked_fill(~valid, 17), valid, tokens)
        alone = model(source[2:3, :7], valid[2:3, :7], tokens[2:3])
    assert torch.equal(together, other)
    torch.testing.assert_close(together[2:3], alone, rtol=1e-5, atol=1e-5)


@NORMS
def test_steps_give_what_a_whole_pass_gives(norm: str) -> None:
    model = small_model(norm=norm)
    source, valid = sources()
    tokens = torch.randint(3, WORDS, (5, 9), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        whole = model(source, valid, tokens)
        progress = model.start(model.encode(source, valid))
        states = []
        for column in tokens.unbind(1):
            state, progress = model.step(column, progress, valid)
            states.append(state)
    torch.testing.assert_close(torch.stack(states, dim=1), whole, rtol=1e-5, atol=1e-5)
    assert progress.place == 9


def slow_greedy(model: Seq2Seq, source: Tensor, valid: Tensor, limit: int) -> list[int]:
    """Without anything kept: the whole text is read anew for each token."""
    tokens = [SPECIAL.begin]
    while len(tokens) <= limit:
        logits = model.logits(model(source, valid, torch.tensor([tokens])))[0, -1]
        logits[[SPECIAL.padding, SPECIAL.begin]] = -torch.inf
        tokens.append(int(logits.argmax()))
        if tokens[-1] == SPECIAL.end:
            return tokens[1:-1]
    return tokens[1:]


def slow_beam(
    model: Seq2Seq, source: Tensor, valid: Tensor, limit: int, beams: int, penalty: float
) -> list[int]:
    """A beam as one would write it down, for one source, without anything kept."""
    going: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[tuple[float, list[int]]] = []
    for length in range(1, limit + 1):
        grown = []
        for score, text in going:
            read = torch.tensor([[SPECIAL.begin, *text]])
            steps = model.logits(model(source, valid, read))[0, -1].log_softmax(0)
            grown += [(score + float(steps[t]), [*text, t]) for t in range(2, WORDS)]
        grown.sort(key=lambda one: -one[0])
        best, going = grown[: 2 * beams], []
        for place, (score, text) in enumerate(best):
            if text[-1] == SPECIAL.end or length == limit:
                if place < beams:
                    ended.append((score / length**penalty, text))
            else:
                going.append((score, text))
        going = going[:beams]
        ended = sorted(ended, key=lambda one: -one[0])[:beams]
        if not going or (len(ended) == beams and going[0][0] / length**penalty <= ended[-1][0]):
            break
    return [token for token in ended[0][1] if token != SPECIAL.end]


def test_cached_decoding_gives_the_tokens_of_uncached() -> None:
    model = copying_model()
    source, valid = sources()
    limits = torch.tensor([14, 9, 14, 3, 12])
    found = decode(model, source, valid, limits, SPECIAL)
    with torch.no_grad():
        slow = [slow_greedy(model, source[i : i + 1], valid[i : i + 1], int(limits[i])) for i in range(5)]
    assert [list(one.tokens) for one in found] == slow
    assert len({len(text) for text in slow}) > 2


@pytest.mark.parametrize(("beams", "penalty"), [(1, 1.0), (3, 0.6), (4, 1.0), (5, 2.0)])
def test_a_beam_equals_a_slow_one(beams: int, penalty: float) -> None:
    model = copying_model()
    source, valid = sources()
    limits = torch.tensor([9, 8, 7, 4, 9])
    found = beam_search(model, source, valid, limits, SPECIAL, beams=beams, length_penalty=penalty)
    with torch.no_grad():
        for index, one in enumerate(found):
            row = slice(index, index + 1)
            assert list(one.tokens) == slow_beam(
                model, source[row], valid[row], int(limits[index]), beams, penalty
            )


def test_a_source_gives_the_same_alone_and_in_a_batch() -> None:
    model = copying_model()
    source, valid = sources()
    limits = torch.tensor([14, 9, 13, 3, 12])
    beams = beam_search(model, source, valid, limits, SPECIAL, beams=4, length_penalty=1.0)
    greedy = decode(model, source, valid, limits, SPECIAL)
    for index in range(5):
        row, length = slice(index, index + 1), int(valid[index].sum())
        alone = (model, source[row, :length], valid[row, :length], limits[row], SPECIAL)
        assert beam_search(*alone, beams=4, length_penalty=1.0)[0].tokens == beams[index].tokens
        assert decode(*alone)[0].tokens == greedy[index].tokens


def test_sampling_follows_the_probabilities() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(4000, -1)
    generator = torch.Generator().manual_seed(1)

    def uniform(shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=generator)

    shares = torch.bincount(sampler(uniform)(logits), minlength=4) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.15, 0.05]), rtol=0, atol=0.03)
    few = torch.bincount(sampler(uniform, top=2)(logits), minlength=4) / 4000
    torch.testing.assert_close(few, torch.tensor([0.625, 0.375, 0.0, 0.0]), rtol=0, atol=0.03)
    cold = sampler(uniform, temperature=0.01)(logits)
    assert bool((cold == 0).all())


def test_vectors_can_be_the_source() -> None:
    model = small_model(source="vectors", source_features=7)
    _, valid = sources()
    vectors = torch.randn(5, 11, 7, generator=torch.Generator().manual_seed(3))
    tokens = torch.randint(3, WORDS, (5, 6), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        together = model(vectors, valid, tokens)
        alone = model(vectors[1:2, :3], valid[1:2, :3], tokens[1:2])
        other = model(vectors * 1.5, valid, tokens)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-5, atol=1e-5)
    assert float((together - other).abs().max()) > 0.1
    limits = torch.full((5,), 9)
    assert len(decode(model, vectors, valid, limits, SPECIAL)) == 5


def test_maps_show_who_looks_where() -> None:
    model = small_model()
    source, valid = sources()
    tokens = torch.randint(3, WORDS, (5, 6), generator=torch.Generator().manual_seed(4))
    maps = model.attention_maps(source, valid, tokens)
    assert [tuple(one.shape) for one in maps.encoder] == [(5, HEADS, 11, 11)] * 2
    assert [tuple(one.shape) for one in maps.decoder] == [(5, HEADS, 6, 6)] * 2
    assert [tuple(one.shape) for one in maps.cross] == [(5, HEADS, 6, 11)] * 2
    for one in (*maps.encoder, *maps.decoder, *maps.cross):
        torch.testing.assert_close(one.sum(-1), torch.ones_like(one.sum(-1)))
    assert all(float(one.triu(1).abs().max()) == 0 for one in maps.decoder)
    unseen = ~valid[:, None, None].expand(5, HEADS, 6, 11)
    assert all(float(one[unseen].abs().max()) == 0 for one in maps.cross)
    assert not any(module._forward_pre_hooks for module in model.modules())  # nothing is left behind


def test_embeddings_are_one_matrix() -> None:
    model = small_model()
    names = [name for name, value in model.state_dict().items() if WORDS in value.shape]
    assert names == ["embedding.weight", "embedding.bias"]
    tokens = torch.tensor([[5]])
    torch.testing.assert_close(model.embedding(tokens)[0, 0], model.embedding.weight[5] * CHANNELS**0.5)
