"""Fonts for names in any script: Pillow's own, or one of this machine that has the letters."""

import logging
import os
import re
import sys
from functools import cache
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_log = logging.getLogger(__name__)
_SIZE = 16  # at which letters are compared
_MISSING = "\U0010fffd"  # a place for private use: no font has it
_MOST_FILES = 500  # that are tried for a script
_LIKELY = re.compile(
    r"noto ?sans ?cjk|noto ?sans-|dejavu ?sans\.|arial ?unicode|pingfang|hiragino|msyh|yugoth|malgun|"
    r"droid|unifont"
)
"""Names of files of fonts that have many scripts, in small letters."""


def label_font(size: int, text: str = "") -> Font:
    """Return a font of this height in pixels that has the letters of a text, or Pillow's own if none has."""
    return _font_of(size, _file_for(text) or "")


def drawable(name: str, number: int) -> str:
    """Return the name, or `#number` where no font of this machine has its letters: a warning says so once."""
    if _file_for(name) is not None:
        return name
    _warn(name, number)
    return f"#{number}"


@cache
def _font_of(size: int, file: str) -> Font:
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size)


@cache
def _warn(name: str, number: int) -> None:
    _log.warning(
        "no font here has the letters of %r: it is drawn as #%d; install one, such as Noto Sans CJK",
        name,
        number,
    )


@cache
def _file_for(text: str) -> str | None:
    """Return the file of a font that has the letters of a text, empty for Pillow's own, None if none has."""
    letters = frozenset(letter for letter in text if ord(letter) > 126 and letter.isprintable())
    if not letters or _has(ImageFont.load_default(_SIZE), letters):
        return ""
    for path in _files()[:_MOST_FILES]:
        try:
            if _has(ImageFont.truetype(path, _SIZE), letters):
                return path
        except (OSError, ValueError):  # not a font that FreeType reads
            continue
    return None


def _has(font: Font, letters: frozenset[str]) -> bool:
    missing = _drawn(font, _MISSING)
    return all(_drawn(font, letter) != missing for letter in letters)


def _drawn(font: Font, letter: str) -> tuple[object, bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


@cache
def _files() -> tuple[str, ...]:
    """Return the font files of this machine, those first that have many scripts."""
    home = Path.home()
    usual = [Path("/usr/share/fonts"), Path("/usr/local/share/fonts")]
    folders = {
        "win32": [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"],
        "darwin": [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"],
    }.get(sys.platform, [*usual, home / ".fonts", home / ".local/share/fonts"])
    found = [
        path
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in (".ttf", ".otf", ".ttc")
    ]

    def rank(path: Path) -> tuple[bool, bool]:
        name = path.name.lower()
        return _LIKELY.search(name) is None, "bold" in name

    return tuple(map(str, sorted(found, key=rank)))
