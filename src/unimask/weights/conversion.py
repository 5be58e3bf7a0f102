"""Weights of other releases become our model folders, and the other way round."""

import os
import pickle
import re
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from unimask import presets
from unimask.checkpoint import CONFIG_NAME, ModelFile, load_categories, load_model, save_model
from unimask.config import DetrConfig, Experiment, ModelConfig, PixelDecoderConfig, QueryDecoderConfig
from unimask.errors import WeightsError
from unimask.models.build import Model, build_model
from unimask.structures import Categories
from unimask.weights import detr, hugging_face, hugging_face_files, original
from unimask.weights.architecture import POINTS, infer_model
from unimask.weights.files import read_foreign_tensors
from unimask.weights.origin import Origin, build_from, made_up_categories, rename
from unimask.weights.rules import to_theirs

Format = Literal["unimask", "transformers", "original"]

FOREIGN_FILES = (".pkl", ".pth", ".pt", ".bin", ".safetensors")


ORIGINAL = Origin(
    title="the original release",
    model="Mask2Former",
    rules=original.RULES,
    not_weights=original.NOT_WEIGHTS,
    with_current_names=original.with_current_names,
    constants=original.constants,
    versions=original.VERSIONS,
)
TRANSFORMERS = Origin(
    title="Hugging Face transformers",
    model="Mask2Former",
    rules=hugging_face.RULES,
    not_weights=hugging_face.NOT_WEIGHTS,
    with_current_names=hugging_face.with_current_names,
    constants=hugging_face.constants,
    versions={},
)

_DATA_SETS: Mapping[int, tuple[str, Callable[[str], Experiment]]] = {
    133: ("coco_panoptic", presets.coco),
    80: ("coco_instance", presets.coco),
    150: ("ade20k", presets.ade20k_semantic),
    19: ("cityscapes", presets.cityscapes),
    65: ("mapillary_vistas", presets.mapillary_vistas),
}
"""Number of classes -> table of categories, and the settings of the data set."""


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
        WeightsError: the source cannot be had or read, is no Mask2Former or DETR of known architecture, or
            has no counterpart in the format asked for.
        ConfigError: the `config.json` of a model folder of ours is wrong.
    """
    _check_target(target, to)
    model, model_file = read_model(source, licence)
    if to == "unimask":
        save_model(target, model, model_file)
        return model_file
    is_detr = isinstance(model_file.experiment.model, DetrConfig)
    if to == "transformers":
        tensors = export(model, model_file, detr.TRANSFORMERS if is_detr else TRANSFORMERS)
        hugging_face_files.write_folder(target, tensors, model_file)
    else:
        origin = detr.ORIGINAL if is_detr else ORIGINAL
        _write_original(target, export(model, model_file, origin), origin)
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
        tensors = read_foreign_tensors(path)
        of_kind = detr.import_original if detr.knows(tensors) else import_original
        return of_kind(tensors, path, licence)
    if path.is_dir() and hugging_face_files.is_hugging_face(path):
        return _import_folder(path, f"converted from {path.name} (transformers)", licence)
    if (path / CONFIG_NAME).is_file():
        return load_model(path)
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        folder = hugging_face_files.download(str(source))
        return _import_folder(folder, f"converted from {source} (Hugging Face hub)", licence)
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


def _import_folder(folder: Path, provenance: str, licence: str) -> tuple[Model, ModelFile]:
    """The model of a folder of transformers, of the kind that its configuration says."""
    is_detr = hugging_face_files.kind_of(folder) == "detr"
    return (detr.import_hugging_face if is_detr else import_hugging_face)(folder, provenance, licence)


def import_original(tensors: Mapping[str, Tensor], path: Path, licence: str) -> tuple[Model, ModelFile]:
    """The model of a file of the original release, in old or new names, with or without version metadata.

    The file holds no pixel statistics: they are those of ImageNet, in RGB, as in all its configurations. The
    categories are those of the data set with this number of classes.

    Raises:
        WeightsError: see `convert`.
    """
    ours, theirs = rename(tensors, ORIGINAL, path)
    config, num_classes = infer_model(ours, path)
    model_file = ModelFile(
        experiment=_experiment(config, num_classes),
        categories=_categories(num_classes, ()),
        licence=licence,
        provenance=f"converted from {path.name} (the original release)",
    )
    return _build(config, num_classes, ours, theirs, ORIGINAL, path), model_file


def import_hugging_face(folder: Path, provenance: str, licence: str) -> tuple[Model, ModelFile]:
    """The model of a folder of transformers.

    Raises:
        WeightsError: see `convert`.
    """
    said = hugging_face_files.read_description(folder)
    ours, theirs = rename(hugging_face_files.read_tensors(folder), TRANSFORMERS, folder)
    config, num_classes = infer_model(ours, folder)
    if said.heads != config.pixel_decoder.heads:
        raise WeightsError(
            folder,
            f"the tensors are of {config.pixel_decoder.heads} attention heads, config.json says {said.heads}",
        )
    backbone = replace(
        config.backbone,
        image_mean=said.image_mean or config.backbone.image_mean,
        image_std=said.image_std or config.backbone.image_std,
    )
    config = replace(config, backbone=backbone)
    experiment = _experiment(config, num_classes)
    if said.resize:
        experiment = replace(experiment, data=replace(experiment.data, resize=said.resize))
    model_file = ModelFile(
        experiment=experiment,
        categories=_categories(num_classes, said.names),
        licence=licence,
        provenance=provenance,
    )
    return _build(config, num_classes, ours, theirs, TRANSFORMERS, folder), model_file


def _build(
    config: ModelConfig,
    num_classes: int,
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    origin: Origin,
    path: Path,
) -> Model:
    return build_from(
        lambda: build_model(config, num_classes), ours, theirs, origin, path, config.backbone.name
    )


def _experiment(config: ModelConfig, num_classes: int) -> Experiment:
    """The settings of the data set that has so many classes, with this model."""
    if num_classes not in _DATA_SETS:
        return Experiment(model=config)
    return replace(_DATA_SETS[num_classes][1](config.backbone.name), model=config)


def _categories(num_classes: int, names: tuple[str, ...]) -> Categories:
    """The table of the data set with so many classes, unless most of the given names differ from it.

    Names without a table are things: a model says nothing on what is stuff.
    """
    if num_classes in _DATA_SETS:
        table = load_categories(_DATA_SETS[num_classes][0])
        same = sum(a.strip().lower() == b.lower() for a, b in zip(names, table.names, strict=False))
        if not names or 2 * same > num_classes:
            return table
    return made_up_categories(num_classes, names)


def export(model: Model, model_file: ModelFile, origin: Origin) -> dict[str, Tensor]:
    """The tensors of the model under the names of `origin`, with the constants its files hold.

    Raises:
        WeightsError: the model has settings or tensors that `origin` does not know.
    """
    experiment = model_file.experiment
    differing = "" if isinstance(experiment.model, DetrConfig) else _differing(experiment.model)
    if differing:
        raise WeightsError(experiment.model.backbone.name, f"{origin.title} has no such model: {differing}")
    renamed = to_theirs(model.state_dict(), origin.rules)
    if renamed.unknown:
        raise WeightsError(
            experiment.model.backbone.name,
            f"{origin.title} has no counterpart, only of ResNet and Swin",
            unexpected=renamed.unknown,
        )
    constants = origin.constants(renamed.tensors, experiment.losses.no_object_weight)
    return {**renamed.tensors, **constants}


def _differing(model: ModelConfig) -> str:
    """The settings of the model that leave no trace in names and shapes and that others do not have."""
    decoder, usual = model.query_decoder, QueryDecoderConfig()
    fixed = (
        "memory_strides",
        "level_embedding",
        "visibility",
        "order",
        "query_features",
        "predict_before_layers",
    )
    found = [f"query_decoder.{name} is {getattr(decoder, name)!r}" for name in fixed]
    differing = [
        text
        for name, text in zip(fixed, found, strict=True)
        if getattr(decoder, name) != getattr(usual, name)
    ]
    if model.pixel_decoder.strides != PixelDecoderConfig().strides:
        differing.append(f"pixel_decoder.strides is {model.pixel_decoder.strides}")
    if model.pixel_decoder.points != POINTS:
        differing.append(f"pixel_decoder.points is {model.pixel_decoder.points}")
    if model.pixel_decoder.position_octaves:
        differing.append(f"pixel_decoder.position_octaves is {model.pixel_decoder.position_octaves}")
    if model.pixel_decoder.heads != decoder.heads:
        differing.append("the two decoders differ in heads")
    return ", ".join(differing)


def _write_original(path: Path, tensors: Mapping[str, Tensor], origin: Origin) -> None:
    """Write a file that the original loads: `.pth` with today's names and versions, `.pkl` with arrays.

    The original renames keys of files without versions, even where they have today's names already; so a
    `.pkl`, which has no place for versions, gets the names from before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            if path.suffix == ".pkl":
                arrays = {original.old_name(key): tensor.numpy() for key, tensor in tensors.items()}
                pickle.dump({"model": arrays, "__author__": "unimask"}, file)
            else:
                state = OrderedDict(tensors)
                state._metadata = OrderedDict(origin.versions)  # type: ignore[attr-defined]
                torch.save({"model": state}, file)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
