"""`unimask train`, `evaluate` and `ablate`."""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import chain, count
from pathlib import Path

import typer

import unimask
from unimask import presets
from unimask.cli import output as show
from unimask.cli import tables
from unimask.cli.failures import BAD_INPUT, STOPPED, check_folder, naming
from unimask.cli.options import learning, shared
from unimask.cli.options.parsing import names_in, parse_renamed, parse_settings
from unimask.cli.prediction import load_as_asked
from unimask.cli.translation import evaluate_translator
from unimask.errors import ConfigError, DataError


def train(
    data: shared.Data,
    preset: learning.TrainPreset = "",
    output: learning.RunFolder = None,
    task: learning.TrainTask = None,
    settings: shared.Settings = None,
    epochs: learning.Epochs = 0.0,
    initial: learning.Initial = "",
    renamed: learning.Renamed = None,
    resume: learning.Resume = False,
    device: shared.Device = "auto",
    devices: learning.Devices = 1,
    nodes: learning.Nodes = 1,
    strategy: learning.Strategy = None,
    licence: shared.Licence = "not stated",
    loggers: learning.LoggerNames = None,
    follow_outside: shared.FollowOutside = False,
    as_json: shared.Json = False,
) -> None:
    """Train a model on labelled images.

    With --data alone, settings and initial weights are chosen to suit the data and this machine, and shown as
    options to copy. With --initial MODEL its architecture and data settings are kept; with --preset nothing
    is chosen.

    The best model is written to OUTPUT/best, the last one to OUTPUT/model, the measures to
    OUTPUT/results.json; OUTPUT/report.html shows the progress. Training can be stopped at any time: the same
    command with --resume continues as if it had not been stopped.

    Examples:
      unimask train --data my_data
      unimask train --data my_data --output runs/first --epochs 100
      unimask train --data my_data --initial runs/first --map person=pedestrian
      unimask train --data my_data --output runs/first --resume
      unimask train --data my_data --preset small --initial imagenet
    """
    from unimask.inference.measures import MAIN_MEASURES
    from unimask.processes import launched

    shared_how = [f"training.strategy={strategy.value}"] if strategy else []
    asked = parse_settings([*(settings or []), *["data.follow_outside=true"] * follow_outside, *shared_how])
    categories = parse_renamed(renamed or [])
    devices, nodes = launched(devices, nodes)
    folder = _run_folder(output, data, resume=resume, processes=devices * nodes)
    with naming(data):
        with show.counting("reading") as counted:
            plan = unimask.plan(
                data,
                task=task.value if task else None,
                preset=preset,
                initial=initial,
                changes=asked,
                epochs=epochs,
                device=device,
                processes=devices * nodes,
                resumed=folder if resume else None,
                progress=counted,
            )
        given = {
            "--set": settings or [],
            "--map": renamed or [],
            "--logger": loggers or [],
            "--epochs": [f"{epochs:g}"] * (epochs > 0),
            "--device": [device] * (device != "auto"),
            "--strategy": [strategy.value] if strategy else [],
            "--licence": [licence] * (licence != "not stated"),
        }
        command = ["unimask", "train", "--data", data, "--output", str(folder), *_words(given)]
        tables.show_plan(plan, data, [*command, *["--follow-outside"] * follow_outside])
        result = unimask.train(
            plan.experiment,
            data,
            folder,
            task=plan.task,
            resume=resume,
            initial=plan.initial,
            renamed=categories,
            device=device,
            devices=devices,
            nodes=nodes,
            licence=licence,
            loggers=loggers or (),
            checked=plan.checked,
        )
    if not result.first_process:
        return
    if as_json:
        shown = {**dataclasses.asdict(result), "output": str(result.output)}
        del shown["first_process"]
        show.show_json(shown)
    else:
        if result.best:
            main = {name: result.best[name] for name in MAIN_MEASURES[plan.task] if name in result.best}
            title = f"best evaluation: after step {result.best_step} of {result.steps}"
            tables.show_values(main or result.best, title)
            show.show_line(f"all of it: {result.output / 'report.html'}")
        model = result.output / ("best" if result.best else "model")
        if model.is_dir():
            trial = f"predict IMAGE --weights {result.output}"
            if preset in presets.TRANSLATION_PRESETS:
                trial = f'translate "A sentence." --weights {model}'
            show.show_line(f"try it: unimask {trial}")
    if not result.completed:
        show.errors.print("to go on: the same command with --resume")
        raise typer.Exit(STOPPED)


def _words(options: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the words of a command line: each option before each of its values."""
    return [word for option, values in options.items() for value in values for word in (option, value)]


def _run_folder(output: Path | None, data: str, *, resume: bool, processes: int) -> Path:
    """Return the folder of a run: `output`, or else a new folder in `runs` named after the data.

    Raises:
        ConfigError: there is no `output`, and the run is resumed or has several processes.
    """
    if output is not None:
        return output
    if resume:
        raise ConfigError("resume", "needs the folder of the run that is to go on; name it with --output")
    if processes > 1:
        raise ConfigError("output", "several processes need one folder; name it with --output")
    given = Path(data if "://" in data else data.partition(":")[0])
    if "{" in given.name:  # shards are named by a pattern
        given = given.parent
    name = given.stem if given.stem not in ("", "..") else given.resolve().stem  # a link keeps its own name
    names = chain([name], (f"{name}_{number}" for number in count(2)))
    return next(folder for folder in map(Path("runs").joinpath, names) if not folder.exists())


def evaluate(
    weights: shared.Weights,
    data: shared.Data,
    task: shared.ModelTask = None,
    split: shared.Split = "val",
    output: shared.EvaluationFile = None,
    pictures: learning.Pictures = None,
    device: shared.Device = "auto",
    precision: shared.Precision = shared.PrecisionName.full,
    tile: shared.Tile = 0,
    overlap: shared.Overlap = 128,
    tta: shared.Augment = "",
    depth: shared.Depth = "",
    page: shared.Page = "",
    channel: shared.Channel = "",
    follow_outside: shared.FollowOutside = False,
    as_json: shared.Json = False,
) -> None:
    """Evaluate a model on labelled images, at their original size.

    panoptic: PQ, SQ, RQ and mIoU. instance: COCO's mask AP, and AP(t) = TP / (TP + FP + FN). semantic: mIoU.
    detection: COCO's box AP.
    All values are from 0 to 1. A measure without ground truth is reported as not measured (in JSON null).
    Translation: BLEU of lowercased words, and sacrebleu's BLEU of cased text, on the files named SPLIT.

    Examples:
      unimask evaluate --weights runs/first/best --data my_data --task instance
      unimask evaluate --weights nuclei --data my_data --pictures seen
      unimask evaluate --weights nuclei --data my_data --task instance --tta flip
    """
    from unimask.checkpoints.text import is_sequence_model

    if output is not None:
        if output.is_dir():
            raise DataError(output, "is a folder; name a file for the results with --output")
        check_folder(output.absolute().parent)
    if pictures is not None:
        check_folder(pictures)
    if is_sequence_model(weights):
        with naming(data):
            evaluate_translator(weights, data, split, output, device, as_json)
        return
    with naming(data):
        tiles = (tile, overlap)
        segmenter = load_as_asked(
            weights, device, precision.value, tiles, tta, depth=depth, page=page, channel=channel
        )
        with show.progress("evaluating") as progress:
            evaluation = unimask.evaluate(
                segmenter,
                data,
                task.value if task else None,
                progress,
                split=split,
                follow_outside=follow_outside,
                pictures=pictures,
                message=show.errors.print,
            )
    if output is not None:
        evaluation.save(output)
    if as_json:
        show.show_json(evaluation.to_json())
    else:
        tables.show_evaluation(evaluation, data, pictures)


def ablate(
    data: shared.Data,
    budget: learning.Budget,
    output: learning.AblationFolder,
    task: learning.Task = shared.TaskName.panoptic,
    preset: shared.Preset = "small",
    story: learning.AblationStory = learning.StoryName.add,
    seeds: learning.Seeds = 1,
    rows: learning.Rows = None,
    settings: shared.Settings = None,
    initial: learning.Initial = "none",
    device: shared.Device = "auto",
    as_json: shared.Json = False,
) -> None:
    """Run an ablation on your data: from MaskFormer to Mask2Former, or of the attention of an EoMT.

    Each row adds one component to the row before it, and the last row is the preset: maskformer,
    masked_attention, multi_scale, deformable, cross_attention_first, learned_queries, no_dropout,
    cross_entropy, points; of an EoMT: open, masked, annealed. With --story remove the first row is the preset
    (whole), and every other row removes one component: masked_attention, multi_scale, cross_attention_first,
    learned_queries, no_dropout, points. All are trained on the same data for the same number of steps.
    OUTPUT/table.md, OUTPUT/plot.svg and OUTPUT/results.json report the quality of each during training,
    the time per step and the memory.

    It can be stopped at any time: the same command continues. A row that fails is reported, and the others
    are trained; the exit code is then 2.

    Examples:
      unimask ablate --preset tiny --data shapes --budget 2000 --output ablation
      unimask ablate --data my_data --budget 4000 --rows points --output ablation
      unimask ablate --data my_data --budget 4000 --story remove --output ablation
    """
    from unimask.training.ablation.run import ablate as run
    from unimask.training.ablation.run import with_budget

    names = names_in(rows)
    base = unimask.override(with_budget(presets.named(preset), budget), parse_settings(settings or []))
    try:
        with naming(data):
            results = run(
                base,
                task.value,
                data,
                output,
                story=story.value,
                seeds=seeds,
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
