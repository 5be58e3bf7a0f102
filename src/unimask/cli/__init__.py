"""The command line: `unimask predict | train | translate | evaluate | convert | export | bench | ...`.

Every error that is the input's fault is one message on standard error and exit code 2.
"""

import dataclasses
import inspect
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from typer.core import TyperArgument, TyperGroup

from unimask import __version__
from unimask.cli import options
from unimask.cli import output as show
from unimask.cli.experiments import preset_of, training_of
from unimask.cli.failures import (
    BAD_INPUT,
    STOPPED,
    check_folder,
    explain,
    naming,
    nothing_left_behind,
)
from unimask.cli.options import parse_settings
from unimask.cli.translation import (
    convert_translator,
    evaluate_translator,
    is_marian_folder,
    translate,
    writes_tokens,
)
from unimask.errors import ConfigError, DataError, UnimaskError

if TYPE_CHECKING:
    from unimask.box_results import BoxResult
    from unimask.config import DetrConfig, ModelConfig
    from unimask.results import Result

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
    tile: options.Tile = 0,
    overlap: options.Overlap = 128,
    tta: options.Augment = "",
    batch_size: options.BatchSize = 4,
    as_json: options.Json = False,
) -> None:
    """Segment pictures, or find boxes in them.

    For NAME.jpg it writes NAME.overlay.png (the picture with its segments), NAME.json (what was found)
    and, unless instances may overlap, NAME.segments.png (each pixel's segment id = R + 256 G + 65536 B); for
    boxes only the first two. A TIFF too large for memory is seen in tiles: NAME.segments.tif (segment ids)
    and NAME.json come out.

    A picture that cannot be read does not stop the others: it is listed at the end, and the exit code is 2.

    Examples:
      unimask predict photo.jpg
      unimask predict photos/ --task instance --output found
      unimask predict photo.jpg --weights runs/first/best
      unimask predict slide.tif --tile 1024 --overlap 128
      torchrun --nproc-per-node 4 --no-python unimask predict photos/
    """
    from unimask.cli.pictures import (
        Named,
        Work,
        are_large,
        segment_all,
        segment_large_pictures,
        share_of,
    )
    from unimask.config import Tiles
    from unimask.data.read import image_files
    from unimask.segmenter import load

    files = list(dict.fromkeys(image_files(images)))
    pictures = share_of(list(zip(files, output_names(files), strict=True)))
    check_folder(output)
    segmenter = load(weights, device=device, precision=precision.value)
    if tile:
        segmenter = segmenter.seeing(Tiles(size=tile, overlap=overlap))
    if tta:
        segmenter = segmenter.augmented([name.strip() for name in tta.split(",")])
    summaries: list[show.PictureSummary] = []
    records: list[dict[str, object]] = []

    def done(named: Named, result: "Result | BoxResult") -> None:
        if as_json:
            records.append({"name": named[1], "picture": str(named[0]), **result.to_json()})
        else:
            summaries.append(show.summarise(named[1], result))

    with show.progress("segmenting", len(pictures)) as advance:
        work = Work(
            segmenter=segmenter,
            task=task.value,
            threshold=threshold,
            batch_size=max(1, batch_size),
            output=output,
            done=done,
            advance=advance,
        )
        large = [named for named in pictures if are_large(segmenter, named[0])]
        segment_all(work, [named for named in pictures if named not in large])
        for (file, name), found in segment_large_pictures(work, large) if large else []:
            if as_json:
                about = {"name": name, "picture": str(file), "task": task.value, "map": str(found.map_file)}
                records.append({**about, "segments": len(found.segments)})
            else:
                summaries.append(show.summarise_large(name, found, segmenter.categories))
    failed = work.failed
    if as_json:
        show.show_json(records)
    elif summaries:
        show.show_pictures(summaries)
        show.show_line(f"results are in {output}{os.sep}")
    for failure in failed:
        show.show_error(failure)
    if failed:
        show.errors.print(f"{len(failed)} of {len(pictures)} pictures could not be segmented")
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
    run, how_to_try = training_of(preset, parse_settings(settings or []), task.value)
    with nothing_left_behind(output), naming(data):
        result = run(
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
            show.show_line(f"try it: {how_to_try.format(model=model)}")
    if not result.completed:
        show.errors.print("to go on: the same command with --resume")
        raise typer.Exit(STOPPED)


# evaluate, convert, export, bench, presets


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
    detection: COCO's box AP.
    All are shares from 0 to 1; a dash (in JSON -1) says that there was nothing to measure.
    A translator: BLEU of lowercased words, and sacrebleu's of cased text, on a split with files of its name.

    Examples:
      unimask evaluate --weights runs/first/best --data my_data --task instance
      unimask evaluate --weights nuclei --data my_data --output measured.json
    """
    from unimask.data.open import open_box_dataset, open_dataset
    from unimask.evaluation import evaluate as measure
    from unimask.segmenter import load

    if output is not None:
        if output.is_dir():
            raise DataError(output, "is a folder; name a file for the results with --output")
        check_folder(output.absolute().parent)
    if writes_tokens(weights):
        with naming(data):
            evaluate_translator(weights, data, split, output, device, as_json)
        return
    with naming(data):
        segmenter = load(weights, device=device, precision=precision.value)
        background = segmenter.model_file.experiment.data.background
        of_boxes = task == options.TaskName.detection
        dataset = (
            open_box_dataset(data, split) if of_boxes else open_dataset(data, split, task.value, background)
        )
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
    """Convert Mask2Former, MaskFormer, DETR and Marian weights of other releases into a folder, and back.

    Files are read without running code that may be in them.

    Examples:
      unimask convert model_final.pkl models/coco
      unimask convert facebook/mask2former-swin-tiny-coco-panoptic models/tiny
      unimask convert models/tiny exported --to transformers
    """
    from unimask.weights.conversion import convert as run

    if writes_tokens(source) or is_marian_folder(source):
        provenance = convert_translator(source, target, to.value, licence)
        show.show_json({"provenance": provenance}) if as_json else show.show_line(f"provenance: {provenance}")
        return
    model_file = run(source, target, to=to.value, licence=licence)
    found = {
        "target": str(target),
        "backbone": model_file.experiment.model.backbone.name,
        "queries": _queries(model_file.experiment.model),
        "categories": len(model_file.categories),
        "provenance": model_file.provenance,
    }
    if as_json:
        show.show_json(found)
    else:
        for name, value in found.items():
            show.show_line(f"{name}: {value}")


def _queries(model: "ModelConfig | DetrConfig") -> int:
    return model.query_decoder.queries if model.kind == "masks" else model.queries


@app.command()
def bench(
    weights: options.Weights = "nuclei",
    size: options.Size = "640x640",
    task: options.Task = options.TaskName.panoptic,
    compare: options.Compare = None,
    device: options.Device = "auto",
    precision: options.Precision = options.PrecisionName.full,
    threads: options.Threads = 0,
    rounds: options.RoundCount = 10,
    as_json: options.Json = False,
) -> None:
    """Measure how fast and lean a model is on this machine.

    It segments a generated picture: preparing it, the model, reading its prediction and encoding the result
    are timed apart. A reduced precision is measured beside the full one. With --compare, the same weights run
    in the other library in turn, and what both say is compared first.

    Examples:
      unimask bench --weights nuclei --size 512x512
      unimask bench --weights models/coco --precision bf16-mixed --compare transformers
    """
    from unimask.benchmark.measure import bench as run
    from unimask.benchmark.measure import to_plain

    found = run(
        weights,
        size=options.parse_size(size),
        task=task.value,
        device=device,
        precision=precision.value,
        threads=threads,
        rounds=rounds,
        compare=compare.value if compare else "",
    )
    if as_json:
        show.show_json(to_plain(found))
    else:
        show.show_bench(found)


@app.command()
def export(
    weights: options.Weights,
    output: options.ExportedFile,
    format: options.ExportedFormat = options.ExportFormat.onnx,
    pictures: options.ParityPictures = None,
    as_json: options.Json = False,
) -> None:
    """Export a model to one file that runs without unimask: ONNX, or a program of torch.export.

    Batch, height and width may differ from call to call. A report goes beside the file: the largest
    difference of its numbers from the model's, how far the final maps agree, and the time of both.

    Examples:
      unimask export --weights nuclei --output nuclei.onnx
      unimask export --weights runs/first/best --format onnx-int8 --output small.onnx --pictures photos/
      unimask predict photo.jpg --weights nuclei.onnx
    """
    from unimask.data.read import image_files, read_image
    from unimask.export.run import export as run

    images = [read_image(file) for file in image_files(pictures)] if pictures else []
    report = run(weights, output, format.value, images)
    if as_json:
        show.show_json(dataclasses.asdict(report))
    else:
        show.show_parity(report, str(output))


@app.command()
def presets(name: options.PresetName = "", as_json: options.Json = False) -> None:
    """List the named experiments, or every setting of one of them.

    `unimask train --preset NAME` starts from one of them; --set changes its settings.

    Examples:
      unimask presets
      unimask presets small
    """
    from unimask.config import settings_to_dict
    from unimask.presets import PRESETS, TRANSLATION_PRESETS, description

    if name:
        values = settings_to_dict(preset_of(name))
        if as_json:
            show.show_json(values)
        else:
            show.show_settings(values)
        return
    descriptions = {preset: description(preset) for preset in (*PRESETS, *TRANSLATION_PRESETS)}
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
    from unimask.config import Experiment, override
    from unimask.training.ablation import ablate as run
    from unimask.training.ablation import with_budget

    names = [name.strip() for part in rows or [] for name in part.split(",") if name.strip()]
    experiment = preset_of(preset)
    if not isinstance(experiment, Experiment):
        raise ConfigError(preset, "is a preset of translation; ablate goes from MaskFormer to Mask2Former")
    base = override(with_budget(experiment, budget), parse_settings(settings or []))
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


app.command()(translate)

for _each in app.registered_commands:
    _each.context_settings = HELP_OPTIONS
    _each.help = _flowing(inspect.getdoc(_each.callback) or "")
