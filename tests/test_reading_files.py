import codecs
import os
from pathlib import Path

import pytest

from unimask.errors import DataError, WeightsError
from unimask.files import read_bytes, read_json, read_text


@pytest.mark.parametrize("error", [DataError, WeightsError])
def test_what_is_no_regular_file_is_named(
    tmp_path: Path, error: type[DataError] | type[WeightsError]
) -> None:
    pipe, loop = tmp_path / "pipe", tmp_path / "loop"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    for path, reason in (
        (tmp_path, "is a folder"),
        (pipe, "no regular file"),
        (Path("/dev/zero"), "no regular file"),
        (tmp_path / "nothing", "no such file"),
        (loop, "cannot be read .*symbolic links"),
        (tmp_path / ("a" * 300), "cannot be read .*too long"),
        (tmp_path / "a\0b", "cannot be read .*null"),
    ):
        with pytest.raises(error, match=reason):
            read_bytes(path, error)


def test_a_file_larger_than_what_is_read_is_refused_before(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # takes no space
    with pytest.raises(DataError, match="has 1,099,511,627,776 bytes"):
        read_bytes(path)


@pytest.mark.parametrize(
    "content",
    [
        b"gr\xc3\xbcn",
        codecs.BOM_UTF8 + b"gr\xc3\xbcn",
        codecs.BOM_UTF16_LE + "grün".encode("utf-16-le"),
        codecs.BOM_UTF16_BE + "grün".encode("utf-16-be"),
    ],
    ids=["plain", "UTF-8 mark", "UTF-16 LE", "UTF-16 BE"],
)
def test_byte_order_marks_are_left_out(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text"
    path.write_bytes(content)
    assert read_text(path) == "grün"


@pytest.mark.parametrize("content", [b"gr\xfcn", codecs.BOM_UTF16_LE + b"a"])
def test_text_in_another_encoding_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text"
    path.write_bytes(content)
    with pytest.raises(DataError, match="no text in UTF-8"):
        read_text(path)


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "1" * 5000, "{} {}"])
def test_broken_json_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"a\.json: is not valid JSON"):
        read_json(path)
    path.write_text('{"a": [1]}')
    assert read_json(path) == {"a": [1]}


def test_messages_show_what_does_not_print_and_shorten_what_is_long() -> None:
    message = str(DataError("a\x1b[31m.png", "has the name " + repr("9" * 5000) + " and \x00 \u202e \ud800"))
    assert "\\x1b[31m.png" in message
    assert "\\x00 \\u202e \\ud800" in message
    assert len(message) < 400
    message.encode("utf-8")
    many = str(DataError("a", f"has {list(range(3000))}; name one of them"))
    assert len(many) < 1300
    assert many.endswith("; name one of them")
    path = "/" + "long/" * 100
    assert path in str(DataError(path, "no such file"))
    keys = str(WeightsError("a", "does not fit", missing=("k" * 5000,)))
    assert len(keys) < 400
    assert "\n  1 missing" in keys
