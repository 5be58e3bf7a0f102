"""Sentences with their translations, line by line in two files."""

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unimask.data.text.words import split_words, unescape
from unimask.errors import DataError
from unimask.files import read_bytes

TOKENISED = ".lc.norm.tok"
"""What names of files have before the language where they hold lowercased, tokenised text, as in Multi30k."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Lines and their translations.

    `words` are the translations as lowercased words with blanks between them, the ground truth of the
    published BLEU: from the file that the data set ships (`test.lc.norm.tok.de`), else split here.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    words: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.sources)


def read_pairs(folder: str | Path, split: str, source_language: str, target_language: str) -> Pairs:
    """Read the pairs of a folder with the files `train.en` and `train.de`, or the same with `.gz`.

    Raises:
        DataError: a file is missing, is not UTF-8, or has another number of lines than the other.
    """
    folder = Path(folder)
    source_path = find_file(folder, f"{split}.{source_language}")
    target_path = find_file(folder, f"{split}.{target_language}")
    sources, targets = read_lines(source_path), read_lines(target_path)
    if len(sources) != len(targets):
        raise DataError(
            target_path,
            f"has {len(targets)} lines, {source_path.name} has {len(sources)}; line N must translate line N",
        )
    tokenised = [
        folder / f"{split}{TOKENISED}.{target_language}{ending}" for ending in ("", ".gz")
    ]  # not in every data set
    found = [path for path in tokenised if path.is_file()]
    words = [unescape(line) for line in read_lines(found[0])] if found else _split(targets, target_language)
    if len(words) != len(targets):
        raise DataError(found[0], f"has {len(words)} lines, {target_path.name} has {len(targets)}")
    return Pairs(sources=tuple(sources), targets=tuple(targets), words=tuple(words))


def _split(lines: Sequence[str], language: str) -> list[str]:
    return [split_words(line, language).lower() for line in lines]


def find_file(folder: Path, name: str) -> Path:
    """Find the file of this name, or the same with `.gz`.

    Raises:
        DataError: there is neither; the message lists what there is.
    """
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    if not folder.is_dir():
        raise DataError(folder, f"is no folder; translation needs one with {name} (or {name}.gz) in it")
    here = sorted(path.name for path in folder.iterdir() if path.is_file())
    listed = ", ".join(here[:8] + ["..."] * (len(here) > 8)) or "no file"
    raise DataError(folder / name, f"is not there, nor is {name}.gz; the folder holds {listed}")


def read_lines(path: Path) -> list[str]:
    """Read the lines of a UTF-8 file, which may be gzipped; only line feeds end lines.

    Raises:
        DataError: the file cannot be read, or is not UTF-8; the line is named.
    """
    try:
        content = gzip.decompress(read_bytes(path)) if path.suffix == ".gz" else read_bytes(path)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(path, f"cannot be read ({error})") from None
    return decode_lines(content, path)


def decode_lines(content: bytes, name: str | Path) -> list[str]:
    """Split UTF-8 bytes into lines, without a byte order mark; `name` is for the message.

    Raises:
        DataError: they are not UTF-8.
    """
    content = content.removeprefix(b"\xef\xbb\xbf")
    lines = content.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    decoded = []
    for number, line in enumerate(lines, start=1):
        try:
            decoded.append(line.decode("utf-8").removesuffix("\r"))
        except UnicodeDecodeError as error:
            raise DataError(
                name,
                f"line {number} is not UTF-8 (byte {error.start + 1}: 0x{line[error.start]:02x}); convert "
                "it, for instance with iconv -f latin1 -t utf-8",
            ) from None
    return decoded
