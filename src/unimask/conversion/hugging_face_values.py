"""Values of the JSON files of Hugging Face transformers, checked as they are taken."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

from unimask.config.training import LossConfig
from unimask.conversion.architecture import HEADS
from unimask.errors import WeightsError, some_of
from unimask.files import read_json

_log = logging.getLogger(__name__)

Json = dict[str, object]


def read_object(path: Path) -> Json:
    """Return the JSON object in a file.

    Raises:
        WeightsError: it cannot be read, or is none.
    """
    content = read_json(path, WeightsError)
    if not isinstance(content, dict):
        raise WeightsError(path, "must be a JSON object")
    return content


def part_of(path: Path, config: Json, name: str) -> Json:
    """Return the object under a name; an empty one where there is none.

    Raises:
        WeightsError: there is something else than an object.
    """
    part = config.get(name)
    if part is None:
        return {}
    if not isinstance(part, dict):
        raise WeightsError(path, f"{name} is {part!r}; it must be a JSON object")
    return part


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value is a number, and not true, false or text."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_fixed(path: Path, given: Json, fixed: Mapping[str, object], where: str = "") -> None:
    """Check that a part of a configuration does not differ from `fixed`.

    Raises:
        WeightsError: it does; the message names the key below `where`.
    """
    for key, value in fixed.items():
        if given.get(key, value) != value:
            raise WeightsError(path, f"{where}{key} is {given[key]!r}; only {value!r} can be converted")


def heads_in(path: Path, given: Json, key: str) -> int:
    """Return the attention heads under a key.

    Raises:
        WeightsError: the value is no number of heads.
    """
    heads = given.get(key, HEADS)
    if type(heads) is not int or heads < 1:
        raise WeightsError(path, f"{key} is {heads!r}; it must be a number of attention heads")
    return heads


def share_in(path: Path, given: Json, key: str, usual: float) -> float:
    """Return the share under a key, `usual` where there is none.

    Raises:
        WeightsError: the value is not in [0, 1).
    """
    share = given.get(key, usual)
    if not is_number(share) or not 0 <= share < 1:
        raise WeightsError(path, f"{key} is {share!r}; it must be from 0 to below 1")
    return float(share)


def names_in(path: Path, config: Json) -> tuple[str, ...]:
    """Return the name of each label in `id2label`, "" for a label that has none; () where none has one.

    A name that several labels have is a warning of the logger.

    Raises:
        WeightsError: the keys are not the labels 0, 1, 2, ..., or a name is no text.
    """
    labels = part_of(path, config, "id2label")
    if set(labels) != {str(label) for label in range(len(labels))}:
        reason = f"id2label must name the labels from 0 to {len(labels) - 1}, each once"
        raise WeightsError(path, f"{reason}; it names {', '.join(sorted(labels)[:5])}, ...")
    wrong = [name for name in labels.values() if not isinstance(name, str)]
    if wrong:
        raise WeightsError(path, f"id2label names a label {wrong[0]!r}; names must be text")
    names = [str(labels[str(label)]).strip() for label in range(len(labels))]
    found = tuple("" if name in (f"LABEL_{label}", "N/A") else name for label, name in enumerate(names))
    several = sorted({name for name in found if name and found.count(name) > 1})
    if several:
        _log.warning("%s: id2label gives one name to several labels: %s", path, some_of(several))
    return found if any(found) else ()


def written_losses(losses: LossConfig) -> Json:
    """Return the settings of losses on sampled points, in the names of Mask2Former and EoMT."""
    return {
        "no_object_weight": losses.no_object_weight,
        "class_weight": losses.class_weight,
        "mask_weight": losses.mask_weight,
        "dice_weight": losses.dice_weight,
        "train_num_points": losses.points,
        "oversample_ratio": losses.oversampling,
        "importance_sample_ratio": losses.importance,
    }
