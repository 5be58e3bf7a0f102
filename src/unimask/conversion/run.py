"""Weights of other releases become our model folders, and the other way round."""

import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from unimask.checkpoints.images import CONFIG_NAME, ModelFile, load_model, save_model
from unimask.conversion import hugging_face_config, hugging_face_files, original
from unimask.conversion.architecture import Stated
from unimask.conversion.checkpoint_format import CheckpointFormat
from unimask.conversion.data_sets import categories_for, settings_for
from unimask.conversion.foreign_files import read_foreign_tensors
from unimask.errors import WeightsError
from unimask.files import complete_file
from unimask.models.build import Model

Format = Literal["unimask", "transformers", "original"]

FOREIGN_FILES = (".pkl", ".pth", ".pt", ".bin", ".safetensors")


def convert(
    source: str | Path, target: Path, to: Format = "unimask", licence: str = "not stated, see the provenance"
) -> ModelFile:
    """Convert a model; what it is, is told from `source` itself.

    `source` is a file of the original release (`.pkl`, `.pth`), a folder or a hub id of Hugging Face
    transformers, or a model folder of ours. With `to="unimask"` or `"transformers"`, `target` is a folder,
    with `"original"` a file `.pth` or `.pkl`. The target is written only once all is converted, each file
    under a temporary name first. `licence` is that of foreign weights, a folder of ours states its own.

    The result says what was found in the source.

    Raises:
        WeightsError: the source cannot be had or read, is no Mask2Former, MaskFormer or DETR of known
            architecture, or has no counterpart in the format asked for.
        ConfigError: the `config.json` of a model folder of ours is wrong.
    """
    _check_target(target, to)
    model, model_file = read_model(source, licence)
    if to == "unimask":
        save_model(target, model, model_file)
        return model_file
    if to == "transformers":
        _write_hugging_face(target, model, model_file)
    else:
        _write_original(target, model, model_file)
    return model_file


def _check_target(target: Path, to: Format) -> None:
    if to == "original" and target.suffix not in (".pth", ".pkl"):
        raise WeightsError(target, "must be a file that ends with .pth or .pkl for the original release")
    if to != "original" and (target.suffix in FOREIGN_FILES or target.is_file()):
        raise WeightsError(target, "must be a folder; for a file of the original release ask for that format")


def read_model(source: str | Path, licence: str) -> tuple[Model, ModelFile]:
    """The model of any source that `convert` takes, and what is known of it.

    Raises:
        WeightsError, ConfigError: see `convert`.
    """
    path = Path(source).expanduser()
    if path.is_file() and path.suffix in FOREIGN_FILES:
        return import_original(read_foreign_tensors(path), path, licence)
    if path.is_dir() and hugging_face_files.is_hugging_face(path):
        return import_hugging_face(path, f"converted from {path.name} (transformers)", licence)
    if (path / CONFIG_NAME).is_file():
        return load_model(path)
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        folder = hugging_face_files.download(str(source))
        return import_hugging_face(folder, f"converted from {source} (Hugging Face hub)", licence)
    what = (
        "holds no config.json"
        if path.is_dir()
        else "is no file of weights"
        if path.exists()
        else "does not exist"
    )
    raise WeightsError(
        source,
        f"{what}; give a file of the original release ({', '.join(FOREIGN_FILES)}), a folder or hub id of "
        "transformers, or a model folder",
    )


def import_original(tensors: Mapping[str, Tensor], path: Path, licence: str) -> tuple[Model, ModelFile]:
    """The model of a file of an original release, in old or new names, with or without version metadata.

    The file holds no pixel statistics: they are those of ImageNet, in RGB, as in all its configurations. The
    categories are those of the data set with this number of classes. Tensors do not tell whether the last
    stage of DETR's backbone is dilated: it is where the name of the file holds `dc5`.

    Raises:
        WeightsError: see `convert`.
    """
    stated = Stated(dilated="dc5" in path.name.lower())
    provenance = f"converted from {path.name} ({original.TITLE})"
    return _import(tensors, original.format_of(tensors), stated, path, provenance, licence)


def import_hugging_face(folder: Path, provenance: str, licence: str) -> tuple[Model, ModelFile]:
    """The model of a folder of transformers.

    Raises:
        WeightsError: see `convert`.
    """
    config_format, stated = hugging_face_config.read_stated(folder)
    tensors = hugging_face_files.read_tensors(folder)
    return _import(tensors, config_format.names, stated, folder, provenance, licence)


def _import(
    tensors: Mapping[str, Tensor],
    checkpoint_format: CheckpointFormat,
    stated: Stated,
    path: Path,
    provenance: str,
    licence: str,
) -> tuple[Model, ModelFile]:
    model, config, num_classes = checkpoint_format.read(tensors, stated, path)
    experiment = settings_for(config, num_classes)
    if stated.resize:
        experiment = replace(experiment, data=replace(experiment.data, resize=stated.resize))
    return model, ModelFile(
        experiment=experiment,
        categories=categories_for(config, num_classes, stated.names),
        licence=licence,
        provenance=provenance,
    )


def _write_hugging_face(folder: Path, model: Model, model_file: ModelFile) -> None:
    """Write a folder that transformers' `from_pretrained` reads; existing files are replaced."""
    config_format = hugging_face_config.format_for(model_file.experiment.model)
    tensors = config_format.names.write(model, model_file)
    hugging_face_files.write_folder(
        folder,
        tensors,
        {
            "preprocessor_config.json": hugging_face_files.as_text(
                hugging_face_config.written_processor(config_format, model_file)
            ),
            "config.json": hugging_face_files.as_text(
                hugging_face_config.written_config(config_format, tensors, model_file)
            ),
        },
    )


def _write_original(path: Path, model: Model, model_file: ModelFile) -> None:
    """Write a file that the original loads: `.pth` with today's names and versions, `.pkl` with arrays.

    The original renames keys of files without versions, even where they have today's names already; so a
    `.pkl`, which has no place for versions, gets the names from before.
    """
    checkpoint_format = original.format_for(model_file.experiment.model)
    tensors = checkpoint_format.write(model, model_file)
    with complete_file(path) as temporary, temporary.open("wb") as file:
        if path.suffix == ".pkl":
            arrays = {original.old_name(key): tensor.numpy() for key, tensor in tensors.items()}
            pickle.dump({"model": arrays, "__author__": "unimask"}, file)
        else:
            state = OrderedDict(tensors)
            state._metadata = OrderedDict(checkpoint_format.versions)  # type: ignore[attr-defined]
            torch.save({"model": state}, file)
