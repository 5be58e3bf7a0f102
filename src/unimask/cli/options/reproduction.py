"""The options of `unimask reproduce`."""

from pathlib import Path
from typing import Annotated

import typer

RowName = Annotated[
    str, typer.Argument(metavar="ROW", help="The name of a row of the table, or the beginning of names.")
]
ReproducedData = Annotated[
    str, typer.Option("--data", metavar="PATH", help="The data of the row, as for `unimask evaluate`.")
]
ReproducedWeights = Annotated[
    str,
    typer.Option(
        "--weights",
        metavar="FILE",
        help="The downloaded weights of the row, in any format that `unimask convert` reads.",
    ),
]
ZooFile = Annotated[
    Path,
    typer.Option(
        "--table",
        metavar="FILE",
        show_default="that of the package",
        help="A table of models in the same format.",
    ),
]
