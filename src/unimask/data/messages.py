"""Words for error messages."""

from collections.abc import Iterable


def some_of(things: Iterable[object], most: int = 8) -> str:
    """The first few of many, joined by commas: "1, 2, 3, ..."; "none" where there are none."""
    listed = [str(thing) for thing in things]
    return ", ".join(listed[:most] + ["..."] * (len(listed) > most)) or "none"
