"""`unimask predict`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

import unimask
from unimask.cli import output as show
from unimask.cli.failures import BAD_INPUT, check_folder
from unimask.cli.options import prediction, shared
from unimask.cli.options.parsing import names_in, parse_word_or_number

if TYPE_CHECKING:
    from unimask.inference.run import Predicted
    from unimask.inference.segmenter import Segmenter
    from unimask.inference.stream import AnyResult


def load_as_asked(
    weights: str,
    device: str,
    precision: str,
    *,
    tile: int,
    overlap: int,
    tta: str,
    depth: str = "",
    page: str = "",
    channel: str = "",
) -> "Segmenter":
    """Return the model that the options name; `tile` 0 and texts that are empty change nothing."""
    segmenter = unimask.load(weights, device=device, precision=precision)
    if depth or page or channel:
        segmenter = segmenter.with_reading(
            depth=parse_word_or_number(depth),
            page=parse_word_or_number(page),
            channel=parse_word_or_number(channel),
        )
    if tile:
        segmenter = segmenter.with_tiles(tile, overlap)
    if tta:
        segmenter = segmenter.with_tta([name.strip() for name in tta.split(",")])
    return segmenter


def predict(
    images: prediction.Images,
    task: shared.ModelTask = None,
    weights: shared.Weights = "nuclei",
    output: prediction.ResultFolder = Path("output"),
    device: shared.Device = "auto",
    precision: shared.Precision = shared.PrecisionName.full,
    threshold: prediction.Threshold = None,
    tile: shared.Tile = 0,
    overlap: shared.Overlap = 128,
    tta: shared.Augment = "",
    depth: shared.Depth = "",
    page: shared.Page = "",
    channel: shared.Channel = "",
    batch_size: prediction.BatchSize = 4,
    formats: prediction.ResultFormats = None,
    pixel_size: prediction.PixelSize = None,
    every: prediction.Every = 1,
    resume: prediction.ResumePrediction = False,
    overwrite: prediction.Overwrite = False,
    as_json: shared.Json = False,
) -> None:
    """Segment images, or find boxes in them.

    For NAME.jpg it writes NAME.overlay.png (the image with its segments), NAME.json (what was found) and,
    unless segments may overlap, NAME.segments.png (the id of each pixel's segment); for a video
    NAME.overlay.mp4 and NAME.json. --format writes other files.

    A file that is no result of an earlier time, or was changed since, is never replaced without --overwrite.
    An image that cannot be read does not stop the others: it is listed at the end, and the exit code is 2.

    Examples:
      unimask predict photo.jpg
      unimask predict photos/ --task instance --output found
      unimask predict photos/ --weights runs/first --format csv,geojson
      unimask predict clip.mp4 --every 5
      unimask predict slide.tif --tile 1024 --overlap 128
    """

    def load(device: str) -> "Segmenter":
        check_folder(output)
        return load_as_asked(
            weights,
            device,
            precision.value,
            tile=tile,
            overlap=overlap,
            tta=tta,
            depth=depth,
            page=page,
            channel=channel,
        )

    def keep(file: Path, name: str, result: "AnyResult") -> object:
        if as_json:
            return {"name": name, "picture": str(file), **result.to_json()}
        return show.summarise(name, result)

    with show.progress("segmenting") as progress:
        predicted = unimask.predict(
            load,
            images,
            output,
            task.value if task else None,
            progress,
            keep=keep,
            threshold=threshold,
            batch_size=batch_size,
            device=device,
            formats=names_in(formats),
            pixel_size=pixel_size,
            every=every,
            overwrite=overwrite,
            resume=resume,
        )
    if predicted.first_process:
        _show(predicted, output, as_json)


def _show(predicted: "Predicted", output: Path, as_json: bool) -> None:
    """Show what all processes have found, in the order of the images, and what failed.

    Raises:
        typer.Exit: something did.
    """
    failed, errors = predicted.failed, predicted.errors
    if as_json and not errors:
        show.show_json(predicted.kept)
    elif predicted.kept and not errors:
        show.show_pictures(predicted.kept)
        show.show_line(f"results are in {output}{os.sep}")
    if predicted.complete:
        show.errors.print(f"{predicted.complete} of {predicted.images} pictures had complete results before")
    for note in predicted.notes:
        show.show_warning(note)
    for message in (*failed, *errors):
        show.show_error(message)
    if failed:
        show.errors.print(f"{len(failed)} of {predicted.images} images could not be segmented")
    if failed or errors:
        raise typer.Exit(BAD_INPUT)
