"""The options that several commands take."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from unimask.cli.options import groups


class TaskName(StrEnum):
    """A segmentation or detection task."""

    panoptic = "panoptic"
    instance = "instance"
    semantic = "semantic"
    detection = "detection"


class PrecisionName(StrEnum):
    """The floating-point precision of a model's computation."""

    full = "32-true"
    bfloat = "bf16-mixed"
    half = "16-mixed"


ModelTask = Annotated[
    TaskName | None,
    typer.Option(
        "--task",
        metavar="TASK",
        help="panoptic, instance, semantic or detection; by default the task the model was trained for.",
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
        help="The device to compute on: auto, cpu, cuda, cuda:1, mps.",
    ),
]
Precision = Annotated[
    PrecisionName,
    typer.Option(
        rich_help_panel=groups.MACHINE,
        metavar="PRECISION",
        help="32-true, or bf16-mixed or 16-mixed, which are faster on GPUs and slightly less accurate.",
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        metavar="MODEL",
        help="A model of the package (nuclei, street), a folder written by `unimask train` or `unimask "
        "convert`, an id on the Hugging Face hub (owner/name; converted once), or an ONNX file of "
        "`unimask export`.",
    ),
]
Base = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Base weights, if the source holds only differences to them: DINOv3 for an original EoMT file.",
    ),
]
Licence = Annotated[
    str,
    typer.Option(
        rich_help_panel=groups.RESULTS, metavar="TEXT", help="Licence of the weights, stored with them."
    ),
]
Tile = Annotated[
    int,
    typer.Option(
        rich_help_panel=groups.LARGE,
        min=0,
        metavar="PIXELS",
        help="Predict in square tiles of this size and join the results; 0: as the model was trained. A "
        "model that was trained on tiles keeps its own.",
    ),
]
Overlap = Annotated[
    int,
    typer.Option(
        rich_help_panel=groups.LARGE,
        min=0,
        metavar="PIXELS",
        help="Overlap of neighbouring tiles; it should be as wide as most objects.",
    ),
]
Depth = Annotated[
    str,
    typer.Option(
        rich_help_panel=groups.READING,
        metavar="BITS",
        help="Bits of the camera, for images with 16 bits per channel: 8 to 16, or auto (from the brightest "
        "image); by default those of the model.",
    ),
]
Page = Annotated[
    str,
    typer.Option(
        rich_help_panel=groups.READING,
        metavar="NUMBER",
        help="Page of a file with several images, or max for their maximum per pixel; by default the first.",
    ),
]
Channel = Annotated[
    str,
    typer.Option(
        rich_help_panel=groups.READING,
        metavar="NUMBER",
        help="Read only this channel, or max for the maximum over the channels; by default colours.",
    ),
]
Augment = Annotated[
    str,
    typer.Option(
        "--tta",
        rich_help_panel=groups.LARGE,
        metavar="NAMES",
        help="Test-time augmentation: flip, scales, or both (flip,scales). Better, in 2, 3 or 6 passes.",
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
        "images, or the word shapes for generated ones. The layouts are listed if a path fits none.",
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
        help="Also read files outside the data folder to which its file names or links lead.",
    ),
]
Split = Annotated[
    str, typer.Option(metavar="SPLIT", help="The split of the data to evaluate on: train, val, test or all.")
]
EvaluationFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Also write the results to this JSON file.")
]
