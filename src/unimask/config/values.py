"""Settings as plain values, ready for JSON, and back: frozen dataclasses that pydantic checks."""

from collections.abc import Sequence
from functools import cache
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from unimask.errors import ConfigError

Settings = TypeVar("Settings")
NO_SUCH_KIND = "no_such_kind"  # pydantic's type of the error that no member of a union has this `kind`


def kind_of(values: object) -> object:
    """The `kind` of plain values or of a dataclass; None where there is none."""
    return values.get("kind") if isinstance(values, dict) else getattr(values, "kind", None)


@cache
def _adapter(kind: type) -> TypeAdapter:  # not subscripted: beartype cannot check pydantic generics
    return TypeAdapter(kind)


def settings_to_dict(settings: object) -> dict[str, object]:
    """A dataclass of settings as plain values, ready for JSON; `settings_from_dict` is its inverse."""
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
    """The dataclass of settings that plain values describe; missing keys take their defaults.

    Raises:
        ConfigError: a key is unknown (all of them are named), or a value has the wrong type.
    """
    try:
        settings: Settings = _adapter(kind).validate_python(values)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        path = _path(values, first["loc"])
        if first["type"] == NO_SUCH_KIND:
            raise ConfigError(f"{path}.kind", f"{first['msg']}; got {kind_of(first['input'])!r}") from None
        raise ConfigError(path, f"{first['msg']}; got {first['input']!r}") from None
    unknown = _unknown_keys(values, settings_to_dict(settings), "")
    if unknown:
        raise ConfigError(", ".join(unknown), "no such setting; `unimask presets NAME` lists all of them")
    return settings


def with_changes(values: dict[str, object], changes: dict[str, object]) -> dict[str, object]:
    """Settings as plain values, some of them changed in place, each named by its dotted path.

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
                raise ConfigError(path, f"no such setting; {where} has: {known}")
            if depth < len(parents):
                place = place[name]
        assert isinstance(place, dict)
        place[last] = value
    return values
