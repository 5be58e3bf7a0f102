"""`unimask predict`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from unimask.cli import options
from unimask.cli import output as show
from unimask.cli.failures import BAD_INPUT, check_folder

if TYPE_CHECKING:
    from unimask.box_results import BoxResult
    from unimask.results import Result


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
