"""Split text into words with blanks between them, and join them: "tokenised" text in translation."""

import re

_SAME = str.maketrans(
    dict.fromkeys("\u201e\u201c\u201d\u00ab\u00bb", '"')
    | dict.fromkeys("\u2019\u2018\u201a`\u00b4", "'")
    | dict.fromkeys("\u2013\u2014", "-")
    | {"\u2026": "..."}
)
_ENGLISH = frozenset({"st", "mr", "mrs", "ms", "dr", "prof", "jr", "sr", "vs", "no", "max", "min", "art"})
_GERMAN = frozenset({"bzw", "ca", "evtl", "ggf", "inkl", "nr", "str", "usw", "vgl", "tel", "bd"})
_ABBREVIATIONS = _ENGLISH | _GERMAN
"""Words that keep a full stop in the middle of a line."""

_ESCAPES = (("&quot;", '"'), ("&apos;", "'"), ("&lt;", "<"), ("&gt;", ">"), ("&#124;", "|"), ("&amp;", "&"))


def split_words(text: str, language: str) -> str:
    """Split a line into words and marks with one blank between any two; the case of letters stays.

    All quotes become one kind, and so do dashes. Marks stand alone, except hyphens inside words, commas and
    points between digits, the points of abbreviations, and apostrophes: in English an apostrophe goes
    with what follows it (`man 's`), in other languages it stands alone.

    Source: the rules of Moses' tokeniser, as far as captions need them.
    """
    text = f" {' '.join(text.translate(_SAME).split())} "
    text = re.sub(r"([^\w\s.',\-])", r" \1 ", text)
    text = re.sub(r"\.{2,}", lambda dots: f" {dots[0]} ", text)
    text = re.sub(r"(?<!\d),|,(?!\d)", " , ", text)
    if language == "en":
        text = re.sub(r"(?<![^\W\d_])'|'(?![^\W\d_])", " ' ", text)
        text = re.sub(r"(?<=[^\W\d_])'(?=[^\W\d_])", " '", text)
    else:
        text = text.replace("'", " ' ")
    words = text.split()
    split: list[str] = []
    for index, word in enumerate(words):
        rest = words[index + 1 :]
        if _has_final_stop(word, rest):
            split += [word[:-1], "."]
        else:
            split.append(word)
    return " ".join(split)


def _has_final_stop(word: str, rest: list[str]) -> bool:
    """Return whether the point at the end of a word is a mark of its own."""
    if len(word) < 2 or not word.endswith(".") or word.endswith(".."):
        return False
    if all(not any(letter.isalnum() for letter in later) for later in rest):
        return True  # the end of the line, but for quotes and brackets
    body = word[:-1]
    inner = "." in body and any(letter.isalpha() for letter in body)
    return not (inner or body.lower() in _ABBREVIATIONS or rest[0][0].islower())


def unescape(text: str) -> str:
    """Replace the escapes of tokenised text (`&apos;`); blanks and words stay as they are."""
    for escape, mark in _ESCAPES:
        text = text.replace(escape, mark)
    return text


def join_words(text: str) -> str:
    """Join words into ordinary text: no blank before a mark that ends something.

    Of two straight quotes the first one opens. Case is left as it is.
    """
    text = re.sub(r'" ([^"]*?) "', r'"\1"', text)
    text = re.sub(r" ([.,;:!?%)\]]+)(?=[\s\"]|$)", r"\1", text)
    text = re.sub(r"([(\[]) ", r"\1", text)
    return re.sub(r"(?<=\w) '(?=(s|t|re|ve|ll|d|m)\b)", "'", text)
