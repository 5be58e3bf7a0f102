"""The options of `unimask compare`."""

from pathlib import Path
from typing import Annotated

import typer

Runs = Annotated[
    list[Path], typer.Argument(metavar="RUN", help="Folders of trainings (`unimask train --output`).")
]
ComparisonPicture = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The curves, PNG or SVG; by default ./compare.png, none with --json."),
]
