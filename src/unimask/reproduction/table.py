"""The model zoos as a table: weights, data, and the numbers that were published for them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from unimask.config.tasks import ALL_TASKS, Task
from unimask.config.values import settings_from_dict
from unimask.errors import ConfigError, DataError, nearest

PUBLISHED = Path(__file__).with_name("published.json")


@dataclass(frozen=True, kw_only=True)
class ZooRow:
    """A model of a zoo."""

    name: str
    paper: str
    model: str  # in the paper's words
    weights: str  # the address of the file, or an id of the Hugging Face hub
    licence: str  # of the weights
    licence_source: str = ""  # where it is stated
    data: str  # the set and its split
    published: dict[Task, dict[str, float]]  # task -> measure of `unimask evaluate` -> percent
    source: str  # of the numbers
    digest: str = ""  # the start of the file's md5 or sha256: `md5:94dc52`; "" where none is stated
    base: str = ""  # the weights that these are differences to (--base)
    preset: str = ""  # how images are seen and predictions postprocessed; "" as the conversion finds it
    settings: dict[str, object] = field(default_factory=dict)  # and what differs from that
    tolerance: float = 0.2  # in percent: rounding of the published number, and resizing by another library
    not_measured: dict[str, float] = field(default_factory=dict)  # published, but by other rules than ours

    @property
    def file(self) -> str:
        """Return the name of the file with the weights."""
        return self.weights.rsplit("/", 1)[-1]

    @property
    def on_the_hub(self) -> bool:
        """Return whether the weights are of the Hugging Face hub, which `unimask convert` fetches."""
        return "://" not in self.weights

    def command(self) -> str:
        """Return the command that reproduces the row, with places for what must be at hand."""
        words = ["unimask reproduce", self.name, "--data DATA"]
        words += [] if self.on_the_hub else [f"--weights {self.file}"]
        words += ["--base FILE"] if self.base else []
        return " ".join(words)


@dataclass(frozen=True, kw_only=True)
class Unreachable:
    """A published number that cannot be reproduced."""

    paper: str
    number: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Zoo:
    """The rows, and the numbers without one."""

    rows: tuple[ZooRow, ...]
    unreachable: tuple[Unreachable, ...]

    def matching(self, name: str) -> tuple[ZooRow, ...]:
        """Return the row of a name, or all whose names begin with it.

        Raises:
            ConfigError: there is none; the message names the nearest.
        """
        exact = tuple(row for row in self.rows if row.name == name)
        found = exact or tuple(row for row in self.rows if row.name.startswith(name))
        if not found:
            near = nearest(name, [row.name for row in self.rows])
            raise ConfigError(name, f"no row has this name; {near}`unimask reproduce` lists them")
        return found


def read_zoo(path: Path = PUBLISHED) -> Zoo:
    """Return the table in a JSON file: `rows`, objects with the fields of `ZooRow`, and `unreachable`.

    `defaults` in the file gives fields to all rows whose name begins with a key.

    Raises:
        DataError: the file cannot be read or is no JSON.
        ConfigError: a row has an unknown field or a wrong value, or two have one name.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(path, f"cannot be read as a table of models ({error})") from None
    shared: Mapping[str, Mapping[str, object]] = content.get("defaults", {})
    rows = tuple(settings_from_dict(ZooRow, _with_defaults(row, shared)) for row in content["rows"])
    names = [row.name for row in rows]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ConfigError(f"{path}: name", f"two rows are called {', '.join(sorted(twice))}")
    unknown = {task for row in rows for task in row.published} - set(ALL_TASKS)
    if unknown:
        raise ConfigError(f"{path}: published", f"no such task: {', '.join(sorted(unknown))}")
    unreachable = tuple(settings_from_dict(Unreachable, one) for one in content.get("unreachable", []))
    return Zoo(rows=rows, unreachable=unreachable)


def _with_defaults(row: dict[str, object], shared: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for start, fields in shared.items():
        if str(row["name"]).startswith(start):
            found |= fields
    return found | row
