"""Words in other pieces each time: what the pieces are, how often, and that a stream of them goes on."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from unimask.config.text import TextConfig, TranslationExperiment
from unimask.config.training import TrainingConfig
from unimask.data.text.loader import training_batches
from unimask.data.text.pairs import read_lines
from unimask.data.text.subwords import VERSIONS, SubwordDropout
from unimask.data.text.vocabulary import Vocabulary, learn_vocabulary
from unimask.data.text.words import split_words
from unimask.errors import ConfigError
from unimask.training.text_data import TranslationData, open_translation

ALMOST_NEVER = 1e-12
WORDS = "low low lower lowest newer newer new wide wider widest"


@pytest.fixture(scope="module")
def folder(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first lines of real text, and a vocabulary that lacks some of their letters."""
    root = tmp_path_factory.mktemp("text")
    lines = {}
    for language in ("en", "de"):
        lines[language] = read_lines(shared_data / "multi30k_en_de" / f"val.{language}.gz")[:60]
        (root / f"train.{language}").write_text("\n".join(lines[language]) + "\n", encoding="utf-8")
    words = [split_words(line, "en") for line in lines["en"]]
    learned = learn_vocabulary(words, 300, lowercase=True)
    (root / "tokenizer.json").write_text(learned.to_json(), encoding="utf-8")
    return root


def vocabulary() -> Vocabulary:
    return learn_vocabulary([WORDS] * 5, 60, lowercase=False)


def test_without_a_dropout_pieces_are_those_of_the_library(folder: Path) -> None:
    known = vocabulary()
    dropout = SubwordDropout(known, ALMOST_NEVER, 0)
    lines = [WORDS, "lowly näher newest x"]
    for line in lines:
        assert dropout.encode(line, Random(0)) == known.encode(line, "en")
    data = opened(folder, ALMOST_NEVER)
    (unknown,) = data.vocabulary.encode("ü", "de")
    assert any(unknown in pair.target for pair in data.training)
    for version in (0, VERSIONS - 1):
        for one, plain in zip(data.versions[version], data.training, strict=True):
            assert one.source.tolist() == plain.source.tolist()
            assert one.target.tolist() == plain.target.tolist()
            assert one.name == plain.name


def test_a_share_of_the_joins_is_left_out() -> None:
    """A word of two letters is joined or not; other words keep their letters, too."""
    known = learn_vocabulary(["ab ab ab"], 8, lowercase=False)
    assert known.pieces(known.encode("ab", "en")) == ("ab",)
    found = Counter(len(SubwordDropout(known, 0.3, seed).encode("ab", Random(0))) for seed in range(2000))
    assert found[2] / 2000 == pytest.approx(0.3, abs=0.04)  # 4 standard deviations
    known = vocabulary()
    dropout = SubwordDropout(known, 0.5, 0)
    texts = {known.words(dropout.encode(WORDS, Random(number))) for number in range(20)}
    pieces = {tuple(dropout.encode(WORDS, Random(number))) for number in range(20)}
    assert texts == {WORDS}
    assert len(pieces) > 10


def test_the_same_seed_gives_the_same_pieces(folder: Path) -> None:
    first, again = opened(folder, 0.2), opened(folder, 0.2)
    for version in range(VERSIONS):
        for one, same in zip(first.versions[version], again.versions[version], strict=True):
            assert one.target.tolist() == same.target.tolist()
    seen = [[pair.target.tolist() for pair in first.versions[version]] for version in range(VERSIONS)]
    assert all(before != after for before, after in pairwise(seen))
    with pytest.raises(IndexError):
        first.versions[VERSIONS]


def test_versions_take_turns_and_a_stream_goes_on_where_it_stopped(folder: Path) -> None:
    versions = opened(folder, 0.2).versions
    options = {"budget": 400, "seed": 5, "rank": 0, "world": 1}
    count = 220  # batches, for all versions twice and more

    def batches(start: int, count: int) -> list[tuple[tuple[str, ...], list[list[int]]]]:
        stream = training_batches(versions, start_step=start, **options)
        return [(one.names, one.target.tolist()) for one in (next(stream) for _ in range(count))]

    whole = batches(0, count)
    names: Counter[str] = Counter(name for one, _ in whole for name in one)
    assert set(names) == {pair.name for pair in versions[0]}
    assert max(names.values()) - min(names.values()) == 1
    assert max(names.values()) > 2 * VERSIONS
    for start in (1, count // 2, count - 3):
        assert batches(start, 3) == whole[start : start + 3]


@pytest.mark.parametrize(
    ("written", "instead"),
    [('"type":"BPE"', '"type":"WordLevel"'), ('"type":"WhitespaceSplit"', '"type":"Whitespace"')],
)
def test_another_vocabulary_is_refused(written: str, instead: str) -> None:
    text = vocabulary().to_json()
    assert written in text

    class Other(Vocabulary):
        def to_json(self) -> str:
            return text.replace(written, instead)

    other = Other(text, lowercase=False, split=True)
    with pytest.raises(ConfigError, match=r"data\.subword_dropout: needs a vocabulary of byte pairs"):
        SubwordDropout(other, 0.1, 0)


def opened(folder: Path, rate: float) -> TranslationData:
    """The pairs of the folder, with its vocabulary."""
    experiment = TranslationExperiment(
        data=TextConfig(lowercase=True, vocabulary=300, subword_dropout=rate),
        training=TrainingConfig(evaluate_every=0),
    )
    return open_translation(folder, experiment, folder / "tokenizer.json")
