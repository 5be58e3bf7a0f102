"""What is asked for of every image of a run, and what is to be done with them."""

import math
from dataclasses import dataclass

from unimask.config.tasks import Task
from unimask.config.values import check_count
from unimask.data.reading import Reading
from unimask.errors import ConfigError
from unimask.inference.postprocessing import check_threshold
from unimask.results.writing import check_known


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user asks for: the arguments of `run.predict` that are the same for all images."""

    task: Task | None = None  # none: that of the model
    threshold: float | None = None
    batch_size: int = 4
    formats: tuple[str, ...] = ()  # none: the default ones
    pixel_size: float | None = None
    every: int = 1  # frame of a video
    overwrite: bool = False  # files that are no results

    def check(self) -> None:
        """Check, before a model is loaded, what is wrong whatever the model is.

        Raises:
            ConfigError: a number is out of its range, or there is no such format.
        """
        check_count(self.batch_size, "batch_size")
        check_count(self.every, "every")
        if self.pixel_size is not None and not 0 < self.pixel_size < math.inf:
            raise ConfigError("pixel_size", f"must be above 0; got {self.pixel_size:g}")
        check_known(self.formats)
        if self.threshold is not None:
            check_threshold(self.threshold)


@dataclass(frozen=True, kw_only=True)
class PredictionJob:
    """What is to be done with every image of a run: plain data, which other processes can be told."""

    options: Options
    task: Task
    reading: Reading  # of all images of the run
    settings: str  # a digest of all that decides what is found (`resuming.settings_digest`)
