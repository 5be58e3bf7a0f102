"""A model is a folder: `model.safetensors` and `config.json`.

`config.json` holds the experiment (with the normalisation of pixels), the categories, the licence and the
provenance. Weights are read with safetensors only, which cannot run code.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unimask.config import Experiment, experiment_from_dict, experiment_to_dict
from unimask.data.category_tables import categories_from_json
from unimask.errors import ConfigError, WeightsError
from unimask.models.build import Model, build_model
from unimask.structures import Categories

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
ASSETS = Path(__file__).parent / "assets"

_CONFIG_KEYS = ("format", "experiment", "categories", "licence", "provenance")
_FORMAT = 1
SEQUENCES = "sequences"  # the `kind` of models that write tokens (`sequence_checkpoint.py`)


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """What a model folder says about its weights."""

    experiment: Experiment
    categories: Categories
    licence: str  # of the weights, for instance "CC0-1.0"
    provenance: str  # where the weights come from: data, command, or the file they were converted from


def categories_to_json(categories: Categories) -> list[dict[str, object]]:
    """One record per category, in the order of the labels; `categories_from_json` is the inverse."""
    rows = zip(categories.names, categories.is_thing, categories.file_ids, categories.colors, strict=True)
    return [
        {"name": name, "is_thing": is_thing, "file_id": file_id, "color": list(color)}
        for name, is_thing, file_id, color in rows
    ]


def write_atomically(path: Path, content: str) -> None:
    """Write a text file so that a reader sees the old content or the new one, never a part of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Write a safetensors file under a temporary name in the same folder and rename it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    try:
        # Cloned, because safetensors refuses tensors that share memory.
        copies = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in tensors.items()}
        save_file(copies, name, dict(metadata))
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        WeightsError: the file is missing, cut off, or not a safetensors file.
    """
    if not path.is_file():
        raise WeightsError(path, "there is no such file")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            path, f"cannot be read, it may be cut off or of another format ({error}); copy or save it again"
        ) from None
    return tensors


def save_model(folder: Path, model: Model, model_file: ModelFile, half: bool = False) -> None:
    """Write a model folder that `load_model` reads.

    Both files are written completely under temporary names before they take their own; an existing model in
    the folder is replaced, other files in it stay. With `half`, matrices and kernels are stored in float16
    (vectors, such as the statistics of norms, stay as they are): half the size, and loaded as float32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = model_file_text(model_file)
    state = model.state_dict()
    if half:
        state = {key: value.half() if value.ndim >= 2 else value for key, value in state.items()}
    save_tensors(folder / WEIGHTS_NAME, state)
    write_atomically(folder / CONFIG_NAME, text)


def model_file_text(model_file: ModelFile) -> str:
    """The JSON of a `config.json`; `parse_model_file` is the inverse."""
    config = {
        "format": _FORMAT,
        "experiment": experiment_to_dict(model_file.experiment),
        "categories": categories_to_json(model_file.categories),
        "licence": model_file.licence,
        "provenance": model_file.provenance,
    }
    return json.dumps(config, indent=1, ensure_ascii=False) + "\n"


def parse_model_file(text: str, path: Path) -> ModelFile:
    """What the JSON of a `config.json` says; `path` is where it was found, for messages.

    Raises:
        WeightsError: it is not JSON.
        ConfigError: it holds an unknown, missing or impossible setting; the message names file and setting.
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        raise WeightsError(path, f"is not valid JSON ({error})") from None
    try:
        return _model_file_from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.path}", error.reason) from None


def load_model_file(folder: Path) -> ModelFile:
    """What the `config.json` of a model folder says.

    Raises:
        WeightsError: the file is missing or is not JSON.
        ConfigError: it holds an unknown, missing or impossible setting; the message names file and setting.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise WeightsError(
            path,
            f"there is no such file; a model folder holds {WEIGHTS_NAME} and {CONFIG_NAME}",
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise WeightsError(path, f"is not valid JSON ({error})") from None
    return parse_model_file(text, path)


def _model_file_from_dict(values: object) -> ModelFile:
    if not isinstance(values, dict):
        raise ConfigError("config", "must be a JSON object")
    if values.get("kind") == SEQUENCES:
        raise ConfigError(
            "kind", "is a model that writes tokens, not segments; it is for `unimask translate`"
        )
    wrong = sorted(set(values) ^ set(_CONFIG_KEYS))
    if wrong:
        raise ConfigError(", ".join(wrong), f"the file must have exactly the keys {', '.join(_CONFIG_KEYS)}")
    if values["format"] != _FORMAT:
        raise ConfigError("format", f"is {values['format']!r}, this version of unimask reads {_FORMAT}")
    for key in ("licence", "provenance"):
        if not isinstance(values[key], str):
            raise ConfigError(key, f"must be text; got {values[key]!r}")
    if not isinstance(values["experiment"], dict):
        raise ConfigError("experiment", "must be a JSON object")
    return ModelFile(
        experiment=experiment_from_dict(values["experiment"]),
        categories=categories_from_json(values["categories"]),
        licence=values["licence"],
        provenance=values["provenance"],
    )


def load_model(folder: Path, device: torch.device | str = "cpu") -> tuple[Model, ModelFile]:
    """The model of a folder, in eval mode on `device`, and what the folder says about it.

    The random state of the caller is left alone.

    Raises:
        WeightsError: a file is missing or broken, or the tensors do not fit the model of `config.json`.
        ConfigError: `config.json` holds a setting that does not exist or is impossible.
    """
    model_file = load_model_file(folder)
    tensors = load_tensors(folder / WEIGHTS_NAME)
    with torch.random.fork_rng(devices=[]):
        model = build_model(model_file.experiment.model, len(model_file.categories))
    fill(model, tensors, folder / WEIGHTS_NAME)
    return model.eval().to(device), model_file


def fill(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy tensors into a model whose state dict has exactly these keys and shapes.

    Raises:
        WeightsError: keys are missing, unexpected or of another shape; nothing is copied then. A wrong number
            of classes is named as such.
    """
    own = model.state_dict()
    missing = tuple(key for key in own if key not in tensors)
    unexpected = tuple(key for key in tensors if key not in own)
    mismatched = tuple(
        f"{key} {tuple(tensors[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in tensors and tensors[key].shape != own[key].shape
    )
    if missing or unexpected or mismatched:
        raise WeightsError(
            path,
            _class_count_reason(own, tensors) or "does not fit the model that its config.json describes",
            missing=missing,
            unexpected=unexpected,
            mismatched=mismatched,
        )
    model.load_state_dict(dict(tensors))


def _class_count_reason(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """A sentence on the number of classes where that is what differs, else nothing."""
    for key, tensor in tensors.items():
        if key.endswith("heads.classes.weight") and key in own and tensor.shape[0] != own[key].shape[0]:
            return (
                f"the weights are for {tensor.shape[0] - 1} classes, config.json lists "
                f"{own[key].shape[0] - 1} categories; list there those that the weights were trained "
                "on, or train a model on the new ones"
            )
    return ""


def shipped_models() -> tuple[str, ...]:
    """The names of the models inside the package."""
    return tuple(sorted(path.parent.name for path in ASSETS.glob(f"*/{CONFIG_NAME}")))


def resolve_weights(name_or_folder: str | Path) -> Path:
    """The model folder that a name or a path means: a folder first, then a model inside the package.

    Raises:
        WeightsError: it is neither; the message lists the names and says how to make a folder.
    """
    path = Path(name_or_folder).expanduser()
    if path.is_dir():
        return path
    if str(name_or_folder) in shipped_models():
        return ASSETS / str(name_or_folder)
    if path.is_file():
        if path.name in (WEIGHTS_NAME, CONFIG_NAME):
            return path.parent
        raise WeightsError(
            path, "is a file, not a model folder; `unimask convert FILE FOLDER` makes one of it"
        )
    names = ", ".join(shipped_models()) or "none"
    raise WeightsError(
        name_or_folder,
        f"no such folder, and no model of this name is inside the package (there are: {names}); give a "
        f"folder with {WEIGHTS_NAME} and {CONFIG_NAME}, as `unimask train` and `unimask convert` write it",
    )
