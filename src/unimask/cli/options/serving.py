"""The options of `unimask serve`."""

from pathlib import Path
from typing import Annotated

import typer

from unimask.cli.options import groups

ServedWeights = Annotated[
    list[str] | None,
    typer.Option(
        "--weights",
        metavar="MODEL",
        help="As of `unimask predict`; repeat to serve several. By default the one of the package (nuclei).",
    ),
]
Host = Annotated[
    str,
    typer.Option(
        rich_help_panel=groups.NETWORK,
        metavar="ADDRESS",
        help="The address to listen on; 0.0.0.0 lets other machines in, with a token.",
    ),
]
Port = Annotated[
    int, typer.Option(rich_help_panel=groups.NETWORK, metavar="NUMBER", help="The port; 0: any that is free.")
]
Examples = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Images that the page offers; by default those of the package."),
]
ServedBatch = Annotated[
    int,
    typer.Option(
        "--batch-size",
        rich_help_panel=groups.MACHINE,
        min=0,
        metavar="NUMBER",
        help="Images or tiles that go through the model together; 0: what is fastest here, measured first.",
    ),
]
AllowedHosts = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-host",
        rich_help_panel=groups.NETWORK,
        metavar="NAME",
        help="A further name of this server in addresses, as behind a proxy; repeatable.",
    ),
]
AllowedOrigins = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-origin",
        rich_help_panel=groups.NETWORK,
        metavar="URL",
        help="A site whose pages may ask, as https://example.org; repeatable.",
    ),
]
LabelStudioAddress = Annotated[
    str,
    typer.Option(
        "--label-studio",
        metavar="URL",
        help="Be a backend of this Label Studio; the variable LABEL_STUDIO_TOKEN holds a token of it.",
    ),
]
Megabytes = Annotated[
    int,
    typer.Option(
        rich_help_panel=groups.LIMITS,
        min=1,
        metavar="NUMBER",
        help="The largest file that is accepted, in MiB.",
    ),
]
Megapixels = Annotated[
    float,
    typer.Option(
        rich_help_panel=groups.LIMITS, min=0.001, metavar="NUMBER", help="The largest image that is accepted."
    ),
]
Waiting = Annotated[
    int,
    typer.Option(
        rich_help_panel=groups.LIMITS,
        min=1,
        metavar="NUMBER",
        help="Requests at a time; more are told to come back (503).",
    ),
]
Seconds = Annotated[
    float,
    typer.Option(
        rich_help_panel=groups.LIMITS, min=0.1, metavar="NUMBER", help="The longest that a request takes."
    ),
]
