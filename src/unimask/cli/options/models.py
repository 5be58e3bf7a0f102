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
    """The library in whose format weights are written."""

    unimask = "unimask"
    transformers = "transformers"
    original = "original"


Stuff = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAMES",
        help="The stuff categories, separated by commas or repeated; all others are things. "
        "Default: as in COCO, ADE20K, Cityscapes and Vistas; only things in other data sets.",
    ),
]
PushedFolder = Annotated[
    str, typer.Argument(metavar="FOLDER", help="A model folder, a run folder, or a model of the package.")
]
HubName = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The name of the repository on the hub.")]
PushedEvaluation = Annotated[
    Path | None,
    typer.Option(
        "--evaluation",
        metavar="FILE",
        help="The file of `unimask evaluate --output FILE`; its measures are added to the model card.",
    ),
]
Private = Annotated[
    bool, typer.Option("--private", metavar="", help="Make the repository private if it is created.")
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
        metavar="FORMAT", help="Format to write: unimask, transformers, or original (of the release)."
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
    Path, typer.Option(metavar="FILE", help="The file to write; its report is FILE.parity.json.")
]
ParityImages = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="IMAGE_OR_FOLDER",
        readable=False,
        help="Images to compare results on; repeat for more. By default they are generated.",
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
    typer.Option(metavar="LIBRARY", help="Also measure the same weights in this library: transformers."),
]
Threads = Annotated[
    int,
    typer.Option(
        rich_help_panel=groups.MACHINE,
        min=0,
        metavar="NUMBER",
        help="Number of CPU threads; 0: the default of PyTorch.",
    ),
]
RoundCount = Annotated[
    int, typer.Option("--rounds", min=1, metavar="NUMBER", help="Number of runs of each side.")
]
