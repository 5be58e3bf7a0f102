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
        help="A model of the package, or a folder written by `unimask train` (its best/).",
    ),
]
TextFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Translate the lines of this file (UTF-8, also .gz).")
]
TranslationFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write to this file instead of standard output.")
]
AttentionFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Also draw attention maps into this folder, an image per line for the encoder's self-attention, "
        "the decoder's masked self-attention and its cross-attention: a row of heads for each layer.",
    ),
]
Decoding = Annotated[
    DecodingMethod | None,
    typer.Option(
        "--decoding",
        metavar="METHOD",
        help="Decoding method: beam (the best), greedy (the fastest), sample (random).",
    ),
]
Beams = Annotated[
    int | None, typer.Option(min=1, metavar="NUMBER", help="Number of hypotheses in beam search.")
]
Seed = Annotated[int, typer.Option(min=0, metavar="NUMBER", help="Random seed of sampling.")]
