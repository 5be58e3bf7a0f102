"""The command line: `unimask predict | train | evaluate | convert | presets`.

Every error that is the input's fault is one message on standard error and exit code 2.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from unimask.errors import ConfigError, DataError, UnimaskError

app = typer.Typer(
    name="unimask",
    help="A picture becomes segments: Mask2Former for panoptic, instance and semantic segmentation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
errors = Console(stderr=True, highlight=False, soft_wrap=True)
screen = Console(highlight=False)


class TaskName(StrEnum):
    """What to segment."""

    panoptic = "panoptic"
    instance = "instance"
    semantic = "semantic"


class WeightFormat(StrEnum):
    """Whose names and files weights are written in."""

    unimask = "unimask"
    transformers = "transformers"
    original = "original"


TaskOption = Annotated[
    TaskName,
    typer.Option(
        help="panoptic: every pixel belongs to one thing or stuff segment; instance: countable objects, "
        "each with a mask and a score; semantic: a category per pixel."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the results as JSON on standard output.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")]
PrecisionOption = Annotated[str, typer.Option(help="32-true, bf16-mixed or 16-mixed.")]
WeightsOption = Annotated[
    str,
    typer.Option(
        help="A model that ships with the package (nuclei) or a folder that `train` or `convert` wrote."
    ),
]


def main() -> NoReturn:
    """Run the command line; the entry point of the `unimask` script."""
    try:
        app()
    except UnimaskError as error:
        errors.print(f"[bold red]error[/] {_escape(str(error))}")
        sys.exit(2)
    except KeyboardInterrupt:
        errors.print("stopped")
        sys.exit(130)
    sys.exit(0)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


@contextmanager
def _progress(label: str, total: int, unit: str) -> Iterator[Any]:
    """A bar with speed and time left on standard error; gives a function to call after each step."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors, transient=False) as bars:
        bar = bars.add_task(label, total=total, speed="")

        def advance(count: int = 1) -> None:
            bars.advance(bar, count)
            task = bars.tasks[0]
            speed = task.finished_speed or task.speed or 0.0
            bars.update(bar, speed=f"{speed:.2f} {unit}/s")

        yield advance


def _value(text: str) -> object:
    """`4`, `0.1`, `true`, `[512,512]`, `{...}` as JSON, anything else as a word."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def parse_settings(assignments: list[str]) -> dict[str, object]:
    """`path=value` arguments as a dict.

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


def output_names(files: list[Path]) -> list[str]:
    """A name for each picture's results: its stem, or more of its path where stems collide."""
    names = [file.stem for file in files]
    for longer in (
        lambda f: f"{f.stem}_{f.suffix[1:]}",
        lambda f: "_".join([f.parent.name, f.stem, f.suffix[1:]]),
    ):
        seen = {name for name in names if names.count(name) > 1}
        names = [longer(file) if name in seen else name for name, file in zip(names, files)]
    return [f"{name}_{index}" if names.count(name) > 1 else name for index, name in enumerate(names)]


@app.command()
def predict(
    images: Annotated[
        list[Path], typer.Argument(help="Pictures, or folders of pictures.", metavar="IMAGE_OR_FOLDER...")
    ],
    task: TaskOption = TaskName.panoptic,
    weights: WeightsOption = "nuclei",
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("output"),
    device: DeviceOption = "auto",
    precision: PrecisionOption = "32-true",
    threshold: Annotated[
        float | None, typer.Option(help="Leave out lower scores; by default as the model says.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Segment pictures.

    For NAME.jpg it writes NAME.overlay.png (the picture with its segments), NAME.json (what was found)
    and, unless instances may overlap, NAME.segments.png (each pixel's segment id = R + 256 G + 65536 B).

    A picture that cannot be read does not stop the others: it is listed at the end, and the exit code is 2.
    """
    from unimask.data.read import image_files
    from unimask.segmenter import load

    files = image_files(images)
    segmenter = load(weights, device=device, precision=precision)
    found: list[tuple[str, Any]] = []
    failed: list[DataError] = []
    with _progress("segmenting", len(files), "pictures") as advance:
        for file, name in zip(files, output_names(files)):
            try:
                result = segmenter.predict(file, task=task.value, threshold=threshold)
                result.save(output, name)
                found.append((name, result))
            except DataError as error:
                failed.append(error)
            advance()
    if as_json:
        screen.print_json(json.dumps([{"name": name, **result.to_json()} for name, result in found]))
    else:
        _show_results(found, output)
    for failure in failed:
        errors.print(f"[bold red]error[/] {_escape(str(failure))}")
    if failed:
        errors.print(f"{len(failed)} of {len(files)} pictures could not be segmented")
        raise typer.Exit(2)


def _show_results(found: list[tuple[str, Any]], output: Path) -> None:
    table = Table(title=None)
    for title in ("picture", "size", "category"):
        table.add_column(title, overflow="fold")
    for title in ("segments", "mean score", "area"):
        table.add_column(title, justify="right")
    for name, result in found:
        shown = name if len(name) <= 24 else f"{name[:21]}..."
        size = f"{result.width} x {result.height}"
        categories = sorted({segment.category for segment in result.segments})
        for category in categories:
            members = [segment for segment in result.segments if segment.category == category]
            score = sum(member.score for member in members) / len(members)
            share = sum(member.area for member in members) / (result.width * result.height)
            table.add_row(shown, size, category, str(len(members)), f"{score:.2f}", f"{share:.1%}")
            shown, size = "", ""
        if not categories:
            table.add_row(shown, size, "(nothing found)", "0", "", "")
    screen.print(table)
    screen.print(f"results are in {output}/")


@app.command()
def train(
    preset: Annotated[str, typer.Option(help="A named experiment; `unimask presets` lists them.")],
    data: Annotated[
        str, typer.Option(help="Your labelled pictures; docs/image-to-segments.md shows the layouts.")
    ],
    output: Annotated[Path, typer.Option(help="A new folder for everything about this run.")],
    task: TaskOption = TaskName.panoptic,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change a setting; repeat for more."),
    ] = None,
    initial: Annotated[
        str,
        typer.Option(
            help="Where weights start: none (random), imagenet (the backbone's) or a model to fine-tune."
        ),
    ] = "none",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the run in --output stopped.")
    ] = False,
    device: DeviceOption = "auto",
    devices: Annotated[int, typer.Option(help="Processes on this machine, one per device.")] = 1,
    nodes: Annotated[int, typer.Option(help="Machines.")] = 1,
    licence: Annotated[
        str, typer.Option(help="Licence of the trained weights, kept with them.")
    ] = "not stated",
    as_json: JsonOption = False,
) -> None:
    """Train a model on a labelled folder.

    The best model is in OUTPUT/best, the last one in OUTPUT/model, what was measured in OUTPUT/results.json.
    Stop it at any moment; the same command with --resume goes on as if nothing had happened.
    """
    from unimask.config import override
    from unimask.training.loop import train as run

    experiment = override(_preset(preset), parse_settings(settings or []))
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
        screen.print_json(json.dumps(dataclasses.asdict(result), default=str))
        return
    _show_values({**result.best, "step": float(result.best_step)}, f"best of {result.steps} steps")
    if not result.completed:
        screen.print(f"stopped after step {result.steps}; the same command with --resume goes on")
    screen.print(f"try it: unimask predict PICTURE --weights {result.output}/best --task {task.value}")


def _preset(name: str) -> Any:
    from unimask.presets import PRESETS

    if name not in PRESETS:
        raise ConfigError(name, f"no such preset; there are: {', '.join(PRESETS)}")
    return PRESETS[name]()


def _show_values(values: dict[str, float], title: str) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in values.items():
        table.add_row(name, f"{value:.4f}" if value != int(value) or abs(value) <= 1 else f"{int(value)}")
    screen.print(table)


@app.command()
def evaluate(
    weights: WeightsOption,
    data: Annotated[str, typer.Option(help="Labelled pictures, in any layout that `train` takes.")],
    task: TaskOption = TaskName.panoptic,
    split: Annotated[str, typer.Option(help="train or val.")] = "val",
    output: Annotated[Path | None, typer.Option(help="Also write the results to this JSON file.")] = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "32-true",
    as_json: JsonOption = False,
) -> None:
    """Measure a model on labelled pictures at their own size.

    panoptic: PQ, SQ, RQ; instance: COCO mask AP and AP(t) = TP / (TP + FP + FN); semantic: mIoU.
    """
    from unimask.data.open import open_dataset
    from unimask.evaluation import evaluate as measure
    from unimask.segmenter import load

    segmenter = load(weights, device=device, precision=precision)
    dataset = open_dataset(data, split, task.value)
    with _progress("evaluating", len(dataset), "pictures") as advance:
        evaluation = measure(segmenter, dataset, task.value, progress=lambda done, total: advance())
    if output is not None:
        evaluation.save(output)
    if as_json:
        screen.print_json(json.dumps(dict(evaluation.values)))
    else:
        _show_values(dict(evaluation.values), f"{task.value}, {len(dataset)} pictures of {data}")


@app.command()
def convert(
    source: Annotated[
        str, typer.Argument(help="A .pkl or .pth of the original release, a folder or hub id, or ours.")
    ],
    target: Annotated[Path, typer.Argument(help="The folder (or .pth file) to write.")],
    to: Annotated[WeightFormat, typer.Option(help="Whose names to write.")] = WeightFormat.unimask,
    licence: Annotated[str, typer.Option(help="Licence of the weights, kept with them.")] = "not stated",
    as_json: JsonOption = False,
) -> None:
    """Convert Mask2Former weights: the original release's and transformers' to ours, and back."""
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
        screen.print_json(json.dumps(found))
    else:
        for name, value in found.items():
            screen.print(f"{name}: {value}")


@app.command()
def presets(
    name: Annotated[str, typer.Argument(help="Show every setting of this preset, as --set paths.")] = "",
    as_json: JsonOption = False,
) -> None:
    """List the named experiments, or every setting of one of them."""
    from unimask.config import experiment_to_dict
    from unimask.presets import PRESETS, description

    if name:
        values = experiment_to_dict(_preset(name))
        if as_json:
            screen.print_json(json.dumps(values))
        else:
            for path, value in _leaves(values, ""):
                screen.print(f"{path}={json.dumps(value)}")
        return
    if as_json:
        screen.print_json(json.dumps({preset: description(preset) for preset in PRESETS}))
        return
    table = Table()
    table.add_column("preset", no_wrap=True)
    table.add_column("what it is")
    for preset in PRESETS:
        table.add_row(preset, description(preset))
    screen.print(table)


def _leaves(values: dict[str, object], path: str) -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
