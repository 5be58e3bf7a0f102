"""`unimask check`."""

from pathlib import Path

import typer

import unimask
from unimask import presets
from unimask.cli import output as show
from unimask.cli import tables
from unimask.cli.failures import BAD_INPUT, check_folder, naming
from unimask.cli.options import checking, shared
from unimask.cli.options.parsing import parse_settings
from unimask.config.images import Experiment
from unimask.errors import ConfigError, DataError


def check(
    data: shared.Data,
    task: checking.LabelledTask = None,
    preset: shared.Preset = "small",
    settings: shared.Settings = None,
    follow_outside: shared.FollowOutside = False,
    output: checking.CheckPicture = None,
    as_json: shared.Json = False,
) -> None:
    """Check a data set before training, and report its contents.

    Per split: images, objects of each category, images without objects, void, and image sizes after the
    resizing of --preset; also all broken files, and files that are not read. check.png shows a few images
    with their ground truth. The exit code is 2 if the data have errors.

    Examples:
      unimask check --data my_data --task instance
      unimask check --data my_data --task semantic --preset street --json
    """
    asked = parse_settings([*(settings or []), *["data.follow_outside=true"] * follow_outside])
    experiment = unimask.override(presets.named(preset), asked)
    if not isinstance(experiment, Experiment):
        raise ConfigError("preset", f"{preset!r} is a model of text; `unimask presets` lists those of images")
    picture = output or (None if as_json else Path("check.png"))
    if picture is not None:
        if picture.is_dir():
            raise DataError(picture, "is a folder; name a file for the picture with --output")
        check_folder(picture.absolute().parent)
    with naming(data), show.counting("reading") as counted:
        said = unimask.check(data, task.value if task else None, experiment, progress=counted)
    if as_json:
        show.show_json(said.as_json())
    else:
        tables.show_check(said)
    if picture is not None and said.samples:
        from unimask.results.sheets import sample_sheet

        sample_sheet(said.samples, said.categories).save(picture)
        if not as_json:
            show.show_line(f"samples with their ground truth: {picture}")
    if said.errors:
        raise typer.Exit(BAD_INPUT)
