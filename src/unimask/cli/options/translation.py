"""The options of `unimask translate`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class DecodingMethod(StrEnum):
    """A method of decoding."""

    beam = "beam"
    greedy = "greedy"
    sample = "sample"


Text = Annotated[
    list[str] | None,
    typer.Argument(metavar="TEXT", help="Lines to translate; without any, standard input is read."),
]
TranslationWeights = Annotated[
    str,
    typer.Option(
        metavar="MODEL",
        help="One that ships with the package, or a folder that `unimask train` wrote (its best/).",
    ),
]
TextFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Translate the lines of this file (UTF-8, also .gz).")
]
TranslationFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the result to this file, not to standard output.")
]
AttentionFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Also draw here what attends to what, an image per line for the encoder's self-attention, the "
        "decoder's masked self-attention and its cross-attention: a row of heads for each layer.",
    ),
]
Decoding = Annotated[
    DecodingMethod | None,
    typer.Option(
        "--decoding",
        metavar="METHOD",
        help="How words are chosen: beam (the best), greedy (the fastest), sample (by chance).",
    ),
]
Beams = Annotated[int | None, typer.Option(metavar="NUMBER", help="Hypotheses that a beam follows.")]
Seed = Annotated[int, typer.Option(metavar="NUMBER", help="Of sampling: another number, another result.")]
