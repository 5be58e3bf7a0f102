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

from unimask.checkpoints.images import CONFIG_NAME, ModelFile, load_model, save_model, usual_task
from unimask.checkpoints.text import SequenceModelFile, is_sequence_model
from unimask.config.images import AnyModelConfig, DataConfig, EomtConfig, ShortSide, Square, Whole
from unimask.conversion import eomt, hugging_face_config, hugging_face_files, marian, original
from unimask.conversion.architecture import Stated
from unimask.conversion.checkpoint_format import CheckpointFormat
from unimask.conversion.data_sets import categories_for, settings_for
from unimask.conversion.foreign_files import read_foreign_tensors
from unimask.conversion.hugging_face_files import config_mentions
from unimask.errors import WeightsError
from unimask.files import complete_file
from unimask.models.build import Model
from unimask.presets.eomt import in_sliding_windows

Format = Literal["unimask", "transformers", "original"]

NO_BASE = "is complete without a base; leave --base out"
FOREIGN_FILES = (".pkl", ".pth", ".pt", ".bin", ".safetensors")


def convert(
    source: str | Path,
    target: Path,
    to: Format = "unimask",
    licence: str = "not stated, see the provenance",
    base: Path | None = None,
) -> ModelFile | SequenceModelFile:
    """Convert a model; what it is, is told from `source` itself.

    `source` is a file of the original release (`.pkl`, `.pth`), a folder or a hub id of Hugging Face
    transformers, or a model folder of ours. With `to="unimask"` or `"transformers"`, `target` is a folder,
    with `"original"` a file `.pth` or `.pkl`. The target is written only once all is converted, each file
    under a temporary name first. `licence` is that of foreign weights, a folder of ours states its own.
    `base` is a file of the weights that those of the source are differences to (EoMT from DINOv3).

    The result says what was found in the source.

    Raises:
        WeightsError: the source cannot be had or read, is no Mask2Former, MaskFormer or DETR of known
            architecture, or has no counterpart in the format asked for.
        ConfigError: the `config.json` of a model folder of ours is wrong.
    """
    if is_sequence_model(source) or marian.is_marian(Path(source)):
        return marian.convert_translator(source, target, to, licence)
    _check_target(target, to)
    model, model_file = read_model(source, licence, base)
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


def read_model(source: str | Path, licence: str, base: Path | None = None) -> tuple[Model, ModelFile]:
    """Return the model of any source that `convert` takes, and what is known of it.

    Raises:
        WeightsError, ConfigError: see `convert`.
    """
    path = Path(source).expanduser()
    if path.is_file() and path.suffix in FOREIGN_FILES:
        return import_original(complete_tensors(path, base), path, licence)
    if (path / hugging_face_files.PICKLE).is_file() or hugging_face_files.is_hugging_face(path):
        return _import_folder(path, f"converted from {path.name} (transformers)", licence, base)
    if (path / CONFIG_NAME).is_file():
        return load_model(path)
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        folder = hugging_face_files.download(str(source))
        if config_mentions(folder, "experiment"):  # one of ours, which somebody has pushed
            return load_model(folder)
        return _import_folder(folder, f"converted from {source} (Hugging Face hub)", licence, base)
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


def _import_folder(folder: Path, provenance: str, licence: str, base: Path | None) -> tuple[Model, ModelFile]:
    """Return the model of a folder of the hub: of transformers, or with a file of an original release."""
    if not hugging_face_files.is_hugging_face(folder):
        path = folder / hugging_face_files.PICKLE
        return import_original(complete_tensors(path, base), path, licence)
    if base is not None:
        raise WeightsError(folder, NO_BASE)
    return import_hugging_face(folder, provenance, licence)


def complete_tensors(path: Path, base: Path | None) -> dict[str, Tensor]:
    """Return the tensors of a file; added to those of `base` where they are differences to Meta's DINOv3.

    Raises:
        WeightsError: a file cannot be read; a base is needed, and is not given or another; or none is needed.
    """
    tensors = read_foreign_tensors(path)
    if original.format_of(tensors) is not eomt.ORIGINAL_DINOV3:
        if base is not None:
            raise WeightsError(path, NO_BASE)
        return tensors
    if base is None:
        raise WeightsError(
            path,
            "holds differences to the weights of DINOv3, which Meta gives out under its own licence; get "
            "those (facebook/dinov3-vit...-pretrain-lvd1689m, model.safetensors) and add --base FILE",
        )
    return eomt.with_base(tensors, read_foreign_tensors(base), base)


def import_original(tensors: Mapping[str, Tensor], path: Path, licence: str) -> tuple[Model, ModelFile]:
    """Return the model of a file of an original release, in old or new names, with or without versions.

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
    """Return the model of a folder of transformers.

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
    stated = eomt.with_chances(stated, tensors)
    model, config, num_classes = checkpoint_format.read(tensors, stated, path)
    if isinstance(config, EomtConfig) and config.backbone.kind == "dinov3":
        provenance += "; its backbone comes from DINOv3 and is under Meta's DINOv3 License"
    experiment = settings_for(config, num_classes)
    if stated.resize:
        experiment = replace(experiment, data=_seen(experiment.data, config, stated.resize))
    categories = categories_for(config, num_classes, stated.names)
    return model, ModelFile(
        experiment=experiment,
        task=usual_task(experiment, categories),
        categories=categories,
        licence=licence,
        provenance=provenance,
    )


def _seen(data: DataConfig, model: AnyModelConfig, resize: ShortSide | Square) -> DataConfig:
    """Return the settings of data with the resize that foreign files state."""
    if not isinstance(model, EomtConfig):
        return replace(data, resize=resize)
    size = model.backbone.size  # of the positions; a stated short side stands for windows as high as it
    if isinstance(resize, ShortSide):
        return in_sliding_windows(data, size)
    return replace(data, resize=Square(size=size), view=Whole())


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
