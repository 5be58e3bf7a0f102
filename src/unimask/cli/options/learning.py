"""The options of `unimask train`, `evaluate` and `ablate`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from unimask.cli.options import groups
from unimask.cli.options.shared import TaskName

Task = Annotated[
    TaskName,
    typer.Option(
        metavar="TASK",
        help="panoptic: each pixel belongs to one object or to one kind of background. instance: each object "
        "with its own mask and score. semantic: a category for each pixel. detection: a box with a score "
        "around each object (models of boxes: DETR).",
    ),
]
TrainPreset = Annotated[
    str,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="The settings to start from; `unimask presets` lists them. Without it they are chosen from the "
        "data and this machine, and shown as options.",
    ),
]
TrainTask = Annotated[
    TaskName | None,
    typer.Option(
        "--task",
        metavar="TASK",
        help="panoptic, instance, semantic or detection; by default that of the model to start from, or what "
        "the data were labelled for.",
    ),
]
Epochs = Annotated[
    float,
    typer.Option(
        min=0.0,
        metavar="NUMBER",
        show_default=False,
        help="How often each image is seen, in the place of training.steps.",
    ),
]
Renamed = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="OLD=NEW",
        help="A category NEW of the data starts as OLD of the model to start from; repeat for more.",
    ),
]
RunFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="A new folder for everything about this training; by default one of the data's name in runs/.",
    ),
]
Initial = Annotated[
    str,
    typer.Option(
        metavar="MODEL",
        help="Where the weights start: none (random), imagenet (the backbone's; downloaded once unless they "
        "are installed), or a model to go on from, as --weights of `unimask predict` takes it: its "
        "architecture is taken too, and --preset and --set change the rest.",
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", metavar="", help="Go on where the training in the output folder stopped."),
]
Devices = Annotated[
    int,
    typer.Option(
        rich_help_panel=groups.MACHINE,
        metavar="NUMBER",
        help="Processes on this machine, each with a device of its own; by default one, or as many as "
        "torchrun or srun has started.",
    ),
]
Nodes = Annotated[
    int,
    typer.Option(
        rich_help_panel=groups.MACHINE,
        metavar="NUMBER",
        help="Machines; by default one, or as with --devices.",
    ),
]


class StrategyName(StrEnum):
    """How several processes share a training."""

    ddp = "ddp"
    fsdp = "fsdp"


Strategy = Annotated[
    StrategyName | None,
    typer.Option(
        rich_help_panel=groups.MACHINE,
        metavar="NAME",
        help="How several processes share the model: ddp, each has all of it; fsdp, each keeps a part of "
        "weights, gradients and optimiser, for models that are too large for one device.",
    ),
]
Pictures = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=groups.RESULTS,
        metavar="FOLDER",
        help="Also write each image here, its ground truth beside the prediction; the worst images; and what "
        "was taken for what.",
    ),
]
LoggerNames = Annotated[
    list[str] | None,
    typer.Option(
        "--logger",
        rich_help_panel=groups.RESULTS,
        metavar="NAME",
        help="Log there too, beside the output folder and TensorBoard: wandb, mlflow; repeat for more.",
    ),
]
Budget = Annotated[int, typer.Option(metavar="STEPS", help="Training steps of each row.")]
Rows = Annotated[
    list[str] | None,
    typer.Option(
        "--rows", metavar="NAMES", help="Train only these rows, with commas between them; by default all."
    ),
]


class StoryName(StrEnum):
    """The stories that an ablation tells."""

    add = "add"
    remove = "remove"


AblationStory = Annotated[
    StoryName,
    typer.Option(
        "--story",
        metavar="STORY",
        help="add: each row has one thing more than the row above it, and the last one is the preset. "
        "remove: the first row is the preset, and each other one lacks one thing alone, as in the paper.",
    ),
]
Seeds = Annotated[
    int,
    typer.Option(metavar="NUMBER", help="Trainings of each row, with seeds of their own: mean and spread."),
]
AblationFolder = Annotated[
    Path, typer.Option(metavar="FOLDER", help="Where table, plot and the trainings go.")
]
