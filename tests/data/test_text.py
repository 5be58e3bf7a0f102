import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unimask.config.text import TextConfig
from unimask.data.text.casing import AS_WRITTEN, casing_from_dict, learn_casing
from unimask.data.text.glyphs import CHARACTERS, FEATURES, glyph_data, render, with_vocabulary
from unimask.data.text.loader import collate, encode_pairs, token_batches, training_batches
from unimask.data.text.pairs import Pairs, decode_lines, read_lines, read_pairs
from unimask.data.text.vocabulary import SPECIAL, Vocabulary, learn_vocabulary
from unimask.data.text.words import join_words, split_words, unescape
from unimask.errors import DataError

LINES = ["Ein Hund läuft.", "Zwei Hunde laufen im Schnee.", 'Ein "Hund", der bellt!', "A man's dog runs."]


def vocabulary(lowercase: bool = False) -> Vocabulary:
    return learn_vocabulary([split_words(line, "de") for line in LINES], 90, lowercase=lowercase)


@pytest.mark.parametrize(
    ("line", "language", "words"),
    [
        ("Two young, White males.", "en", "Two young , White males ."),
        ("A man's dog; it isn't his!", "en", "A man 's dog ; it isn 't his !"),
        ("the dogs' bowl", "en", "the dogs ' bowl"),
        ("Auf dem Schild steht: \u201eHalt\u201c.", "de", 'Auf dem Schild steht : " Halt " .'),
        ("Um 1,5 Meter, bzw. 2 U-Bahn \u2013 ja", "de", "Um 1,5 Meter , bzw. 2 U-Bahn - ja"),
        ("well ... no", "en", "well ... no"),
        ("  \t ", "en", ""),
    ],
)
def test_words_are_split(line: str, language: str, words: str) -> None:
    assert split_words(line, language) == words


def test_split_lines_are_joined_as_they_were() -> None:
    for line in LINES:
        assert join_words(split_words(line, "en")) == line
    assert unescape("man &apos;s &quot; a &amp; b &quot;") == 'man \'s " a & b "'


@pytest.mark.parametrize(("split", "most"), [("val", 0.002), ("test_2016_flickr", 0.002), ("train", 0.004)])
def test_words_are_those_of_the_published_measure(shared_data: Path, split: str, most: float) -> None:
    folder = shared_data / "multi30k_en_de"
    for language in ("en", "de"):
        lines = read_lines(folder / f"{split}.{language}.gz")[:3000]
        words = read_lines(folder / f"{split}.lc.norm.tok.{language}.gz")[:3000]
        other = [
            a for a, b in zip(lines, words, strict=True) if split_words(a, language).lower() != unescape(b)
        ]
        assert len(other) <= most * len(lines)


def test_a_vocabulary_gives_lines_back() -> None:
    known = vocabulary()
    for line in LINES:
        assert known.line(known.encode(line, "en")) == line
    assert known.encode_all(LINES, "en") == [known.encode(line, "en") for line in LINES]
    again = Vocabulary(known.to_json(), lowercase=False, split=True)
    assert again.encode(LINES[1], "de") == known.encode(LINES[1], "de")
    assert known.encode("", "de") == []
    assert vocabulary(lowercase=True).line(vocabulary(lowercase=True).encode("EIN HUND", "de")) == "ein hund"


CASED = [
    "Ein Mann geht zum Essen .",
    "Zwei Hunde essen im Schnee . Die Jungen lachen .",
    "Die jungen Hunde laufen mit einem Jungen im Park .",
    "Sie essen in der Hütte , ein VW-Bus hält .",
    "Kinder essen im VW-Bus auf dem U-Bahnhof .",
]


@pytest.mark.parametrize(
    ("words", "cased"),
    [
        ("ein mann geht zum essen .", "Ein Mann geht zum Essen ."),  # the word before decides
        ("hunde essen im schnee .", "Hunde essen im Schnee ."),
        ("ein hund im park . ein bus im schnee .", "Ein Hund im Park . Ein Bus im Schnee ."),
        ("die hunde in der eisfischerhütte .", "Die Hunde in der Eisfischerhütte ."),  # as Hütte
        ("sie lachen im vw-park .", "Sie lachen im VW-Park ."),  # part by part
        ("mit 2 xy ?", "Mit 2 xy ?"),
        ("", ""),
    ],
)
def test_words_get_the_case_that_text_has(words: str, cased: str) -> None:
    casing = learn_casing([*CASED, *CASED, "Ein VW und ein Hund halten ."])
    assert casing.restore(words) == cased
    again = casing_from_dict(json.loads(json.dumps(casing.to_dict())))
    assert again.restore(words) == cased


def test_the_case_of_a_language_without_capitals_is_left() -> None:
    assert learn_casing(["zwei hunde laufen .", "ein mann"]).restore("ein hund .") == "ein hund ."
    assert not AS_WRITTEN
    assert AS_WRITTEN.restore("ein  hund") == "ein  hund"


def test_most_words_of_other_lines_get_their_case_back(shared_data: Path) -> None:
    folder = shared_data / "multi30k_en_de"
    casing = learn_casing(split_words(line, "de") for line in read_lines(folder / "train.de.gz"))
    lines = [split_words(line, "de") for line in read_lines(folder / "val.de.gz")]
    pairs = [
        pair
        for line in lines
        for pair in zip(casing.restore(line.lower()).split(), line.split(), strict=True)
    ]
    assert sum(restored == written for restored, written in pairs) > 0.99 * len(pairs)


@pytest.mark.parametrize("broken", [[], {"forms": {}}, {"forms": {"a": {}}}, {"forms": {"a": {"A": 0.5}}}])
def test_what_is_no_casing_is_refused(broken: object) -> None:
    whole = AS_WRITTEN.to_dict()
    values = whole | broken if isinstance(broken, dict) and broken["forms"] else broken
    with pytest.raises(DataError, match=r"casing\.json: "):
        casing_from_dict(values)


def test_unknown_letters_are_named() -> None:
    assert vocabulary().unknown("Ein \u6f22 Hund \u6f22\u5b57.", "de") == ("\u6f22", "\u5b57")
    assert vocabulary().unknown(LINES[0], "de") == ()


def test_what_is_no_vocabulary_is_refused() -> None:
    with pytest.raises(DataError, match="cannot be read"):
        Vocabulary("{}", lowercase=False, split=True)


def write_pairs(folder: Path, source: bytes, target: bytes) -> None:
    (folder / "train.en").write_bytes(source)
    (folder / "train.de").write_bytes(target)


def test_pairs_are_lines(tmp_path: Path) -> None:
    write_pairs(tmp_path, b"\xef\xbb\xbfa\r\n\nb\xe2\x80\xa8c", "ä\n\nB'c\n".encode())
    pairs = read_pairs(tmp_path, "train", "en", "de")
    assert pairs.sources == ("a", "", "b\u2028c")  # other ends of lines are none
    assert pairs.targets == ("ä", "", "B'c")
    assert pairs.words == ("ä", "", "b ' c")


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (b"a\nb\n", b"A\n", r"train.de: has 1 lines, train.en has 2"),
        (b"a\nb\xe4\n", b"A\nB\n", r"train.en: line 2 is not UTF-8 \(byte 2: 0xe4\)"),
    ],
)
def test_bad_pairs_are_named(tmp_path: Path, source: bytes, target: bytes, message: str) -> None:
    write_pairs(tmp_path, source, target)
    with pytest.raises(DataError, match=message):
        read_pairs(tmp_path, "train", "en", "de")


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no folder"):
        read_pairs(tmp_path / "none", "train", "en", "de")
    (tmp_path / "other.txt").touch()
    with pytest.raises(DataError, match=r"train\.en.*the folder holds other.txt"):
        read_pairs(tmp_path, "train", "en", "de")
    (tmp_path / "train.en.gz").write_bytes(b"no gzip")
    (tmp_path / "train.de").touch()
    with pytest.raises(DataError, match=r"train\.en\.gz: cannot be read"):
        read_pairs(tmp_path, "train", "en", "de")


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]))))
def test_every_line_stays_a_line(lines: list[str]) -> None:
    content = "".join(f"{line}\n" for line in lines).encode()
    assert len(decode_lines(content, "test")) == len(lines)


def test_batches_are_full_and_leave_nothing_out() -> None:
    generator = torch.Generator().manual_seed(3)
    lengths = [tuple(torch.randint(1, 31, (2,), generator=generator).tolist()) for _ in range(211)]
    batches = token_batches(lengths, 97, torch.Generator().manual_seed(1))
    assert sorted(index for batch in batches for index in batch) == list(range(211))
    cells = [len(batch) * max(max(lengths[i]) for i in batch) for batch in batches]
    assert max(cells) <= 97
    assert sum(cells) < 1.2 * sum(max(pair) for pair in lengths)
    others = token_batches(lengths, 97, torch.Generator().manual_seed(2))
    assert sorted(map(len, others)) == sorted(map(len, batches))
    assert others != batches
    assert token_batches([(200, 3), (1, 1)], 97, generator) in ([[0], [1]], [[1], [0]])


def test_a_stream_goes_on_where_it_stopped_and_processes_share_it() -> None:
    pairs = glyph_data(23, 1, longest=4).training
    options = {"budget": 150, "seed": 5}

    def names(count: int, **where: int) -> list[tuple[str, ...]]:
        stream = training_batches(pairs, **options, **where)
        return [next(stream).names for _ in range(count)]

    whole = names(24, start_step=0, rank=0, world=1)
    assert names(9, start_step=15, rank=0, world=1) == whole[15:]
    both = [names(12, start_step=0, rank=rank, world=2) for rank in (0, 1)]
    assert [name for pair in zip(*both, strict=True) for name in pair] == whole


def test_padding_is_at_the_ends() -> None:
    known = vocabulary()
    pairs = Pairs(sources=tuple(LINES), targets=tuple(LINES), words=tuple(LINES))
    encoded = encode_pairs(pairs, known, TextConfig(longest=40))
    batch = collate(encoded)
    for row, pair in enumerate(encoded):
        length = len(pair.target)
        assert torch.equal(batch.target[row, :length], pair.target)
        assert int(pair.target[-1]) == SPECIAL.end
        assert batch.target_valid[row].tolist() == [i < length for i in range(batch.target.shape[1])]
        assert int(batch.target[row, length:].sum()) == 0
    with pytest.raises(DataError, match="no pair of lines to learn from"):
        encode_pairs(pairs, known, TextConfig(longest=2))


def test_glyphs_are_rendered() -> None:
    vectors = render("41", 0)
    assert vectors.shape[1] == FEATURES
    assert float(vectors.max()) > 0.7
    assert torch.equal(vectors, render("41", 0))
    assert not torch.equal(vectors, render("41", 1))
    data = glyph_data(5, 3)
    assert set("".join(data.truth)) <= {*CHARACTERS, " "}
    other = with_vocabulary(data, learn_vocabulary([" ".join(reversed(CHARACTERS))], 80, lowercase=False))
    for pair, same in zip(data.training, other.training, strict=True):
        assert data.vocabulary.words(pair.target.tolist()) == other.vocabulary.words(same.target.tolist())
