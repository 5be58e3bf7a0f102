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
        help="panoptic, instance, semantic or detection; by default that of the initial model, or the task "
        "the data were labelled for.",
    ),
]
Epochs = Annotated[
    float,
    typer.Option(
        min=0.0,
        metavar="NUMBER",
        show_default=False,
        help="Number of passes over the training images; replaces training.steps.",
    ),
]
Renamed = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="OLD=NEW",
        help="Initialise category NEW of the data from category OLD of the initial model; repeat for more.",
    ),
]
RunFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="A new folder for all files of this training; by default one in runs/ named after the data.",
    ),
]
Initial = Annotated[
    str,
    typer.Option(
        metavar="MODEL",
        help="Initial weights: none (random), imagenet (for the backbone; downloaded once unless installed), "
        "or a model to fine-tune, as for --weights of `unimask predict`: its architecture is used too, and "
        "--preset and --set change the other settings.",
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", metavar="", help="Continue the training in the output folder."),
]
Devices = Annotated[
    int,
    typer.Option(
        rich_help_panel=groups.MACHINE,
        min=1,
        metavar="NUMBER",
        help="Number of processes on this machine, each with its own device; by default one, or as many as "
        "torchrun or srun has started.",
    ),
]
Nodes = Annotated[
    int,
    typer.Option(
        rich_help_panel=groups.MACHINE,
        min=1,
        metavar="NUMBER",
        help="Number of machines; by default one, or those on which torchrun or srun has started.",
    ),
]


class StrategyName(StrEnum):
    """How a training is distributed over processes."""

    ddp = "ddp"
    fsdp = "fsdp"


Strategy = Annotated[
    StrategyName | None,
    typer.Option(
        rich_help_panel=groups.MACHINE,
        metavar="NAME",
        help="How the model is distributed over processes. ddp: each has all of it. fsdp: each has a shard "
        "of weights, gradients and optimiser state, for models that are too large for one device.",
    ),
]
Pictures = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=groups.RESULTS,
        metavar="FOLDER",
        help="Also write to this folder each image with its ground truth beside the prediction, the worst "
        "images, and the confusion matrix.",
    ),
]
LoggerNames = Annotated[
    list[str] | None,
    typer.Option(
        "--logger",
        rich_help_panel=groups.RESULTS,
        metavar="NAME",
        help="Also log to wandb or mlflow, besides the output folder and TensorBoard; repeat for more.",
    ),
]
Budget = Annotated[int, typer.Option(min=1, metavar="STEPS", help="Training steps of each row.")]
Rows = Annotated[
    list[str] | None,
    typer.Option(
        "--rows", metavar="NAMES", help="Train only these rows, separated by commas; by default all."
    ),
]


class StoryName(StrEnum):
    """The kinds of ablation."""

    add = "add"
    remove = "remove"


AblationStory = Annotated[
    StoryName,
    typer.Option(
        "--story",
        metavar="STORY",
        help="add: each row adds one component to the row above it, and the last row is the preset. "
        "remove: the first row is the preset, and every other row removes one component, as in the paper.",
    ),
]
Seeds = Annotated[
    int,
    typer.Option(
        min=1, metavar="NUMBER", help="Trainings of each row with different seeds: mean and spread."
    ),
]
AblationFolder = Annotated[
    Path, typer.Option(metavar="FOLDER", help="The folder for the table, the plot and the trainings.")
]
