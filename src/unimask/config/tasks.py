"""The tasks: what is found in an image."""

from typing import Literal

from unimask.errors import ConfigError, choices

Task = Literal["panoptic", "instance", "semantic", "detection"]

TASKS: tuple[Task, ...] = ("panoptic", "instance", "semantic")  # whose results are segments

ALL_TASKS: tuple[Task, ...] = (*TASKS, "detection")  # whose results are boxes


def check_task(task: str) -> None:
    """Check that there is such a task.

    Raises:
        ConfigError: there is not.
    """
    if task not in ALL_TASKS:
        raise ConfigError("task", f"{task!r} does not exist; {choices(task, ALL_TASKS)}")
