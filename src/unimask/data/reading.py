"""How the files of images become 8-bit RGB: one decision for a set or a run, not one for each image."""

from dataclasses import dataclass, replace
from typing import Literal

from unimask.config.data import DataConfig
from unimask.config.images import Experiment

Orientation = Literal["auto", "exif", "stored"]
Depth = Literal["auto"] | int
Page = Literal["first", "max"] | int
Channel = Literal["colors", "max"] | int


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is read of an image file, and how; the fields are those of `DataConfig`.

    With `orientation` "auto" an image is turned as its EXIF orientation says, but for annotated images whose
    stored pixels alone have the size of the labels. With `depth` "auto" an image of 16 bits is scaled by its
    own brightest value: a set or a run decides first (`data/decisions.py`).
    """

    orientation: Orientation = "auto"
    undecided: Literal["exif", "stored"] = "exif"  # what "auto" becomes if labels do not decide
    depth: Depth = "auto"  # bits of the camera, 8 to 16: the value 2^depth - 1 becomes 255
    page: Page = "first"  # of a file of several images: its number, or the largest value of all of them
    channel: Channel = "colors"  # number of the only channel to read, or the largest value of all of them


PLAIN = Reading()


def settled(asked: Reading, known: Reading) -> Reading:
    """Return how images are read where some of it was decided before; the user's settings go first."""
    return Reading(
        orientation=known.orientation if asked.orientation == "auto" else asked.orientation,
        undecided=asked.undecided,
        depth=known.depth if asked.depth == "auto" else asked.depth,
        page=known.page if asked.page == "first" else asked.page,
        channel=known.channel if asked.channel == "colors" else asked.channel,
    )


def reading_of(config: DataConfig) -> Reading:
    """Return the settings of reading."""
    return Reading(
        orientation=config.orientation, depth=config.depth, page=config.page, channel=config.channel
    )


def with_reading(experiment: Experiment, reading: Reading) -> Experiment:
    """Return the experiment with what was decided about reading, so that it travels with the model."""
    data = replace(
        experiment.data,
        orientation=reading.orientation,
        depth=reading.depth,
        page=reading.page,
        channel=reading.channel,
    )
    return replace(experiment, data=data)
