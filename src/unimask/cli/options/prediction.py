"""The options of `unimask predict`."""

from enum import StrEnum
from typing import Annotated

import typer

from unimask.cli.options import groups


class EngineName(StrEnum):
    """What runs the model: this process (or torchrun's), or Ray."""

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
        metavar="FOLDER", help="The folder for the results, created if needed, or s3://bucket/folder."
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        metavar="SCORE",
        help="The lowest score of a segment or box, 0 to 1, not for semantic; by default that of the model.",
    ),
]
ResumePrediction = Annotated[
    bool,
    typer.Option(
        "--resume",
        rich_help_panel=groups.RESULTS,
        metavar="",
        help="Skip images with complete results in the output folder, from the same model with the same "
        "settings.",
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        rich_help_panel=groups.RESULTS,
        metavar="",
        help="Also replace files of the same names that are not results, or that were changed since.",
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        rich_help_panel=groups.MACHINE,
        min=1,
        metavar="NUMBER",
        help="Largest number of images or tiles of the same size that go through the model together.",
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
        help="With --engine ray: a running cluster (HOST:PORT, auto, ray://HOST:PORT); by default that in "
        "RAY_ADDRESS, or else Ray is started on this machine.",
    ),
]
Actors = Annotated[
    int,
    typer.Option(
        rich_help_panel=groups.MACHINE,
        metavar="NUMBER",
        min=0,
        help="With --engine ray: number of actors; 0: one per GPU, or without GPUs one per 4 CPUs.",
    ),
]
ResultFormats = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        rich_help_panel=groups.RESULTS,
        metavar="NAMES",
        help="Formats to write, separated by commas: overlay, png, json (the default), csv (segments.csv "
        "with area, perimeter and more of each segment), coco, geojson (QuPath, maps), imagej-roi (Fiji), "
        "labelme, label-studio, yolo.",
    ),
]
PixelSize = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=groups.RESULTS,
        metavar="MICROMETRES",
        help="Width of a pixel; segments.csv then has values in micrometres, too.",
    ),
]
Every = Annotated[int, typer.Option(min=1, metavar="NUMBER", help="Segment every n-th frame of a video.")]
