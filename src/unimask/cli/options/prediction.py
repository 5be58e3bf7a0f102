"""The options of `unimask predict`."""

from enum import StrEnum
from typing import Annotated

import typer

from unimask.cli.options import groups


class EngineName(StrEnum):
    """What runs a model on many images."""

    local = "local"
    ray = "ray"


Images = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGE_OR_FOLDER",
        help="Images and videos, or folders of images (without subfolders); paths, or addresses in an object "
        "store (s3://bucket/photos).",
    ),
]
ResultFolder = Annotated[
    str,
    typer.Option(
        metavar="FOLDER", help="Where the results go: a folder, made if need be, or s3://bucket/folder."
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        metavar="SCORE",
        help="The lowest score of a segment or box, 0 to 1, not for semantic; by default the model's own.",
    ),
]
ResumePrediction = Annotated[
    bool,
    typer.Option(
        "--resume",
        rich_help_panel=groups.RESULTS,
        metavar="",
        help="Leave out images whose results are complete in the output folder, made by the same model with "
        "the same settings.",
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        rich_help_panel=groups.RESULTS,
        metavar="",
        help="Replace also files of the same names that are no results, or that were changed since.",
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        rich_help_panel=groups.MACHINE,
        metavar="NUMBER",
        help="Images or tiles of one size that go through the model together, at most.",
    ),
]
Engine = Annotated[
    EngineName,
    typer.Option(
        rich_help_panel=groups.MACHINE,
        help="What runs the model: this process (torchrun starts several), or actors of Ray on this "
        "machine or a cluster, for very many images.",
    ),
]
Address = Annotated[
    str,
    typer.Option(
        rich_help_panel=groups.MACHINE,
        metavar="ADDRESS",
        help="With --engine ray: a running cluster (HOST:PORT, auto, ray://HOST:PORT); without it that in "
        "RAY_ADDRESS, else Ray starts on this machine.",
    ),
]
Actors = Annotated[
    int,
    typer.Option(
        rich_help_panel=groups.MACHINE,
        metavar="NUMBER",
        min=0,
        help="With --engine ray: how many share the work; 0: one per GPU, without any one per 4 CPUs.",
    ),
]
ResultFormats = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        rich_help_panel=groups.RESULTS,
        metavar="NAMES",
        help="What to write, with commas between: overlay, png, json (the default), csv (segments.csv with "
        "area, perimeter and more of each segment), coco, geojson (QuPath, maps), imagej-roi (Fiji), "
        "labelme, label-studio, yolo.",
    ),
]
PixelSize = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=groups.RESULTS,
        metavar="MICROMETRES",
        help="How wide a pixel is: segments.csv then has micrometres beside pixels.",
    ),
]
Every = Annotated[int, typer.Option(metavar="NUMBER", help="Segment every n-th frame of a video.")]
