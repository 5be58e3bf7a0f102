"""Reports before the first step: what the data holds, and which settings are probably wrong."""

from pathlib import Path

from unimask.config.images import Experiment
from unimask.config.training import warnings_of_settings
from unimask.data.check import DataCheck, check_datasets
from unimask.data.formats.shapes import is_generated
from unimask.files import complete_file, write_json
from unimask.results.sheets import sample_sheet
from unimask.training.image_data import TrainingTask
from unimask.training.run_folder import RunFolder

SECONDS = 10.0  # for checking the data; of a large set a part is checked


def say_at_start(
    experiment: Experiment,
    task: TrainingTask,
    initial: str | Path | None,
    folder: RunFolder,
    read: DataCheck | None = None,
) -> tuple[str, ...]:
    """Return sentences about the data and the settings before a training on images, with warnings.

    `read` is a check of this data where there was one before; then they are not read again. What the data
    holds is kept in `check.json` and `check.png` of the folder. Generated data are not checked.

    Raises:
        DataError: the data cannot be used for a training.
    """
    warnings = warnings_of_settings(experiment.training)
    if is_generated(task.data):
        return tuple(f"warning: {sentence}" for sentence in warnings)
    splits = {"train": task.training}
    if task.validation is not task.training:
        splits["val"] = task.validation
    if read is not None and splits.keys() <= read.looked.keys():
        checked = read.seen_by(experiment, list(splits))
    else:
        checked = check_datasets(splits, task.task, experiment, data=task.data, seconds=SECONDS)
    checked.refuse()
    keep_check(checked, folder)
    if initial is None:
        warnings += (
            "the weights start at random, which needs many images and steps; --initial takes the weights of "
            "ImageNet (imagenet) or of a model to fine-tune",
        )
    return (checked.summary(), *(f"warning: {one}" for one in (*checked.warnings, *warnings)))


def keep_check(checked: DataCheck, folder: RunFolder) -> None:
    """Write `check.json` and, where there is an image to show, `check.png`."""
    write_json(folder.check, checked.as_json())
    if checked.samples:
        with complete_file(folder.samples) as temporary:
            sample_sheet(checked.samples, checked.categories).save(temporary, format="PNG")
