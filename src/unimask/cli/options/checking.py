"""The options of `unimask check`."""

from pathlib import Path
from typing import Annotated

import typer

from unimask.cli.options.shared import TaskName

CheckPicture = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The image of samples; by default ./check.png, none with --json."),
]
LabelledTask = Annotated[
    TaskName | None,
    typer.Option(
        "--task",
        metavar="TASK",
        help="panoptic, instance, semantic or detection; by default the task the data were labelled for.",
    ),
]
