"""The arguments and options of the commands, with their help."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from unimask.errors import ConfigError


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


class PeerName(StrEnum):
    """A library to compare a model with."""

    transformers = "transformers"


class ExportFormat(StrEnum):
    """The format of an exported model."""

    onnx = "onnx"
    onnx_int8 = "onnx-int8"
    pt2 = "pt2"


class DecodingMethod(StrEnum):
    """A method of decoding."""

    beam = "beam"
    greedy = "greedy"
    sample = "sample"


class WeightFormat(StrEnum):
    """A format of weights: of which library."""

    unimask = "unimask"
    transformers = "transformers"
    original = "original"


Task = Annotated[
    TaskName,
    typer.Option(
        metavar="TASK",
        help="panoptic: each pixel belongs to one object or to one kind of background. instance: each object "
        "with its own mask and score. semantic: a category for each pixel. detection: a box with a score "
        "around each object (models of boxes: DETR).",
    ),
]
ModelTask = Annotated[
    TaskName | None,
    typer.Option(
        "--task",
        metavar="TASK",
        help="panoptic, instance, semantic or detection; by default what the model was trained for.",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", metavar="", help="Print the results as JSON on standard output.")
]
Device = Annotated[
    str, typer.Option(metavar="DEVICE", help="Where to compute: auto, cpu, cuda, cuda:1, mps.")
]
Precision = Annotated[
    PrecisionName,
    typer.Option(
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
Stuff = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAMES",
        help="The categories that are stuff, with commas or one by one; all others are things. "
        "Default: as in COCO, ADE20K, Cityscapes and Vistas, and things elsewhere.",
    ),
]
Licence = Annotated[str, typer.Option(metavar="TEXT", help="Licence of the weights; it is kept with them.")]

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

Tile = Annotated[
    int,
    typer.Option(
        metavar="PIXELS",
        help="Predict in square tiles of this side, and join the results. 0: as the model was made for. A "
        "model of tiles keeps its own.",
    ),
]
Overlap = Annotated[
    int, typer.Option(metavar="PIXELS", help="What neighbouring tiles share; as wide as most objects.")
]
Depth = Annotated[
    str,
    typer.Option(
        metavar="BITS",
        help="Bits of the camera where images have 16 a channel: 8 to 16, or auto (by the brightest of all); "
        "by default as the model was made for.",
    ),
]
Page = Annotated[
    str,
    typer.Option(
        metavar="NUMBER",
        help="Which image of a file with several, or max for the largest value of all; by default the first.",
    ),
]
Channel = Annotated[
    str,
    typer.Option(
        metavar="NUMBER",
        help="Read only this channel, or max for the largest value of all; by default colours.",
    ),
]
Augment = Annotated[
    str,
    typer.Option(
        "--tta",
        metavar="NAMES",
        help="Test-time augmentation: flip, scales, or both (flip,scales). Better results, 2, 3 or 6 passes.",
    ),
]
ResumePrediction = Annotated[
    bool,
    typer.Option(
        "--resume",
        metavar="",
        help="Leave out images whose results are complete in the output folder, made by the same model with "
        "the same settings.",
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        metavar="",
        help="Replace also files of the same names that are no results, or that were changed since.",
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        metavar="NUMBER", help="Images or tiles of one size that go through the model together, at most."
    ),
]

ResultFormats = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        metavar="NAMES",
        help="What to write, with commas between: overlay, png, json (the default), csv (segments.csv with "
        "area, perimeter and more of each segment), coco, geojson (QuPath, maps), imagej-roi (Fiji), "
        "labelme, label-studio, yolo.",
    ),
]
PixelSize = Annotated[
    float | None,
    typer.Option(
        metavar="MICROMETRES", help="How wide a pixel is: segments.csv then has micrometres beside pixels."
    ),
]
Every = Annotated[int, typer.Option(metavar="NUMBER", help="Segment every n-th frame of a video.")]

CheckPicture = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The picture of samples; check.png here, and none with --json."),
]
Preset = Annotated[
    str, typer.Option(metavar="NAME", help="The settings to start from; `unimask presets` lists them.")
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
LabelledTask = Annotated[
    TaskName | None,
    typer.Option(
        "--task",
        metavar="TASK",
        help="panoptic, instance, semantic or detection; by default what the data were labelled for.",
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
        min=0.0, metavar="NUMBER", help="How often each image is seen, in the place of training.steps."
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
Data = Annotated[
    str,
    typer.Option(
        metavar="PATH",
        help="Labelled images: a folder or a JSON of COCO (also Roboflow's), images beside label "
        "images, or the word shapes for generated ones. A path that does not fit lists the layouts.",
    ),
]
RunFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="A new folder for everything about this training; by default one of the data's name in runs/.",
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
FollowOutside = Annotated[
    bool,
    typer.Option(
        "--follow-outside",
        metavar="",
        help="Read files outside of the data folder that its names or links lead to.",
    ),
]
Devices = Annotated[
    int, typer.Option(metavar="NUMBER", help="Processes on this machine, each with a device of its own.")
]
Nodes = Annotated[int, typer.Option(metavar="NUMBER", help="Machines.")]

Text = Annotated[
    list[str] | None,
    typer.Argument(metavar="TEXT", help="Lines to translate; without any, standard input is read."),
]
TranslationWeights = Annotated[
    str,
    typer.Option(
        metavar="MODEL",
        help="One that ships with the package, or a folder that `unimask train` wrote (its best/).",
    ),
]
TextFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Translate the lines of this file (UTF-8, also .gz).")
]
TranslationFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the result to this file, not to standard output.")
]
AttentionFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Also draw here what attends to what, an image per line for the encoder's self-attention, the "
        "decoder's masked self-attention and its cross-attention: a row of heads for each layer.",
    ),
]
Decoding = Annotated[
    DecodingMethod | None,
    typer.Option(
        "--decoding",
        metavar="METHOD",
        help="How words are chosen: beam (the best), greedy (the fastest), sample (by chance).",
    ),
]
Beams = Annotated[int | None, typer.Option(metavar="NUMBER", help="Hypotheses that a beam follows.")]
Seed = Annotated[int, typer.Option(metavar="NUMBER", help="Of sampling: another number, another result.")]

Split = Annotated[
    str, typer.Option(metavar="SPLIT", help="The part of the data to measure on: train, val, test or all.")
]
Runs = Annotated[
    list[Path], typer.Argument(metavar="RUN", help="Folders of trainings (`unimask train --output`).")
]
ComparisonPicture = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The curves, as PNG or SVG; compare.png here, and none with --json."),
]
Pictures = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Also write each image here, its truth beside what was found, and the worst ones and what was "
        "found as what.",
    ),
]
LoggerNames = Annotated[
    list[str] | None,
    typer.Option(
        "--logger",
        metavar="NAME",
        help="Log there too, beside the output folder and TensorBoard: wandb, mlflow; repeat for more.",
    ),
]
EvaluationFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Also write the results to this JSON file.")
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
Private = Annotated[bool, typer.Option("--private", help="Only you can see a repository that is made.")]
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
ParityPictures = Annotated[
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


RowName = Annotated[
    str, typer.Argument(metavar="ROW", help="A row of the table, or the beginning of some of their names.")
]
ReproducedData = Annotated[
    str, typer.Option("--data", metavar="PATH", help="The data of the row, as --data of `unimask evaluate`.")
]
ReproducedWeights = Annotated[
    str,
    typer.Option(
        "--weights",
        metavar="FILE",
        help="The weights of the row, as they were downloaded, in any form that `unimask convert` reads.",
    ),
]
ZooFile = Annotated[
    Path, typer.Option("--table", metavar="FILE", help="Another table of models, of the same form.")
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
    int, typer.Option(metavar="NUMBER", help="Threads on the CPU; 0 leaves PyTorch its own choice.")
]
RoundCount = Annotated[int, typer.Option("--rounds", metavar="NUMBER", help="How often each side runs.")]
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

ServedWeights = Annotated[
    list[str] | None,
    typer.Option(
        "--weights",
        metavar="MODEL",
        help="As of `unimask predict`; repeat to serve several. By default the one of the package (nuclei).",
    ),
]
Host = Annotated[
    str,
    typer.Option(
        metavar="ADDRESS", help="The address to listen on; 0.0.0.0 lets other machines in, with a token."
    ),
]
Port = Annotated[int, typer.Option(metavar="NUMBER", help="The port; 0: any that is free.")]
Examples = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Images that the page offers; by default those of the package."),
]
ServedBatch = Annotated[
    int,
    typer.Option(
        "--batch-size",
        min=0,
        metavar="NUMBER",
        help="Images or tiles that go through the model together; 0: what is fastest here, measured first.",
    ),
]
AllowedHosts = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-host",
        metavar="NAME",
        help="A further name of this server in addresses, as behind a proxy; repeatable.",
    ),
]
AllowedOrigins = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-origin",
        metavar="URL",
        help="A site whose pages may ask, as https://example.org; repeatable.",
    ),
]
LabelStudioAddress = Annotated[
    str,
    typer.Option(
        "--label-studio",
        metavar="URL",
        help="Be a backend of this Label Studio; the variable LABEL_STUDIO_TOKEN holds a token of it.",
    ),
]
Megabytes = Annotated[
    int, typer.Option(min=1, metavar="NUMBER", help="The largest file that is accepted, in MiB.")
]
Megapixels = Annotated[
    float, typer.Option(min=0.001, metavar="NUMBER", help="The largest image that is accepted.")
]
Waiting = Annotated[
    int, typer.Option(min=1, metavar="NUMBER", help="Requests at a time; more are told to come back (503).")
]
Seconds = Annotated[float, typer.Option(min=0.1, metavar="NUMBER", help="The longest that a request takes.")]


def names_in(given: list[str] | None) -> list[str]:
    """Return the names in an option that takes several, with commas between them or repeated."""
    return [name.strip() for part in given or [] for name in part.split(",") if name.strip()]


def parse_size(text: str) -> tuple[int, int]:
    """Return `640x480` as (height, width).

    Raises:
        ConfigError: the text has another form.
    """
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise ConfigError("size", f"expected HEIGHTxWIDTH, such as 640x640; got {text!r}")
    return int(height), int(width)


def parse_word_or_number(text: str) -> str | int | None:
    """Return `3` as a number, a word as it is, and None for nothing."""
    return int(text) if text.isdecimal() and len(text) < 7 else text or None


def _value(text: str) -> object:
    """Return `4`, `0.1`, `true`, `[512,512]`, `{...}` as JSON, anything else as a word."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def parse_renamed(pairs: list[str]) -> dict[str, str]:
    """Return `old=new` arguments as a dict.

    Raises:
        ConfigError: an argument holds no `=`, or two name the same old category.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not (equals and old.strip() and new.strip()):
            raise ConfigError("map", f"expected OLD=NEW, such as person=pedestrian; got {pair!r}")
        if old.strip() in found:
            raise ConfigError("map", f"{old.strip()!r} is named twice")
        found[old.strip()] = new.strip()
    return found


def parse_settings(assignments: list[str]) -> dict[str, object]:
    """Return `path=value` arguments as a dict.

    Raises:
        ConfigError: an argument holds no `=`.
    """
    changes: dict[str, object] = {}
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(assignment, "expected PATH=VALUE, such as training.steps=2000")
        changes[path.strip()] = _value(value.strip())
    return changes
