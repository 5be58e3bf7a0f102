"""The command line: `unimask predict | train | evaluate | convert | presets | ablate`.

Every error that is the input's fault is one message on standard error and exit code 2.
"""

import dataclasses
import inspect
import io
import os
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from typer.core import TyperArgument, TyperGroup

from unimask import __version__
from unimask.cli import options
from unimask.cli import output as show
from unimask.cli.failures import (
    BAD_INPUT,
    STOPPED,
    check_folder,
    collected,
    explain,
    naming,
    nothing_left_behind,
)
from unimask.cli.options import parse_settings
from unimask.errors import ConfigError, DataError, UnimaskError

if TYPE_CHECKING:
    from unimask.config import Experiment

HELP_OPTIONS = {"help_option_names": ["--help", "-h"]}

app = typer.Typer(
    name="unimask",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings=HELP_OPTIONS,
)


def main() -> NoReturn:
    """Run the command line; the entry point of the `unimask` script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may hold anything
    try:
        _command()()
    except UnimaskError as error:
        show.show_error(error)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        show.show_error("by the keyboard", "stopped")
        sys.exit(STOPPED)
    except Exception as error:
        if os.environ.get("UNIMASK_TRACEBACK"):
            raise
        sys.exit(explain(error))
    sys.exit(0)


def _command() -> TyperGroup:
    """All commands, with help that shows no types of Python."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    for command in (group, *group.commands.values()):
        option = command.get_help_option(typer.Context(command, **command.context_settings))
        if option is not None:
            option.metavar = ""
        for parameter in command.params:
            if isinstance(parameter, TyperArgument):
                parameter.display_type_rich = lambda ctx: ""  # type: ignore[method-assign]
    return group


def _print_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"unimask {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", metavar="", is_eager=True, callback=_print_version, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """A picture becomes segments: Mask2Former for panoptic, instance and semantic segmentation.

    Each command has a --help of its own.

    Examples:
      unimask predict photo.jpg
      unimask train --preset small --data my_data --output runs/first
    """


# predict


def output_names(files: list[Path]) -> list[str]:
    """A name for each picture's results: its stem, or more of its path where stems collide.

    Names that differ only in upper and lower case collide too: some file systems take them for the same.
    """
    names = [file.stem for file in files]
    for longer in (
        lambda file: f"{file.stem}_{file.suffix[1:]}",
        lambda file: "_".join([file.absolute().parent.name, file.stem, file.suffix[1:]]),
    ):
        folded = [name.casefold() for name in names]
        names = [
            longer(file) if folded.count(one) > 1 else name
            for file, name, one in zip(files, names, folded, strict=True)
        ]
    taken: set[str] = set()
    for index, name in enumerate(names):
        number = 2
        while names[index].casefold() in taken:
            names[index] = f"{name}_{number}"
            number += 1
        taken.add(names[index].casefold())
    return names


@app.command()
def predict(
    images: options.Images,
    task: options.Task = options.TaskName.panoptic,
    weights: options.Weights = "nuclei",
    output: options.ResultFolder = Path("output"),
    device: options.Device = "auto",
    precision: options.Precision = options.PrecisionName.full,
    threshold: options.Threshold = None,
    as_json: options.Json = False,
) -> None:
    """Segment pictures.

    For NAME.jpg it writes NAME.overlay.png (the picture with its segments), NAME.json (what was found)
    and, unless instances may overlap, NAME.segments.png (each pixel's segment id = R + 256 G + 65536 B).

    A picture that cannot be read does not stop the others: it is listed at the end, and the exit code is 2.

    Examples:
      unimask predict photo.jpg
      unimask predict photos/ --task instance --output found
      unimask predict photo.jpg --weights runs/first/best
    """
    from unimask.data.read import image_files
    from unimask.segmenter import load

    files = list(dict.fromkeys(image_files(images)))
    check_folder(output)
    segmenter = load(weights, device=device, precision=precision.value)
    summaries: list[show.PictureSummary] = []
    records: list[dict[str, object]] = []
    failed: list[DataError] = []
    with show.progress("segmenting", len(files)) as advance:
        for file, name in zip(files, output_names(files), strict=True):
            with collected(failed, file):
                result = segmenter.predict(file, task=task.value, threshold=threshold)
                result.save(output, name)
                if as_json:
                    records.append({"name": name, "picture": str(file), **result.to_json()})
                else:
                    summaries.append(show.summarise(name, result))
            advance()
    if as_json:
        show.show_json(records)
    elif summaries:
        show.show_pictures(summaries)
        show.show_line(f"results are in {output}{os.sep}")
    for failure in failed:
        show.show_error(failure)
    if failed:
        show.errors.print(f"{len(failed)} of {len(files)} pictures could not be segmented")
        raise typer.Exit(BAD_INPUT)


# train


@app.command()
def train(
    preset: options.Preset,
    data: options.Data,
    output: options.RunFolder,
    task: options.Task = options.TaskName.panoptic,
    settings: options.Settings = None,
    initial: options.Initial = "none",
    resume: options.Resume = False,
    device: options.Device = "auto",
    devices: options.Devices = 1,
    nodes: options.Nodes = 1,
    licence: options.Licence = "not stated",
    as_json: options.Json = False,
) -> None:
    """Train a model on labelled pictures.

    The best model goes to OUTPUT/best, the last one to OUTPUT/model, what was measured to
    OUTPUT/results.json. Stop it at any moment: the same command with --resume goes on as if nothing had
    happened.

    Examples:
      unimask train --preset tiny --data shapes --output runs/trial
      unimask train --preset small --data my_data --output runs/first
      unimask train --preset small --data my_data --output runs/first --resume

    For good results add --initial imagenet, and for longer training --set training.steps=20000.
    """
    from unimask.config import override
    from unimask.training.loop import train as run

    experiment = override(_preset(preset), parse_settings(settings or []))
    with nothing_left_behind(output), naming(data):
        result = run(
            experiment,
            task.value,
            data,
            output,
            resume=resume,
            initial=None if initial == "none" else initial,
            device=device,
            devices=devices,
            nodes=nodes,
            licence=licence,
        )
    if not result.first_process:
        return
    if as_json:
        shown = {**dataclasses.asdict(result), "output": str(result.output)}
        del shown["first_process"]
        show.show_json(shown)
    else:
        if result.best:
            show.show_values(result.best, f"best evaluation: after step {result.best_step} of {result.steps}")
        model = result.output / ("best" if result.best else "model")
        if model.is_dir():
            show.show_line(f"try it: unimask predict PICTURE --weights {model} --task {task}")
    if not result.completed:
        show.errors.print("to go on: the same command with --resume")
        raise typer.Exit(STOPPED)


def _preset(name: str) -> "Experiment":
    from unimask.presets import PRESETS

    if name not in PRESETS:
        near = get_close_matches(name, PRESETS, 3, 0.5) or ["small", "tiny"]
        raise ConfigError(name, f"no such preset; is it {' or '.join(near)}? `unimask presets` lists them")
    return PRESETS[name]()


# evaluate, convert, presets


@app.command()
def evaluate(
    weights: options.Weights,
    data: options.Data,
    task: options.Task = options.TaskName.panoptic,
    split: options.Split = "val",
    output: options.EvaluationFile = None,
    device: options.Device = "auto",
    precision: options.Precision = options.PrecisionName.full,
    as_json: options.Json = False,
) -> None:
    """Measure a model on labelled pictures, at their own size.

    panoptic: PQ, SQ, RQ and mIoU. instance: COCO's mask AP, and AP(t) = TP / (TP + FP + FN). semantic: mIoU.
    All are shares from 0 to 1; a dash (in JSON -1) says that there was nothing to measure.

    Examples:
      unimask evaluate --weights runs/first/best --data my_data --task instance
      unimask evaluate --weights nuclei --data my_data --output measured.json
    """
    from unimask.data.open import open_dataset
    from unimask.evaluation import evaluate as measure
    from unimask.segmenter import load

    if output is not None:
        if output.is_dir():
            raise DataError(output, "is a folder; name a file for the results with --output")
        check_folder(output.absolute().parent)
    with naming(data):
        segmenter = load(weights, device=device, precision=precision.value)
        background = segmenter.model_file.experiment.data.background
        dataset = open_dataset(data, split, task.value, background)
        with show.progress("evaluating", len(dataset)) as advance:
            evaluation = measure(segmenter, dataset, task.value, progress=lambda done, total: advance())
    if output is not None:
        evaluation.save(output)
    if as_json:
        show.show_json(dataclasses.asdict(evaluation))
    else:
        show.show_evaluation(evaluation, data)


@app.command()
def convert(
    source: options.Source,
    target: options.Target,
    to: options.To = options.WeightFormat.unimask,
    licence: options.Licence = "not stated",
    as_json: options.Json = False,
) -> None:
    """Convert Mask2Former and MaskFormer weights of other releases into a model folder, and back.

    Files are read without running code that may be in them.

    Examples:
      unimask convert model_final.pkl models/coco
      unimask convert facebook/mask2former-swin-tiny-coco-panoptic models/tiny
      unimask convert models/tiny exported --to transformers
    """
    from unimask.weights.conversion import convert as run

    model_file = run(source, target, to=to.value, licence=licence)
    found = {
        "target": str(target),
        "backbone": model_file.experiment.model.backbone.name,
        "queries": model_file.experiment.model.query_decoder.queries,
        "categories": len(model_file.categories),
        "provenance": model_file.provenance,
    }
    if as_json:
        show.show_json(found)
    else:
        for name, value in found.items():
            show.show_line(f"{name}: {value}")


@app.command()
def presets(name: options.PresetName = "", as_json: options.Json = False) -> None:
    """List the named experiments, or every setting of one of them.

    `unimask train --preset NAME` starts from one of them; --set changes its settings.

    Examples:
      unimask presets
      unimask presets small
    """
    from unimask.config import experiment_to_dict
    from unimask.presets import PRESETS, description

    if name:
        values = experiment_to_dict(_preset(name))
        if as_json:
            show.show_json(values)
        else:
            show.show_settings(values)
        return
    descriptions = {preset: description(preset) for preset in PRESETS}
    if as_json:
        show.show_json(descriptions)
    else:
        show.show_presets(descriptions)


@app.command()
def ablate(
    data: options.Data,
    budget: options.Budget,
    output: options.AblationFolder,
    task: options.Task = options.TaskName.panoptic,
    preset: options.Preset = "small",
    rows: options.Rows = None,
    settings: options.Settings = None,
    initial: options.Initial = "none",
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Go from MaskFormer to Mask2Former step by step, on your data.

    Each row has one thing more than the row before it, and the last one is the preset: maskformer,
    masked_attention, multi_scale, deformable, cross_attention_first, learned_queries, no_dropout,
    cross_entropy, points. All are trained on the same data for the same number of steps. OUTPUT/table.md,
    OUTPUT/plot.svg and OUTPUT/results.json say how good each is on the way, how long a step takes, and how
    much memory.

    Stop it at any moment: the same command goes on. A row that fails is named, and the others go on; the exit
    code is then 2.

    Examples:
      unimask ablate --preset tiny --data shapes --budget 2000 --output ablation
      unimask ablate --data my_data --budget 4000 --rows maskformer,points --output ablation
    """
    from unimask.config import override
    from unimask.training.ablation import ablate as run
    from unimask.training.ablation import with_budget

    names = [name.strip() for part in rows or [] for name in part.split(",") if name.strip()]
    base = override(with_budget(_preset(preset), budget), parse_settings(settings or []))
    try:
        with naming(data):
            results = run(
                base,
                task.value,
                data,
                output,
                rows=names,
                initial=None if initial == "none" else initial,
                device=device,
                message=show.errors.print,
            )
    except KeyboardInterrupt:
        show.errors.print("stopped; the same command goes on")
        raise typer.Exit(STOPPED) from None
    if as_json:
        show.show_json([dataclasses.asdict(result) for result in results])
    else:
        show.show_line((output / "table.md").read_text(encoding="utf-8").strip())
        show.show_line(f"the plot is {output / 'plot.svg'}")
    failed = [result for result in results if result.failure]
    for result in failed:
        show.show_error(f"{result.name}: {result.failure}")
    if failed:
        raise typer.Exit(BAD_INPUT)


def _flowing(text: str) -> str:
    """Help that fits terminals of any width: the lines of a paragraph become one, indented ones stay."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(
        paragraph if "\n  " in paragraph else paragraph.replace("\n", " ") for paragraph in paragraphs
    )


for _each in app.registered_commands:
    _each.context_settings = HELP_OPTIONS
    _each.help = _flowing(inspect.getdoc(_each.callback) or "")
