"""Weights by name: a model folder, a model of the package, or one of the Hugging Face hub, converted once."""

import os
import re
from pathlib import Path

import unimask
from unimask.checkpoints.images import CONFIG_NAME, known_folder, resolve_weights
from unimask.conversion.run import convert
from unimask.errors import WeightsError
from unimask.files import complete_file

CACHE_VARIABLE = "UNIMASK_CACHE"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def cache_folder() -> Path:
    """Return where converted models are kept: `UNIMASK_CACHE`, or `unimask` in the user's cache folder."""
    stated = os.environ.get(CACHE_VARIABLE)
    if stated:
        return Path(stated).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "unimask"


def find_model(name_or_folder: str | Path) -> Path:
    """Return the model folder that a name means: of a path, a model of the package, or an id of the hub.

    A path is meant as `checkpoints.images.resolve_weights` says. A model of the hub (`owner/name`) is
    downloaded and converted once for each version of unimask; after that its copy in `cache_folder` is
    used, without the network. An id whose first part is a folder here is a path.

    Raises:
        WeightsError: there is no such model, or it cannot be downloaded or converted.
    """
    name = str(name_or_folder)
    if known_folder(name_or_folder) is not None or not _is_hub_id(name):
        return resolve_weights(name_or_folder)
    kept = cache_folder() / "hub" / unimask.__version__ / name.replace("/", "--")
    if (kept / CONFIG_NAME).is_file():
        return kept
    with complete_file(kept) as temporary:
        convert(name, temporary)
    return kept


def _is_hub_id(name: str) -> bool:
    """Return whether a name without a folder can be an id of the hub; `runs/first` in `runs` is a path."""
    return bool(_HUB_ID.fullmatch(name)) and not Path(name).exists() and not Path(name).parent.is_dir()


def check_trainable(initial: str | Path) -> None:
    """Check that a name does not mean an exported file, from which no training can go on.

    Raises:
        WeightsError: it does.
    """
    if str(initial).lower().endswith((".onnx", ".pt2")):
        raise WeightsError(
            initial,
            "is an exported network, which runs but cannot be trained; name the model folder that it was "
            "exported from",
        )
