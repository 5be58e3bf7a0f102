"""`unimask predict`."""

import os
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from unimask.cli import options
from unimask.cli import output as show
from unimask.cli.failures import BAD_INPUT, check_folder
from unimask.errors import UnimaskError

if TYPE_CHECKING:
    from unimask.cli.images import AnyResult, Named
    from unimask.config.images import Task
    from unimask.inference.segmenter import Segmenter


def output_names(files: list[Path]) -> list[str]:
    """Return a name for each image's results: its stem, or more of its path where stems collide.

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


def load_as_asked(
    weights: str, device: str, precision: str, *, tile: int, overlap: int, tta: str
) -> "Segmenter":
    """Return the model that the options name; `tile` 0 and `tta` "" change nothing."""
    from unimask.inference.segmenter import load

    segmenter = load(weights, device=device, precision=precision)
    if tile:
        segmenter = segmenter.with_tiles(tile, overlap)
    if tta:
        segmenter = segmenter.with_tta([name.strip() for name in tta.split(",")])
    return segmenter


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
    """Segment images, or find boxes in them.

    For NAME.jpg it writes NAME.overlay.png (the image with its segments), NAME.json (what was found)
    and, unless instances may overlap, NAME.segments.png (each pixel's segment id = R + 256 G + 65536 B); for
    boxes only the first two. A TIFF too large for memory is cut into tiles: NAME.segments.tif (segment ids)
    and NAME.json come out.

    An image that cannot be read does not stop the others: it is listed at the end, and the exit code is 2.

    Examples:
      unimask predict photo.jpg
      unimask predict photos/ --task instance --output found
      unimask predict photo.jpg --weights runs/first/best
      unimask predict slide.tif --tile 1024 --overlap 128
      torchrun --nproc-per-node 4 --no-python unimask predict photos/
    """
    from unimask.data.read import image_files
    from unimask.processes import find_team, gather, meeting

    team = find_team()
    asked = _Asked(
        weights=weights,
        task=task.value,
        threshold=threshold,
        precision=precision.value,
        tile=tile,
        overlap=overlap,
        tta=tta,
        batch_size=max(1, batch_size),
        output=output,
        as_json=as_json,
    )
    with meeting(team):
        pictures: list[Named] = []
        try:
            files = list(dict.fromkeys(image_files(images)))
            pictures = list(zip(files, output_names(files), strict=True))
            mine = _segment(asked, team.share(pictures), team.device(device), quiet=not team.speaks)
        except UnimaskError as error:
            mine = _ProcessReport(error=str(error))
        reports = gather(mine)
    if team.speaks:
        _show(asked, pictures, reports)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The values of the options."""

    weights: str
    task: "Task"
    threshold: float | None
    precision: str
    tile: int
    overlap: int
    tta: str
    batch_size: int
    output: Path
    as_json: bool


@dataclass(frozen=True, kw_only=True)
class _ProcessReport:
    """What a process tells the others: plain data. Summaries and records are by the name of their results."""

    summaries: dict[str, show.PictureSummary] = field(default_factory=dict)
    records: dict[str, dict[str, object]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    error: str = ""  # what kept it from starting


def _segment(asked: _Asked, pictures: list["Named"], device: str, quiet: bool) -> _ProcessReport:
    """Segment and write the images of this process."""
    from unimask.cli.images import Work, are_large, segment_all, segment_large_images

    check_folder(asked.output)
    segmenter = load_as_asked(
        asked.weights, device, asked.precision, tile=asked.tile, overlap=asked.overlap, tta=asked.tta
    )
    found = _ProcessReport()

    def done(named: "Named", result: "AnyResult") -> None:
        file, name = named
        if asked.as_json:
            found.records[name] = {"name": name, "picture": str(file), **result.to_json()}
        else:
            found.summaries[name] = show.summarise(name, result)

    with nullcontext(_nothing) if quiet else show.progress("segmenting", len(pictures)) as advance:
        work = Work(
            segmenter=segmenter,
            task=asked.task,
            threshold=asked.threshold,
            batch_size=asked.batch_size,
            output=asked.output,
            done=done,
            advance=advance,
        )
        large = [named for named in pictures if are_large(segmenter, named[0])]
        segment_all(work, [named for named in pictures if named not in large])
        segment_large_images(work, large)
    found.failed.extend(map(str, work.failed))
    return found


def _nothing() -> None:
    """The progress of a process that shows none."""


def _show(asked: _Asked, pictures: list["Named"], reports: list[_ProcessReport]) -> None:
    """Show what all processes have found, in the order of the images, and what failed.

    Raises:
        typer.Exit: something did.
    """
    errors = list(dict.fromkeys(report.error for report in reports if report.error))
    failed = [failure for report in reports for failure in report.failed]
    if not errors:
        order = [name for _, name in pictures]
        summaries = {name: one for report in reports for name, one in report.summaries.items()}
        records = {name: one for report in reports for name, one in report.records.items()}
        if asked.as_json:
            show.show_json([records[name] for name in order if name in records])
        elif summaries:
            show.show_pictures([summaries[name] for name in order if name in summaries])
            show.show_line(f"results are in {asked.output}{os.sep}")
    for failure in (*failed, *errors):
        show.show_error(failure)
    if failed:
        show.errors.print(f"{len(failed)} of {len(pictures)} pictures could not be segmented")
    if failed or errors:
        raise typer.Exit(BAD_INPUT)
