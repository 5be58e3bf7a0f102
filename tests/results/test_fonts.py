import logging
from collections.abc import Iterator

import pytest
from PIL import ImageFont

from unimask.results import fonts
from unimask.results.fonts import drawable, label_font

JAPANESE = "\u7d30\u80de\u6838"


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The font files of this machine, to be filled; what is kept of others is forgotten."""
    found: list[str] = []

    def forget() -> None:
        for cached in (fonts._file_for, fonts._font_of, fonts._warn):
            cached.cache_clear()

    forget()
    monkeypatch.setattr(fonts, "_files", lambda: tuple(found))
    yield found
    forget()


def test_pillows_own_font_draws_what_it_has(files: list[str]) -> None:
    files.append("is never opened.ttf")
    assert drawable("nucleus, 12", 3) == "nucleus, 12"
    ours, own = label_font(20, "nucleus"), ImageFont.load_default(20)
    assert bytes(ours.getmask("nucleus")) == bytes(own.getmask("nucleus"))


def test_a_name_that_no_font_has_is_its_number_and_said_once(
    files: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    files.append("no font.ttf")
    with caplog.at_level(logging.WARNING):
        assert [drawable(JAPANESE, 3) for _ in range(2)] == ["#3", "#3"]
    (record,) = caplog.records
    assert f"the letters of {JAPANESE!r}: it is drawn as #3" in record.getMessage()


def test_the_first_font_that_has_every_letter_is_taken(
    files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = {"latin.ttf": "ab", "half.ttf": JAPANESE[:2], "whole.ttf": JAPANESE + "ab"}
    files += letters
    made = {file: ImageFont.load_default(10 + number) for number, file in enumerate(letters)}
    has = {id(font): set(letters[file]) for file, font in made.items()}
    truetype = ImageFont.truetype  # Pillow's own font needs it
    monkeypatch.setattr(
        ImageFont, "truetype", lambda path, *rest, **more: made.get(path) or truetype(path, *rest, **more)
    )
    monkeypatch.setattr(fonts, "_has", lambda font, wanted: wanted <= has.get(id(font), set()))
    assert label_font(12, JAPANESE) is made["whole.ttf"]
    assert label_font(12, JAPANESE[:1]) is made["half.ttf"]
    assert id(label_font(12, "ab")) not in has  # plain letters need no other than Pillow's own
    assert drawable(JAPANESE, 0) == JAPANESE


def test_letters_that_a_font_lacks_are_told_from_others() -> None:
    own = ImageFont.load_default(16)
    assert fonts._has(own, frozenset("aZ9"))
    assert not fonts._has(own, frozenset(JAPANESE))
