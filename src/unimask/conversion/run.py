"""Weights of other releases become our model folders, and the other way round."""

import logging
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from unimask.checkpoints.images import CONFIG_NAME, ModelFile, load_model, save_model, usual_task
from unimask.checkpoints.tensors import UNWRITABLE, WEIGHTS_NAME
from unimask.checkpoints.text import SequenceModelFile, is_sequence_model
from unimask.config.data import ShortSide, SlidingWindow, Square
from unimask.config.images import Experiment, experiment_from_dict, experiment_to_dict
from unimask.config.models import BackboneConfig, EomtConfig
from unimask.conversion import (
    eomt,
    hugging_face_config,
    hugging_face_files,
    hugging_face_pixels,
    marian,
    original,
)
from unimask.conversion.architecture import Stated
from unimask.conversion.checkpoint_format import CheckpointFormat
from unimask.conversion.data_sets import categories_for, settings_for, with_stuff
from unimask.conversion.foreign_files import (
    NO_ARGUMENTS,
    ForeignWeights,
    read_foreign,
    read_foreign_tensors,
    unwrapped,
)
from unimask.conversion.hugging_face_files import config_mentions
from unimask.errors import ConfigError, WeightsError, first_line
from unimask.files import complete_file, exists, is_file
from unimask.models.build import Model
from unimask.presets.eomt import in_sliding_windows

_log = logging.getLogger(__name__)
Format = Literal["unimask", "transformers", "original"]

NO_BASE = "is complete without a base; leave --base out"
FOREIGN_FILES = (".pkl", ".pth", ".pt", ".bin", ".safetensors")


def convert(
    source: str | Path,
    target: Path,
    to: Format = "unimask",
    licence: str = "not stated, see the provenance",
    base: Path | None = None,
    stuff: Sequence[str] | None = None,
) -> ModelFile | SequenceModelFile:
    """Convert a model, whose kind is inferred from `source`.

    `source` is a file of the original release (`.pkl`, `.pth`), a folder or a hub id of Hugging Face
    transformers, or a model folder of ours. With `to="unimask"` or `"transformers"`, `target` is a folder,
    with `"original"` a file `.pth` or `.pkl`. The target is written only once all is converted, each file
    under a temporary name first. `licence` is that of foreign weights, a folder of ours states its own.
    A model of the same format in the target is replaced; another, or the source itself, never is.
    `base` is a file of the weights that those of the source are differences to (EoMT from DINOv3).
    `stuff` names the categories that are stuff, all others are things; None: as far as it is known.

    The result says what was found in the source; the logger `unimask.conversion.run` warns of what had to be
    assumed, and of files that were left out.

    Raises:
        WeightsError: the source cannot be downloaded or read, is no Mask2Former, MaskFormer or DETR of known
            architecture, or has no counterpart in the format asked for; or the target is the source, holds a
            model of another format, or cannot be written to.
        ConfigError: the `config.json` of a model folder of ours is wrong, or `stuff` names no category.
    """
    _check_overwritten(target, [source, *([] if base is None else [base])], to)
    if is_sequence_model(source) or marian.is_marian(Path(source)):
        return marian.convert_translator(source, target, to, licence)
    _check_target(target, to)
    model, model_file = read_model(source, licence, base)
    if stuff is not None:
        model_file = replace(model_file, categories=with_stuff(model_file.categories, stuff))
    if to == "unimask":
        save_model(target, model, model_file)
        return model_file
    if to == "transformers":
        _write_hugging_face(target, model, model_file)
    else:
        _write_original(target, model, model_file)
    return model_file


_SIGNS: Mapping[str, str] = {"unimask": "provenance", "transformers": "model_type"}
"""Format -> a key that only its `config.json` has."""


def _check_overwritten(target: Path, sources: Sequence[str | Path], to: Format) -> None:
    """Check that writing to the target destroys nothing else than a model of the same format.

    Raises:
        WeightsError: it is a source, or its `config.json` is of another kind.
    """
    written = (target.resolve(), (target / WEIGHTS_NAME).resolve())
    for path in (Path(source).expanduser() for source in sources):
        if exists(path) and path.resolve() in written:
            raise WeightsError(target, f"would replace {path}, which is being read; name another target")
    if to in _SIGNS and is_file(target / CONFIG_NAME) and not config_mentions(target, _SIGNS[to]):
        reason = f"holds a {CONFIG_NAME} that is not of a model in the format {to}"
        raise WeightsError(target, f"{reason}, and is not overwritten; name another folder")


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
        return _import_file(path, licence, base)
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
        return _import_file(path, licence, base)
    if base is not None:
        raise WeightsError(folder, NO_BASE)
    return import_hugging_face(folder, provenance, licence)


def complete_weights(path: Path, base: Path | None) -> ForeignWeights:
    """Return the weights of a file; added to those of `base` where they are differences to Meta's DINOv3.

    Raises:
        WeightsError: a file cannot be read; a base is needed, and is not given or another; or none is needed.
    """
    found = read_foreign(path)
    tensors = unwrapped(found.tensors)
    if original.format_of(tensors) is not eomt.ORIGINAL_DINOV3:
        if base is not None:
            raise WeightsError(path, NO_BASE)
        return replace(found, tensors=tensors)
    if base is None:
        raise WeightsError(
            path,
            "holds differences to the weights of DINOv3, which Meta gives out under its own licence; get "
            "those (facebook/dinov3-vit...-pretrain-lvd1689m, model.safetensors) and add --base FILE",
        )
    return replace(found, tensors=eomt.with_base(tensors, read_foreign_tensors(base), base))


def _import_file(path: Path, licence: str, base: Path | None) -> tuple[Model, ModelFile]:
    weights = complete_weights(path, base)
    return import_original(weights.tensors, path, licence, weights.arguments)


def import_original(
    tensors: Mapping[str, Tensor], path: Path, licence: str, arguments: Mapping[str, object] = NO_ARGUMENTS
) -> tuple[Model, ModelFile]:
    """Return the model of a file of an original release, in old or new names, with or without versions.

    `arguments` are those of the training that wrote it, where the file keeps them.

    The file holds no pixel statistics: they are those of ImageNet, in RGB, as in all its configurations. The
    categories are those of the data set with this number of classes. Tensors do not tell whether the last
    stage of DETR's backbone is dilated: it is where the arguments of its training or, without them, the name
    of the file say so (`dc5`).

    Raises:
        WeightsError: see `convert`.
    """
    checkpoint_format = original.format_of(tensors)
    if any(re.match(hugging_face_files.OWN_NAMES, key) for key in tensors):
        reason = "has the names of Hugging Face transformers; give its folder, which also holds config.json"
        raise WeightsError(path, reason)
    stated = Stated(dilated="dc5" in path.name.lower())
    if checkpoint_format is original.DETR and arguments:
        stated = original.stated_by_detr(arguments, path)
    provenance = f"converted from {path.name} ({original.TITLE})"
    return _import(tensors, checkpoint_format, stated, path, provenance, licence)


def import_hugging_face(folder: Path, provenance: str, licence: str) -> tuple[Model, ModelFile]:
    """Return the model of a folder of transformers.

    Raises:
        WeightsError: see `convert`.
    """
    config_format, stated = hugging_face_config.read_stated(folder)
    tensors = unwrapped(hugging_face_files.read_tensors(folder))
    tensors = eomt.with_gates_apart(tensors)
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
    if stated.names and len(stated.names) != num_classes:
        named = (
            f"names {len(stated.names)} categories in id2label, and the weights are of {num_classes} classes"
        )
        raise WeightsError(path / CONFIG_NAME, f"{named}; state a name for each class, or leave id2label out")
    found = categories_for(config, num_classes, stated.names)
    if found.assumed:
        _log.warning("%s: %s", path, found.assumed)
    experiment, categories = _with_data(settings_for(config, num_classes), stated, path), found.categories
    try:
        experiment_from_dict(experiment_to_dict(experiment))  # as it will be read again
    except ConfigError as error:
        raise WeightsError(path, f"states what no model here can have: {error}") from None
    return model, ModelFile(
        experiment=experiment,
        task=usual_task(experiment, categories),
        categories=categories,
        licence=licence,
        provenance=provenance,
    )


def _with_data(experiment: Experiment, stated: Stated, path: Path) -> Experiment:
    """Return the settings with those that foreign files state about data."""
    data, model = replace(experiment.data, **stated.data), experiment.model  # type: ignore[arg-type]
    if isinstance(model, EomtConfig) and stated.data:
        size = model.backbone.size  # of the positions, whatever else is stated
        if not isinstance(data.resize, ShortSide | Square) or data.resize.size != size:
            _log.warning("%s: another size is stated than that of the model, %d, which is taken", path, size)
        in_windows = isinstance(data.view, SlidingWindow)
        data = in_sliding_windows(data, size) if in_windows else replace(data, resize=Square(size=size))
    return replace(experiment, data=data)


def _write_hugging_face(folder: Path, model: Model, model_file: ModelFile) -> None:
    """Write a folder that transformers' `from_pretrained` reads; existing files are replaced."""
    config_format = hugging_face_config.format_for(model_file.experiment.model)
    tensors = config_format.names.write(model, model_file)
    hugging_face_files.write_folder(
        folder,
        tensors,
        {
            hugging_face_pixels.NAME: hugging_face_files.as_text(
                hugging_face_pixels.written_processor(config_format.image_processor, model_file)
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
    usual, backbone = BackboneConfig(), model_file.experiment.model.backbone
    if (backbone.image_mean, backbone.image_std) != (usual.image_mean, usual.image_std):
        said = f"mean {backbone.image_mean} and standard deviation {backbone.image_std}"
        _log.warning("%s: the file has no place for the %s of pixels; set them where it is used", path, said)
    state = OrderedDict(tensors)
    state._metadata = OrderedDict(checkpoint_format.versions)  # type: ignore[attr-defined]
    try:
        with complete_file(path) as temporary, temporary.open("wb") as file:
            if path.suffix == ".pkl":
                arrays = {original.old_name(key): tensor.numpy() for key, tensor in tensors.items()}
                pickle.dump({"model": arrays, "__author__": "unimask"}, file)
            else:
                torch.save({"model": state}, file)
    except (OSError, RuntimeError) as error:  # torch's writer has errors of its own
        raise WeightsError(path, f"cannot be written ({first_line(error)}); {UNWRITABLE}") from None
