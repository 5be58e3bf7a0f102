"""`unimask predict`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import unimask
from unimask.cli import output as show
from unimask.cli import tables
from unimask.cli.failures import BAD_INPUT, check_folder
from unimask.cli.options import prediction, shared
from unimask.cli.options.parsing import names_in, parse_word_or_number
from unimask.errors import ConfigError

if TYPE_CHECKING:
    from unimask.inference.run import Predicted
    from unimask.inference.segmenter import Segmenter
    from unimask.inference.stream import AnyResult
    from unimask.remote import Location


def load_as_asked(
    weights: str, device: str, precision: str, tiles: tuple[int, int], tta: str, **reading: str
) -> "Segmenter":
    """Return the model `weights` with the given options; a tile size of 0 and empty strings change nothing.

    `tiles` is (size, overlap) in pixels; `reading` has the arguments of `Segmenter.with_reading`.
    """
    segmenter = unimask.load(weights, device=device, precision=precision)
    asked: dict[str, Any] = {name: parse_word_or_number(text) for name, text in reading.items() if text}
    if asked:
        segmenter = segmenter.with_reading(**asked)
    if tiles[0]:
        segmenter = segmenter.with_tiles(*tiles)
    if tta:
        segmenter = segmenter.with_tta([name.strip() for name in tta.split(",")])
    return segmenter


def predict(
    images: prediction.Images,
    task: shared.ModelTask = None,
    weights: shared.Weights = "nuclei",
    output: prediction.ResultFolder = "output",
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
    engine: prediction.Engine = prediction.EngineName.local,
    address: prediction.Address = "",
    actors: prediction.Actors = 0,
    as_json: shared.Json = False,
) -> None:
    """Segment images, or detect objects as boxes.

    For NAME.jpg it writes NAME.overlay.png (the image with its segments), NAME.json (the segments or boxes)
    and, unless segments may overlap, NAME.segments.png (the id of each pixel's segment); for a video
    NAME.overlay.mp4 and NAME.json. --format selects other files.

    A file that is not the result of an earlier run, or was changed since, is not replaced without
    --overwrite. An image that cannot be read does not stop the others: it is listed at the end, and the exit
    code is 2.

    --engine ray distributes very many images over processes on one or several machines, and tolerates the
    loss of processes; images.parquet has a row for each image.

    Examples:
      unimask predict photo.jpg
      unimask predict photos/ --task instance --output found
      unimask predict photos/ --weights runs/first --format csv,geojson
      unimask predict clip.mp4 --every 5
      unimask predict slide.tif --tile 1024 --overlap 128
      unimask predict photos/ --engine ray --actors 4 --resume
    """
    if engine != "ray" and (address or actors):
        raise ConfigError("address" if address else "actors", "is for --engine ray, which is not named")
    if engine == "ray" and as_json:
        raise ConfigError("json", "--engine ray writes a row per image into images.parquet; leave it out")

    def load(device: str) -> "Segmenter":
        if "://" not in output:
            check_folder(Path(output))
        tiles = (tile, overlap)
        return load_as_asked(
            weights, device, precision.value, tiles, tta, depth=depth, page=page, channel=channel
        )

    def keep(file: "Location", name: str, result: "AnyResult") -> object:
        if as_json:
            return {"name": name, "image": str(file), **result.to_json()}
        return tables.summarise(name, result)

    how: dict[str, Any] = {
        "task": task.value if task else None,
        "threshold": threshold,
        "batch_size": batch_size,
        "formats": tuple(names_in(formats)),
        "pixel_size": pixel_size,
        "every": every,
        "overwrite": overwrite,
    }
    where: dict[str, Any] = {"device": device, "resume": resume}
    with show.progress("segmenting") as progress:
        if engine == "ray":
            from unimask.inference.engine_ray import predict_with_ray
            from unimask.inference.job import Options

            show.ignore_deprecation_in_ray()
            predicted = predict_with_ray(
                load, images, output, Options(**how), progress, address=address, actors=actors, **where
            )
        else:
            predicted = unimask.predict(load, images, output, progress=progress, keep=keep, **how, **where)
    if predicted.first_process:
        _show(predicted, output, as_json, engine)


def _show(predicted: "Predicted", output: str, as_json: bool, engine: str) -> None:
    """Show the results of all processes, in the order of the images, and what failed.

    Raises:
        typer.Exit: an image or a process failed.
    """
    failed, errors = predicted.failed, predicted.errors
    if as_json and not errors:
        show.show_json(predicted.kept)
    elif predicted.kept and not errors:
        tables.show_images(predicted.kept)
        show.show_line(f"results are in {_folder(output)}")
    elif engine == "ray":
        show.show_line(f"results are in {_folder(output)}, and images.parquet there has a row per image")
    if predicted.complete:
        show.errors.print(f"{predicted.complete} of {predicted.images} images had complete results before")
    for note in predicted.notes:
        show.show_warning(note)
    for message in (*failed, *errors):
        show.show_error(message)
    if failed:
        show.errors.print(f"{len(failed)} of {predicted.images} images could not be segmented")
    if failed or errors:
        raise typer.Exit(BAD_INPUT)


def _folder(output: str) -> str:
    """Return the path or address of a folder with a separator at its end."""
    return f"{output.rstrip('/')}/" if "://" in output else f"{Path(output)}{os.sep}"
