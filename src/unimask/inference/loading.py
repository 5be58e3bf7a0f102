"""Load a segmenter: from a model of the package, a folder, the Hugging Face hub or an ONNX file."""

import logging
from pathlib import Path

from unimask.checkpoints.images import WEIGHTS_NAME, load_model
from unimask.checkpoints.onnx import is_exported, load_exported
from unimask.conversion.hub import find_model
from unimask.errors import ConfigError
from unimask.inference.segmenter import Segmenter
from unimask.machine import find_device
from unimask.results.ledger import digest_of

_log = logging.getLogger(__name__)


def load(name_or_folder: str | Path, device: str = "auto", precision: str = "32-true") -> Segmenter:
    """Return a segmenter from a model of the package (`nuclei`, `street`), a model folder, a run folder (its
    best model), an id of the Hugging Face hub (`owner/name`: converted once, `conversion/hub.py`) or an ONNX
    file.

    A licence that forbids commercial use is a warning of the logger `unimask.inference.loading`.

    `device` is `auto` (a CUDA device if there is one, else Apple's `mps`, else the CPU) or one that torch
    knows. `precision` is `32-true`, `bf16-mixed` or `16-mixed`; predictions are postprocessed in float32.
    An ONNX file runs with onnxruntime, in the numbers that it holds.

    Raises:
        WeightsError: there is no such model, or its files are broken or do not fit each other.
        ConfigError: its `config.json` holds an impossible setting, or the device or precision does not exist.
    """
    if is_exported(name_or_folder):
        if precision != "32-true":
            raise ConfigError(
                "precision", f"is {precision!r}; an exported model has the one it was made with"
            )
        path = Path(name_or_folder).expanduser()
        network, model_file = load_exported(path, device)
        return Segmenter(network, model_file, name=str(name_or_folder), weights=digest_of(path))
    chosen = find_device(device)
    folder = find_model(name_or_folder)
    model, model_file = load_model(folder, chosen)
    if "-NC" in model_file.licence.upper():
        _log.warning(
            "%s: these weights are for non-commercial use only (%s)", name_or_folder, model_file.licence
        )
    weights = digest_of(folder / WEIGHTS_NAME)
    return Segmenter(model, model_file, chosen, precision, name=str(name_or_folder), weights=weights)
