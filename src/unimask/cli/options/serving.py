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
        help="A model, as for `unimask predict`; repeat to serve several. By default nuclei, of the package.",
    ),
]
Host = Annotated[
    str,
    typer.Option(
        rich_help_panel=groups.NETWORK,
        metavar="ADDRESS",
        help="The address to listen on; 0.0.0.0 admits other machines, with a token.",
    ),
]
Port = Annotated[
    int,
    typer.Option(
        rich_help_panel=groups.NETWORK,
        min=0,
        max=65_535,
        metavar="NUMBER",
        help="The port; 0: any free port.",
    ),
]
Examples = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Example images on the page; by default those of the package."),
]
ServedBatch = Annotated[
    int,
    typer.Option(
        "--batch-size",
        rich_help_panel=groups.MACHINE,
        min=0,
        metavar="NUMBER",
        help="Images or tiles that go through the model together; 0: the fastest number, measured at start.",
    ),
]
AllowedHosts = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-host",
        rich_help_panel=groups.NETWORK,
        metavar="NAME",
        help="Another host name of this server, for example behind a proxy; repeatable.",
    ),
]
AllowedOrigins = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-origin",
        rich_help_panel=groups.NETWORK,
        metavar="URL",
        help="A site whose pages may send requests, such as https://example.org; repeatable.",
    ),
]
LabelStudioAddress = Annotated[
    str,
    typer.Option(
        "--label-studio",
        metavar="URL",
        help="Serve as a backend of this Label Studio; its token is read from LABEL_STUDIO_TOKEN.",
    ),
]
Megabytes = Annotated[
    int,
    typer.Option(
        rich_help_panel=groups.LIMITS,
        min=1,
        metavar="NUMBER",
        help="The largest accepted file, in MiB.",
    ),
]
Megapixels = Annotated[
    float,
    typer.Option(
        rich_help_panel=groups.LIMITS, min=0.001, metavar="NUMBER", help="The largest accepted image."
    ),
]
Waiting = Annotated[
    int,
    typer.Option(
        rich_help_panel=groups.LIMITS,
        min=1,
        metavar="NUMBER",
        help="Requests at the same time; further ones are refused for the moment (503).",
    ),
]
Seconds = Annotated[
    float,
    typer.Option(
        rich_help_panel=groups.LIMITS, min=0.1, metavar="NUMBER", help="The longest time for a request."
    ),
]
