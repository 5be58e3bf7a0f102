"""`unimask reproduce`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.table import Table

from unimask.cli import output as show
from unimask.cli.failures import check_folder, naming
from unimask.cli.options import reproduction, shared
from unimask.errors import ConfigError
from unimask.files import write_json
from unimask.reproduction.table import PUBLISHED, Zoo, ZooRow, read_zoo

if TYPE_CHECKING:
    from unimask.reproduction.run import Reproduction

NOT_REPRODUCED = 3  # exit code
_WIDE = 120  # columns of a terminal with room for the descriptions of the models


def reproduce(
    name: reproduction.RowName = "",
    data: reproduction.ReproducedData = "",
    weights: reproduction.ReproducedWeights = "",
    base: shared.Base = None,
    split: shared.Split = "val",
    device: shared.Device = "auto",
    table: reproduction.ZooFile = PUBLISHED,
    output: shared.EvaluationFile = None,
    as_json: shared.Json = False,
) -> None:
    """Reproduce published results: the model zoos of Mask2Former, MaskFormer, DETR and EoMT.

    Without a name it lists the models, and the numbers that cannot be reproduced. With a name it shows what
    is needed: weights, their licence, data. With --data (and --weights, if the Hugging Face hub has none) it
    converts the weights, evaluates them and compares each number. The exit code is 3 if one differs.

    Examples:
      unimask reproduce
      unimask reproduce detr-coco-detection-r50
      unimask reproduce detr-coco-detection-r50 --data coco --weights detr-r50.pth
    """
    zoo = read_zoo(table)
    rows = zoo.matching(name) if name else zoo.rows
    if not (data and name):
        if as_json:
            show.show_json(dataclasses.asdict(dataclasses.replace(zoo, rows=rows)))
        elif len(rows) == 1:
            _show_row(rows[0])
        else:
            _show_zoo(dataclasses.replace(zoo, rows=rows), whole=not name)
        return
    if len(rows) > 1:
        raise ConfigError(name, f"begins the names of {len(rows)} rows; name one of them")
    _measure(rows[0], data, weights, base, split, device, output, as_json)


def _measure(
    row: ZooRow,
    data: str,
    weights: str,
    base: Path | None,
    split: str,
    device: str,
    output: Path | None,
    as_json: bool,
) -> None:
    from unimask.reproduction.run import reproduce as run

    if output is not None:
        check_folder(output.absolute().parent)
    with naming(data), show.counting("measuring") as counted:
        found = run(row, data, weights=weights, base=base, split=split, device=device, progress=counted)
    plain = {**dataclasses.asdict(found), "reproduced": found.reproduced}
    for measure, one in zip(plain["measures"], found.measures, strict=True):
        measure |= {"reproduced": one.reproduced, "found": one.found if one.found == one.found else None}
    if output is not None:
        write_json(output, plain)
    if as_json:
        show.show_json(plain)
    else:
        _show_result(found)
    if not found.reproduced:
        raise typer.Exit(NOT_REPRODUCED)


def _numbers(row: ZooRow) -> str:
    named = [f"{name} {number:.1f}" for numbers in row.published.values() for name, number in numbers.items()]
    return "  ".join(named)


def _show_zoo(zoo: Zoo, *, whole: bool) -> None:
    """Print a table for each paper; with `whole` also the numbers that cannot be reproduced."""
    wide = show.screen.width >= _WIDE
    for paper in dict.fromkeys(row.paper for row in zoo.rows):
        rows = [row for row in zoo.rows if row.paper == paper]
        licences = ", ".join(dict.fromkeys(row.licence for row in rows))
        show.show_line(f"{paper}; licence of the weights: {licences}")
        listed = Table()
        listed.add_column("row", no_wrap=True)
        listed.add_column("published, in percent")
        if wide:
            listed.add_column("model")
        for row in rows:
            listed.add_row(row.name, _numbers(row), *((row.model,) if wide else ()))
        show.screen.print(listed)
    if whole:
        show.show_line("published, but not to be reproduced with this library")
        left = Table()
        for title in ("paper", "number", "why"):
            left.add_column(title)
        for one in zoo.unreachable:
            left.add_row(one.paper, one.number, one.why)
        show.screen.print(left)
        show.show_line("what a row needs: unimask reproduce ROW")


def _show_row(row: ZooRow) -> None:
    """Print the published numbers of a row, and what is needed to reproduce them."""
    found = {
        "row": row.name,
        "model": f"{row.model}; {row.paper}",
        "weights": row.weights,
        "licence": "; ".join(filter(None, (row.licence, row.licence_source))),
        "base": row.base,
        "data": row.data,
        "published": "; ".join(
            f"{task}: {', '.join(f'{name} {number:.1f}' for name, number in numbers.items())}"
            for task, numbers in row.published.items()
        ),
        "source": row.source,
        "tolerance": f"{row.tolerance:g}",
        "not measured": ", ".join(f"{name} {number:.1f}" for name, number in row.not_measured.items()),
        "to reproduce": row.command(),
    }
    for title, text in found.items():
        if text:
            show.show_line(f"{title}: {text}")


def _show_result(found: "Reproduction") -> None:
    """Print a line for each number: published, measured, reproduced or not."""
    compared = Table()
    for title in ("task", "measure"):
        compared.add_column(title)
    for title in ("published", "measured", "difference"):
        compared.add_column(title, justify="right")
    compared.add_column(f"within {found.row.tolerance:g}")
    for one in found.measures:
        compared.add_row(
            one.task,
            one.name,
            f"{one.published:.1f}",
            f"{one.found:.2f}",
            f"{one.found - one.published:+.2f}",
            "reproduced" if one.reproduced else "not reproduced",
        )
    show.show_line(f"{found.row.name}: {found.images} images in {show.duration(found.seconds)}")
    show.screen.print(compared)
