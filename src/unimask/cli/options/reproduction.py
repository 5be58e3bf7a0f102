"""The options of `unimask reproduce`."""

from pathlib import Path
from typing import Annotated

import typer

RowName = Annotated[
    str, typer.Argument(metavar="ROW", help="A row of the table, or the beginning of some of their names.")
]
ReproducedData = Annotated[
    str, typer.Option("--data", metavar="PATH", help="The data of the row, as --data of `unimask evaluate`.")
]
ReproducedWeights = Annotated[
    str,
    typer.Option(
        "--weights",
        metavar="FILE",
        help="The weights of the row, as they were downloaded, in any form that `unimask convert` reads.",
    ),
]
ZooFile = Annotated[
    Path,
    typer.Option(
        "--table",
        metavar="FILE",
        show_default="that of the package",
        help="A table of models, of the same form.",
    ),
]
