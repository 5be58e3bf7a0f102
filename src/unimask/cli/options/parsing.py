"""Parsing of option values."""

import json

from unimask.errors import ConfigError


def names_in(given: list[str] | None) -> list[str]:
    """Return the names given to an option that may be repeated or take several, separated by commas."""
    return [name.strip() for part in given or [] for name in part.split(",") if name.strip()]


def parse_size(text: str) -> tuple[int, int]:
    """Return `640x480` as (height, width).

    Raises:
        ConfigError: the text has a different format.
    """
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise ConfigError("size", f"expected HEIGHTxWIDTH, such as 640x640; got {text!r}")
    return int(height), int(width)


def parse_word_or_number(text: str) -> str | int | None:
    """Return `3` as a number, a word as it is, and None for an empty string."""
    return int(text) if text.isdecimal() and len(text) < 7 else text or None


def _value(text: str) -> object:
    """Return `4`, `0.1`, `true`, `[512,512]`, `{...}` as JSON, anything else as a word."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def parse_renamed(pairs: list[str]) -> dict[str, str]:
    """Return `old=new` arguments as a dict.

    Raises:
        ConfigError: an argument is not of the form `old=new`, or two name the same old category.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not (equals and old.strip() and new.strip()):
            raise ConfigError("map", f"expected OLD=NEW, such as person=pedestrian; got {pair!r}")
        if old.strip() in found:
            raise ConfigError("map", f"{old.strip()!r} is named twice")
        found[old.strip()] = new.strip()
    return found


def parse_settings(assignments: list[str]) -> dict[str, object]:
    """Return `path=value` arguments as a dict.

    Raises:
        ConfigError: an argument has no `=`.
    """
    changes: dict[str, object] = {}
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(assignment, "expected PATH=VALUE, such as training.steps=2000")
        changes[path.strip()] = _value(value.strip())
    return changes
