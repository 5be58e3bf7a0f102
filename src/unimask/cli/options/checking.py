"""The options of `unimask check`."""

from pathlib import Path
from typing import Annotated

import typer

from unimask.cli.options.shared import TaskName

CheckPicture = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The picture of samples; check.png here, and none with --json."),
]
LabelledTask = Annotated[
    TaskName | None,
    typer.Option(
        "--task",
        metavar="TASK",
        help="panoptic, instance, semantic or detection; by default what the data were labelled for.",
    ),
]
