"""A model is a folder: `model.safetensors` and `config.json`.

`config.json` holds the experiment (with the normalisation of pixels), the task, the categories, the licence
and the provenance. Weights are read with safetensors only, which cannot run code.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from unimask.checkpoints.tensors import WEIGHTS_NAME, fill, load_tensors, save_folder, weights_of
from unimask.config.images import Experiment, experiment_from_dict, experiment_to_dict
from unimask.config.models import tasks_of
from unimask.config.tasks import Task, check_task
from unimask.data.category_tables import categories_from_json, categories_to_json
from unimask.errors import ConfigError, WeightsError, choices
from unimask.files import json_of, json_text, read_text
from unimask.models.build import Model, build_model
from unimask.structures import Categories

CONFIG_NAME = "config.json"
ASSETS = Path(__file__).parents[1] / "assets"

_CONFIG_KEYS = ("format", "experiment", "task", "categories", "licence", "provenance")
_FORMAT = 1
SEQUENCES = "sequences"  # the `kind` of models that write tokens (`checkpoints/text.py`)


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """What a model folder says about its weights."""

    experiment: Experiment
    task: Task  # that it was trained for, and does where no other is asked for
    categories: Categories
    licence: str  # of the weights, for instance "CC0-1.0"
    provenance: str  # where the weights come from: data, command, or the file they were converted from


def usual_task(experiment: Experiment, categories: Categories) -> Task:
    """Return the task that a model was most likely trained for, where nothing states it.

    The only task that its kind can do; semantic, if it resizes the values of categories or has no things;
    instance, if it has nothing but things; else panoptic.
    """
    known = tasks_of(experiment.model)
    if len(known) == 1:
        return known[0]
    stuff = [not thing for thing in categories.is_thing]
    if "semantic" in known and (experiment.postprocess.resize_classes or all(stuff)):
        return "semantic"
    return "panoptic" if any(stuff) else "instance"


def save_model(folder: Path, model: Model, model_file: ModelFile, half: bool = False) -> None:
    """Write a model folder that `load_model` reads.

    Both files are complete when they appear, together (`save_folder`); an existing model in the folder is
    replaced, other files in it stay. With `half`, matrices and kernels are stored in float16
    (vectors, such as the statistics of norms, stay as they are): half the size, and loaded as float32.
    """
    text = model_file_text(model_file)
    save_folder(folder, weights_of(model, half=half), {CONFIG_NAME: text})


def model_file_text(model_file: ModelFile) -> str:
    """Return the JSON of a `config.json`; `parse_model_file` is the inverse."""
    config = {
        "format": _FORMAT,
        "experiment": experiment_to_dict(model_file.experiment),
        "task": model_file.task,
        "categories": categories_to_json(model_file.categories),
        "licence": model_file.licence,
        "provenance": model_file.provenance,
    }
    return json_text(config) + "\n"


def parse_model_file(text: str, path: Path) -> ModelFile:
    """Return what the JSON of a `config.json` says; `path` is where it was found, for messages.

    Raises:
        WeightsError: it is not JSON.
        ConfigError: it holds an unknown, missing or impossible setting; the message names file and setting.
    """
    values = json_of(text, path, WeightsError)
    try:
        return _model_file_from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.path}", error.reason) from None


def load_model_file(folder: Path) -> ModelFile:
    """Return what the `config.json` of a model folder says.

    Raises:
        WeightsError: the file is missing or is not JSON.
        ConfigError: it holds an unknown, missing or impossible setting; the message names file and setting.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        if (folder / "experiment.json").is_file():
            reason = "is a run that has saved no model yet; go on with it (unimask train --resume)"
            raise WeightsError(folder, reason)
        raise WeightsError(
            path,
            f"there is no such file; a model folder holds {WEIGHTS_NAME} and {CONFIG_NAME}",
        )
    return parse_model_file(read_text(path, WeightsError), path)


def _model_file_from_dict(values: object) -> ModelFile:
    if not isinstance(values, dict):
        raise ConfigError("config", "must be a JSON object")
    if values.get("kind") == SEQUENCES:
        raise ConfigError("kind", "this model translates text; `unimask translate` takes it")
    if "model_type" in values and "experiment" not in values:
        reason = "is of a model of transformers; `unimask convert FOLDER NEW_FOLDER` makes a model of it"
        raise ConfigError("model_type", reason)
    wrong = sorted((set(values) | {"task"}) ^ set(_CONFIG_KEYS))  # earlier folders do not state the task
    if wrong:
        raise ConfigError(", ".join(wrong), f"the file must have exactly the keys {', '.join(_CONFIG_KEYS)}")
    if values["format"] != _FORMAT:
        raise ConfigError("format", f"is {values['format']!r}, this version of unimask reads {_FORMAT}")
    for key in ("licence", "provenance"):
        if not isinstance(values[key], str):
            raise ConfigError(key, f"must be text; got {values[key]!r}")
    if not isinstance(values["experiment"], dict):
        raise ConfigError("experiment", "must be a JSON object")
    experiment = experiment_from_dict(values["experiment"])
    categories = categories_from_json(values["categories"])
    task = values.get("task", usual_task(experiment, categories))
    if not isinstance(task, str):
        raise ConfigError("task", f"must be text; got {task!r}")
    check_task(task)
    return ModelFile(
        experiment=experiment,
        task=cast(Task, task),
        categories=categories,
        licence=values["licence"],
        provenance=values["provenance"],
    )


def load_model(folder: Path, device: torch.device | str = "cpu") -> tuple[Model, ModelFile]:
    """Return the model of a folder, in eval mode on `device`, and what the folder says about it.

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


def shipped_models() -> tuple[str, ...]:
    """Return the names of the models inside the package."""
    return tuple(sorted(path.parent.name for path in ASSETS.glob(f"*/{CONFIG_NAME}")))


def known_folder(name_or_folder: str | Path) -> Path | None:
    """Return the model folder that a name or a path means: a folder first, then a model inside the package.

    Of a run folder it is the model of the best evaluation, `best/`; without one the last, `model/`.
    """
    path = Path(name_or_folder).expanduser()
    if path.is_dir():
        inside = (path / name for name in ("", "best", "model"))
        return next((folder for folder in inside if (folder / CONFIG_NAME).is_file()), path)
    return ASSETS / str(name_or_folder) if str(name_or_folder) in shipped_models() else None


def resolve_weights(name_or_folder: str | Path) -> Path:
    """Return the model folder that a name or a path means, as `known_folder`, or a file in a model folder.

    Raises:
        WeightsError: it is neither; the message lists the names and says how to make a folder.
    """
    found = known_folder(name_or_folder)
    if found is not None:
        return found
    path = Path(name_or_folder).expanduser()
    if path.is_file():
        if path.name in (WEIGHTS_NAME, CONFIG_NAME):
            return path.parent
        raise WeightsError(
            path, "is a file, not a model folder; `unimask convert FILE FOLDER` makes one of it"
        )
    raise WeightsError(
        name_or_folder,
        f"no such folder, and no model of this name is inside the package; "
        f"{choices(str(name_or_folder), shipped_models())}; or give a folder with {WEIGHTS_NAME} and "
        f"{CONFIG_NAME}, as `unimask train` and `unimask convert` write it",
    )
