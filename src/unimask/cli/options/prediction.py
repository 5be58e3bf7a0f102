"""The options of `unimask predict`."""

from pathlib import Path
from typing import Annotated

import typer

from unimask.cli.options import groups

Images = Annotated[
    list[Path],
    typer.Argument(
        metavar="IMAGE_OR_FOLDER",
        readable=False,  # an unreadable image must not stop the others
        help="Images and videos, or folders of images (without subfolders).",
    ),
]
ResultFolder = Annotated[
    Path, typer.Option(metavar="FOLDER", help="Where the results go; it is made if need be.")
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
