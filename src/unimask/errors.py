"""The errors a user can meet. Each has one message that names the file and the way out."""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

_SYNONYMS = Path(__file__).with_name("synonyms.json")  # a word of another library -> ours, best first
_LONGEST_WORD, _LONGEST_REASON = 200, 1200  # characters


class UnimaskError(Exception):
    """Base of every error that is the input's fault; the command line prints it and exits with 2."""


class DataError(UnimaskError):
    """An image or an annotation cannot be used."""

    def __init__(self, path: str | Path, reason: str, way_out: str = "") -> None:
        """Name a file and a reason, which is cut where it is long; `way_out`, text of ours, is not."""
        reason = "; ".join(filter(None, (shown(reason), way_out)))
        super().__init__(f"{_place(path)}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type["DataError"], tuple[str, str, str]]:
        return DataError, (self.path, "", self.reason)


class NotFiniteError(DataError):
    """A model predicts NaN or infinity for an image: the one at index `image` among those it was given."""

    def __init__(self, image: int, name: str | Path = "") -> None:
        super().__init__(
            name or f"image {image + 1}",
            "the model predicts numbers that are not finite (NaN or infinity) for it; in the precision "
            "16-mixed take bf16-mixed or 32-true, else the model is broken: take another checkpoint",
        )
        self.image = image

    def of(self, name: str | Path) -> "NotFiniteError":
        """Return the error with the name of the image, for those who know it."""
        return NotFiniteError(self.image, name)


class ConfigError(UnimaskError):
    """A setting does not exist or has an impossible value; `path` is dotted, as in `training.steps`."""

    def __init__(self, path: str, reason: str) -> None:
        path, reason = shown(path), shown(reason)
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class OnlyBoxesError(DataError):
    """A data set has boxes, and a task needs masks."""


class WeightsError(UnimaskError):
    """Weights do not fit the model: which keys are missing, unexpected, or of another shape."""

    def __init__(
        self,
        path: str | Path,
        reason: str,
        *,
        missing: tuple[str, ...] = (),
        unexpected: tuple[str, ...] = (),
        mismatched: tuple[str, ...] = (),
    ) -> None:
        groups = {"missing": missing, "unexpected": unexpected, "mismatched": mismatched}
        reason = shown(reason)
        details = [
            shown(f"{len(keys)} {name}: {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}")
            for name, keys in groups.items()
            if keys
        ]
        super().__init__("\n  ".join([f"{_place(path)}: {reason}", *details]))
        self.path = str(path)
        self.reason = reason
        self.missing = missing
        self.unexpected = unexpected
        self.mismatched = mismatched


class MissingPackageError(UnimaskError):
    """A package that only an extra installs is needed; `extra` is the extra's name."""

    def __init__(self, what: str | Path, package: str, extra: str) -> None:
        super().__init__(
            f"{what}: needs {package}, which is not installed; install unimask[{extra}] "
            f"(pip install 'unimask[{extra}]')"
        )
        self.package = package
        self.extra = extra


@contextmanager
def needs_extra(extra: str, what: str | Path) -> Iterator[None]:
    """Import the packages of an extra inside; `what` is the file or the command that needs them.

    Raises:
        MissingPackageError: one of them is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("unimask"):
            raise
        raise MissingPackageError(what, error.name.partition(".")[0], extra) from None


def some_of(things: Iterable[object], most: int = 8) -> str:
    """Return the first few of many, joined by commas: "1, 2, 3, ..."; "none" where there are none."""
    listed = [str(thing) for thing in things]
    return ", ".join(listed[:most] + ["..."] * (len(listed) > most)) or "none"


def choices(wrong: str, known: Iterable[str], most: int = 20) -> str:
    """Return what there is, after the nearest to a wrong name: "is it csv? there are: csv, json"."""
    names = list(known)
    return f"{nearest(wrong, names)}there are: {some_of(names, most)}"


def nearest(wrong: str, known: Iterable[str]) -> str:
    """Return a question about the names that a wrong one may mean, with a blank behind; "" for none.

    Those are what other libraries call `wrong` (`synonyms.json`), else the names that resemble it.
    """
    wrong, names = wrong.casefold(), {name.casefold().lstrip("-"): name for name in known}
    synonyms = json.loads(_SYNONYMS.read_text(encoding="utf-8")).get(wrong, [])
    found = [word for word in synonyms if word.partition(" ")[0] in names.values()][:1]
    found = found or [names[one] for one in get_close_matches(wrong.lstrip("-"), names, 3, 0.6)]
    return f"is it {' or '.join(found)}? " if found else ""


def instead_of(path: str) -> str:
    """Return what to give in the place of a pattern or an address, which are no paths; "" for any other."""
    if re.match(r"\w{2,}:/", path):
        return "; an address is no path: download the file"
    if re.search(r"[*?]", path):
        return (
            "; a pattern is no path: give the files, `sorted(Path().glob(...))`, or the folder; a shell "
            "expands a pattern that has no quotes around it and fits a file"
        )
    return ""


def shown(text: str) -> str:
    """Return a text as a message echoes it: what does not print is escaped, long words and texts are cut."""
    text = re.sub(
        rf"\S{{{_LONGEST_WORD},}}", lambda word: word[0][: _LONGEST_WORD - 3] + "...", _printable(text)
    )
    if len(text) <= _LONGEST_REASON:
        return text
    end = 250  # what to do stands at the end of a sentence
    return f"{text[: _LONGEST_REASON - end]} ... {text[-end:]}"


def _place(path: str | Path) -> str:
    """Return the path as a message names it: longer ones than any file system takes are cut."""
    text = _printable(str(path))
    return text if len(text) <= 1000 else f"{text[:300]}...{text[-200:]}"


def _printable(text: str) -> str:
    """Return the text with control characters, half characters and changes of direction as escapes."""
    return "".join(
        letter.encode("unicode_escape").decode("ascii")
        if unicodedata.category(letter) in ("Cc", "Cf", "Cs") and letter != "\n"
        else letter
        for letter in text
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its kind if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that memory ran out, on the CPU or on a device."""
    text = str(error).lower()
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in text for word in words)
    )
