"""The options of `unimask shards`."""

from pathlib import Path
from typing import Annotated

import typer

ShardFolder = Annotated[Path, typer.Option("--output", metavar="FOLDER", help="A new folder for the shards.")]
Megabytes = Annotated[
    int, typer.Option(min=1, metavar="NUMBER", help="Approximate size of a shard in MiB, at least one image.")
]
