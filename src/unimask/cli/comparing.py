"""`unimask compare`."""

from pathlib import Path

import unimask
from unimask.cli import output as show
from unimask.cli import tables
from unimask.cli.failures import check_folder
from unimask.cli.options import comparing, shared
from unimask.errors import DataError


def compare(
    runs: comparing.Runs,
    output: comparing.ComparisonPicture = None,
    as_json: shared.Json = False,
) -> None:
    """Compare trainings: show which settings, data and results differ; compare.png has the curves.

    A folder of runs stands for all runs in it; other folders are left out. Runs may still be in progress.

    Examples:
      unimask compare runs
      unimask compare runs/first runs/second --output curves.svg
    """
    picture = output or (None if as_json else Path("compare.png"))
    if picture is not None:
        if picture.is_dir():
            raise DataError(picture, "is a folder; name a file for the curves with --output")
        check_folder(picture.absolute().parent)
    found = unimask.compare(runs)
    if as_json:
        show.show_json(found.to_json())
    else:
        tables.show_comparison(found)
    if picture is not None:
        from unimask.training.compare import save_curves

        save_curves(found, picture)
        if not as_json:
            show.show_line(f"curves: {picture}")
