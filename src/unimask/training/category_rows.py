"""Which categories of a data set start with rows of another model's class head, and which at random."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from unimask.errors import ConfigError, choices, some_of
from unimask.structures import Categories

NOT_KNOWN = -1  # in `CategoryRows.rows`
_SHOWN = 12  # names of a line


@dataclass(frozen=True, kw_only=True)
class CategoryRows:
    """The categories of a data set beside those of the model that its training starts from."""

    kept: tuple[str, ...]  # of the data, which the model has by the same name
    renamed: tuple[tuple[str, str], ...]  # the model's name, and that of the data
    new: tuple[str, ...]  # of the data, which the model does not have
    dropped: tuple[str, ...]  # of the model, which the data do not have
    rows: tuple[int, ...]  # for each category of the data that of the model, or `NOT_KNOWN`

    @property
    def known(self) -> int:
        """Return how many categories of the data the model has."""
        return len(self.kept) + len(self.renamed)

    def table(self) -> str:
        """Return a line for each kind of category that occurs, with its number and its names."""
        lines = (
            ("kept by name", self.kept),
            ("renamed", tuple(f"{old} = {new}" for old, new in self.renamed)),
            ("new, random", self.new),
            ("dropped", self.dropped),
        )
        shown = [
            f"  {title:<12}  {len(names):>4}  {some_of(names, _SHOWN)}" for title, names in lines if names
        ]
        return "\n".join([*shown, *self._hints()])

    def _hints(self) -> list[str]:
        """Return the `--map` of categories whose names differ in nothing but case and spaces."""
        alike = {_plain(name): name for name in self.dropped}
        pairs = [f"--map '{alike[_plain(name)]}={name}'" for name in self.new if _plain(name) in alike]
        return [f"  nearly the same names; to take their rows: {some_of(pairs, _SHOWN)}"] if pairs else []


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def rows_for(categories: Categories, theirs: Categories, renamed: Mapping[str, str]) -> CategoryRows:
    """Return which categories of another model serve `categories`: of the same name, or of a stated one.

    `renamed` leads from the model's names to those of the data.

    Raises:
        ConfigError: `renamed` names a category that is not there, or gives one of the data two rows.
    """
    for old, new in renamed.items():
        if old not in theirs.names:
            raise ConfigError("map", f"the model has no category {old!r}; {choices(old, theirs.names)}")
        if new not in categories.names:
            raise ConfigError("map", f"the data have no category {new!r}; {choices(new, categories.names)}")
    if len(set(renamed.values())) < len(renamed):
        raise ConfigError("map", "a category of the data is named twice; a row of the head comes from one")
    origin = {name: name for name in theirs.names if name in categories.names and name not in renamed}
    origin |= {new: old for old, new in renamed.items()}
    place = {name: row for row, name in enumerate(theirs.names)}
    return CategoryRows(
        kept=tuple(name for name in categories.names if origin.get(name) == name),
        renamed=tuple((origin[name], name) for name in categories.names if origin.get(name, name) != name),
        new=tuple(name for name in categories.names if name not in origin),
        dropped=tuple(name for name in theirs.names if name not in origin.values()),
        rows=tuple(place[origin[name]] if name in origin else NOT_KNOWN for name in categories.names),
    )


def take_rows(own: Tensor, theirs: Tensor, rows: tuple[int, ...]) -> Tensor:
    """Return `own`, which has a row for each category, with the known rows of `theirs`.

    Rows after those of the categories ("no object") are taken as they are. Tensors whose other sizes differ
    are not mixed: `theirs` comes back, and does not fit.
    """
    if theirs.shape[1:] != own.shape[1:]:
        return theirs
    known = torch.tensor([row != NOT_KNOWN for row in rows])
    taken = own.clone()
    taken[: len(rows)][known] = theirs[torch.tensor(rows)[known]]
    taken[len(rows) :] = theirs[len(theirs) - (len(own) - len(rows)) :]
    return taken
