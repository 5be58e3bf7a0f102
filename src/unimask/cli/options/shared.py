"""The options that several commands take."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from unimask.cli.options import groups


class TaskName(StrEnum):
    """A task: what is segmented or found."""

    panoptic = "panoptic"
    instance = "instance"
    semantic = "semantic"
    detection = "detection"


class PrecisionName(StrEnum):
    """The precision that a model computes with."""

    full = "32-true"
    bfloat = "bf16-mixed"
    half = "16-mixed"


ModelTask = Annotated[
    TaskName | None,
    typer.Option(
        "--task",
        metavar="TASK",
        help="panoptic, instance, semantic or detection; by default what the model was trained for.",
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        rich_help_panel=groups.RESULTS,
        metavar="",
        help="Print the results as JSON on standard output.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        rich_help_panel=groups.MACHINE,
        metavar="DEVICE",
        help="Where to compute: auto, cpu, cuda, cuda:1, mps.",
    ),
]
Precision = Annotated[
    PrecisionName,
    typer.Option(
        rich_help_panel=groups.MACHINE,
        metavar="PRECISION",
        help="32-true; or bf16-mixed or 16-mixed, faster on GPUs and a little less exact.",
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        metavar="MODEL",
        help="One that ships with the package (nuclei, street), a folder that `unimask train` or `unimask "
        "convert` wrote, an id of the Hugging Face hub (owner/name; converted once), or an ONNX file of "
        "`unimask export`.",
    ),
]
Base = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Weights that those of the source are differences to: the DINOv3 of an EoMT's original file.",
    ),
]
Licence = Annotated[
    str,
    typer.Option(
        rich_help_panel=groups.RESULTS, metavar="TEXT", help="Licence of the weights; it is kept with them."
    ),
]
Tile = Annotated[
    int,
    typer.Option(
        rich_help_panel=groups.LARGE,
        metavar="PIXELS",
        help="Predict in square tiles of this side, and join the results. 0: as the model was made for. A "
        "model of tiles keeps its own.",
    ),
]
Overlap = Annotated[
    int,
    typer.Option(
        rich_help_panel=groups.LARGE,
        metavar="PIXELS",
        help="What neighbouring tiles share; as wide as most objects.",
    ),
]
Depth = Annotated[
    str,
    typer.Option(
        rich_help_panel=groups.READING,
        metavar="BITS",
        help="Bits of the camera where images have 16 a channel: 8 to 16, or auto (by the brightest of all); "
        "by default as the model was made for.",
    ),
]
Page = Annotated[
    str,
    typer.Option(
        rich_help_panel=groups.READING,
        metavar="NUMBER",
        help="Which image of a file with several, or max for the largest value of all; by default the first.",
    ),
]
Channel = Annotated[
    str,
    typer.Option(
        rich_help_panel=groups.READING,
        metavar="NUMBER",
        help="Read only this channel, or max for the largest value of all; by default colours.",
    ),
]
Augment = Annotated[
    str,
    typer.Option(
        "--tta",
        rich_help_panel=groups.LARGE,
        metavar="NAMES",
        help="Test-time augmentation: flip, scales, or both (flip,scales). Better results, 2, 3 or 6 passes.",
    ),
]
Preset = Annotated[
    str, typer.Option(metavar="NAME", help="The settings to start from; `unimask presets` lists them.")
]
Data = Annotated[
    str,
    typer.Option(
        metavar="PATH",
        help="Labelled images: a folder or a JSON of COCO (also Roboflow's), images beside label "
        "images, or the word shapes for generated ones. A path that does not fit lists the layouts.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Change a setting; repeat for more. `unimask presets NAME` lists all of them.",
    ),
]
FollowOutside = Annotated[
    bool,
    typer.Option(
        "--follow-outside",
        rich_help_panel=groups.READING,
        metavar="",
        help="Read files outside of the data folder that its names or links lead to.",
    ),
]
Split = Annotated[
    str, typer.Option(metavar="SPLIT", help="The part of the data to measure on: train, val, test or all.")
]
EvaluationFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Also write the results to this JSON file.")
]
