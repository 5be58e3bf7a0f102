"""The options of `unimask convert`, `push`, `export`, `presets` and `bench`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from unimask.cli.options import groups


class PeerName(StrEnum):
    """A library to compare a model with."""

    transformers = "transformers"


class ExportFormat(StrEnum):
    """The format of an exported model."""

    onnx = "onnx"
    onnx_int8 = "onnx-int8"
    pt2 = "pt2"


class WeightFormat(StrEnum):
    """A format of weights: of which library."""

    unimask = "unimask"
    transformers = "transformers"
    original = "original"


Stuff = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAMES",
        help="The categories that are stuff, with commas or one by one; all others are things. "
        "Default: as in COCO, ADE20K, Cityscapes and Vistas, and things elsewhere.",
    ),
]
PushedFolder = Annotated[
    str, typer.Argument(metavar="FOLDER", help="A model folder, a run, or a model of the package.")
]
HubName = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Its name on the hub.")]
PushedEvaluation = Annotated[
    Path | None,
    typer.Option(
        "--evaluation",
        metavar="FILE",
        help="What `unimask evaluate --output FILE` wrote: its measures stand in the card.",
    ),
]
Private = Annotated[
    bool, typer.Option("--private", metavar="", help="Only you can see a repository that is made.")
]
Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A .pkl or .pth of the original release, a folder or hub id of transformers, or a model folder.",
    ),
]
Target = Annotated[
    Path, typer.Argument(metavar="TARGET", help="The folder to write; a .pth or .pkl for --to original.")
]
To = Annotated[
    WeightFormat,
    typer.Option(
        metavar="FORMAT", help="Whose names and files to write: unimask, transformers or original (release)."
    ),
]
ExportedFormat = Annotated[
    ExportFormat,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="onnx: standard operators. onnx-int8: the same with matrix products in 8-bit integers. pt2: for "
        "torch.export.load.",
    ),
]
ExportedFile = Annotated[
    Path, typer.Option(metavar="FILE", help="The file to write; a report on it goes to FILE.parity.json.")
]
ParityImages = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="IMAGE_OR_FOLDER",
        readable=False,
        help="Images to compare results on; repeat for more. Without it they are generated.",
    ),
]
PresetName = Annotated[
    str, typer.Argument(metavar="NAME", help="Show every setting of this preset, as --set takes them.")
]
Size = Annotated[
    str,
    typer.Option(
        metavar="HEIGHTxWIDTH",
        help="Size of the model's input: one image, not resized. Multiples of 32.",
    ),
]
Compare = Annotated[
    PeerName | None,
    typer.Option(metavar="LIBRARY", help="Measure the same weights there too: transformers."),
]
Threads = Annotated[
    int,
    typer.Option(
        rich_help_panel=groups.MACHINE,
        metavar="NUMBER",
        help="Threads on the CPU; 0 leaves PyTorch its own choice.",
    ),
]
RoundCount = Annotated[int, typer.Option("--rounds", metavar="NUMBER", help="How often each side runs.")]
