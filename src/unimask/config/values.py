"""Settings as plain values, ready for JSON, and back: frozen dataclasses that pydantic checks."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from numbers import Integral
from typing import Annotated, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from unimask.errors import ConfigError, nearest

Settings = TypeVar("Settings")

Count = Annotated[int, Field(ge=1)]
Width = Annotated[int, Field(ge=1, le=16_384)]  # of a tensor: channels, heads, queries
WidthOrNone = Annotated[int, Field(ge=0, le=16_384)]
Layers = Annotated[int, Field(ge=1, le=1_000)]
LayersOrNone = Annotated[int, Field(ge=0, le=1_000)]
CountOrNone = Annotated[int, Field(ge=0)]  # 0 where there may be none
Size = Annotated[int, Field(ge=1, le=100_000)]  # in pixels or tokens
Share = Annotated[float, Field(ge=0, le=1)]
Below1 = Annotated[float, Field(ge=0, lt=1)]  # a probability, or how much of a mean stays
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Factor = Annotated[float, Field(ge=0.001, le=1000)]

_BOUNDS = {
    "greater_than_equal": "must be at least {ge:.12g}",
    "greater_than": "must be above {gt:.12g}",
    "less_than_equal": "must be at most {le:.12g}",
    "less_than": "must be below {lt:.12g}",
}
_REASONS = {
    "union_tag_not_found": "has no kind (`unimask presets NAME` shows what it needs)",
    "model_attributes_type": "must be a dictionary",
}
"""pydantic's type of an error -> our words; other errors keep pydantic's."""


@cache
def _adapter(kind: type) -> TypeAdapter:  # not subscripted: beartype cannot check pydantic generics
    return TypeAdapter(kind)


def settings_to_dict(settings: object) -> dict[str, object]:
    """Return a dataclass of settings as plain values, ready for JSON; `settings_from_dict` is its inverse."""
    result: dict[str, object] = _adapter(type(settings)).dump_python(settings, mode="json")  # type: ignore[arg-type]
    return result


def _unknown_keys(given: object, known: object, path: str) -> list[str]:
    if not (isinstance(given, dict) and isinstance(known, dict)):
        return []
    unknown = [f"{path}{key}" for key in given if key not in known]
    for key in given.keys() & known.keys():
        unknown += _unknown_keys(given[key], known[key], f"{path}{key}.")
    return unknown


def _path(values: object, location: Sequence[int | str]) -> str:
    """Return the dotted path of a setting, without the union members that pydantic's location also names."""
    parts = []
    for part in location:
        children = dict(enumerate(values)) if isinstance(values, list | tuple) else values
        if isinstance(children, dict) and part in children:
            values = children[part]
            parts.append(str(part))
    return ".".join(parts)


def settings_from_dict(kind: type[Settings], values: dict[str, object]) -> Settings:
    """Return the dataclass of settings that plain values describe; missing keys take their defaults.

    Raises:
        ConfigError: a key is unknown (all of them are named), or a value has the wrong type.
    """
    settings = _validated(kind, values, "")
    unknown = _unknown_keys(values, settings_to_dict(settings), "")
    if unknown:
        near = _nearest_path(unknown[0], settings_to_dict(settings))
        raise ConfigError(
            ", ".join(unknown), f"no such setting; {near}`unimask presets NAME` lists all of them"
        )
    return settings


def check_values(settings: object, path: str) -> None:
    """Check every value of a dataclass of settings, which stands at `path` in an experiment.

    Raises:
        ConfigError: a value has the wrong type or is out of its range.
    """
    _validated(type(settings), asdict(settings), f"{path}.")  # type: ignore[call-overload]


def _validated(kind: type[Settings], values: dict[str, object], prefix: str) -> Settings:
    try:
        settings: Settings = _adapter(kind).validate_python(values)  # type: ignore[arg-type]
    except ValidationError as error:
        raise _error_of(error, values, prefix) from None
    return settings


def _error_of(error: ValidationError, values: dict[str, object], prefix: str) -> ConfigError:
    """Return the first of pydantic's errors in our words."""
    first = error.errors()[0]
    context, path, found = first.get("ctx", {}), f"{prefix}{_path(values, first['loc'])}", first["input"]
    if first["type"] == "union_tag_invalid":
        known = context["expected_tags"].replace("'", "")
        return ConfigError(f"{path}.kind", f"no such kind; there are: {known}; got {context['tag']!r}")
    if first["type"] == "literal_error":  # a word or, where another error is of the same setting, a number
        others = [other for other in error.errors()[1:] if f"{prefix}{_path(values, other['loc'])}" == path]
        bounds = [_BOUNDS[one["type"]].format(**one["ctx"]) for one in others if one["type"] in _BOUNDS]
        numbers = bounds or ["a whole number"] * bool(others)
        expected = str(context["expected"])
        return ConfigError(path, f"must be {' or '.join([expected, *numbers])}; got {found!r}")
    if first["type"] in _BOUNDS:
        return ConfigError(path, f"{_BOUNDS[first['type']].format(**context)}; got {found!r}")
    return ConfigError(path, f"{_REASONS.get(first['type'], first['msg'])}; got {found!r}")


def with_changes(values: dict[str, object], changes: Mapping[str, object]) -> dict[str, object]:
    """Return plain values with some of them changed in place, each named by its dotted path.

    Raises:
        ConfigError: no setting has this path.
    """
    for path, value in changes.items():
        *parents, last = path.split(".")
        place: object = values
        for depth, name in enumerate([*parents, last]):
            if not isinstance(place, dict) or name not in place:
                known = ", ".join(place) if isinstance(place, dict) else "nothing"
                where = ".".join(parents[:depth]) or "the experiment"
                raise ConfigError(path, f"no such setting; {_nearest_path(path, values)}{where} has: {known}")
            if depth < len(parents):
                place = place[name]
        assert isinstance(place, dict)
        place[last] = value
    return values


def _nearest_path(wrong: str, values: Mapping[str, object]) -> str:
    """Return a question about the settings that a wrong path resembles: in whole, or by its last word."""
    known = _paths(values, "")
    last = wrong.rpartition(".")[2]
    same = [path for path in known if path.rpartition(".")[2] == last]
    return f"is it {' or '.join(same[:3])}? " if same else nearest(wrong, known)


def _paths(values: Mapping[str, object], before: str) -> list[str]:
    """Return the dotted paths of all settings, groups of them too."""
    found = []
    for name, value in values.items():
        found.append(f"{before}{name}")
        if isinstance(value, Mapping):
            found += _paths(value, f"{before}{name}.")
    return found


def check_count(number: object, path: str, least: int = 1) -> None:
    """Check that an argument is a whole number of at least `least`.

    Raises:
        ConfigError: it is not; the message names it as `path`.
    """
    if not isinstance(number, Integral) or isinstance(number, bool) or int(number) < least:
        raise ConfigError(path, f"must be a whole number of at least {least}; got {number!r}")


def check_divisible(number: int, parts: int, path: str, what: str) -> None:
    """Check that a number of channels can be divided into parts.

    Raises:
        ConfigError: it cannot; `what` says what the parts are.
    """
    if number % parts:
        raise ConfigError(path, f"{number} channels cannot be divided by {parts} ({what})")
