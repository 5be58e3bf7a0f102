"""What is said before the first step: what the data holds, and which settings can hardly be meant."""

from pathlib import Path

from unimask.config.images import Experiment
from unimask.config.training import warnings_of_settings
from unimask.data.check import DataCheck, check_datasets
from unimask.data.formats.shapes import is_generated
from unimask.files import complete_file, write_json
from unimask.results.sheets import sample_sheet
from unimask.training.image_data import TrainingTask
from unimask.training.run_folder import RunFolder

SECONDS = 10.0  # for looking at the data; of a large set a part is looked at


def say_at_start(
    experiment: Experiment,
    task: TrainingTask,
    initial: str | Path | None,
    folder: RunFolder,
    read: DataCheck | None = None,
) -> tuple[str, ...]:
    """Return what a user should know before a training on images, a sentence each; warnings say so.

    `read` is a check of this data where there was one before; then they are not read again. What the data
    holds is kept in `check.json` and `check.png` of the folder. Generated data are known, and not looked at.

    Raises:
        DataError: it would be no use to train on this data.
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
