"""Weights of other releases become our model folders, and the other way round."""

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from unimask.checkpoints.images import CONFIG_NAME, ModelFile, load_model, save_model
from unimask.config.images import DetrConfig, Experiment, ModelConfig
from unimask.conversion import detr, hugging_face, hugging_face_files, maskformer, original
from unimask.conversion.architecture import DEEPLABS, HEADS, POINTS, infer_model
from unimask.conversion.foreign_files import read_foreign_tensors
from unimask.conversion.origin import Origin, build_from, made_up_categories, rename
from unimask.conversion.rules import to_theirs
from unimask.data.category_tables import load_categories
from unimask.errors import WeightsError
from unimask.files import complete_file
from unimask.models.build import Model, build_model
from unimask.presets import mask2former as presets
from unimask.presets import maskformer as presets_maskformer
from unimask.structures import Categories

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

MASKFORMER_ORIGINAL = replace(ORIGINAL, model="MaskFormer", rules=maskformer.ORIGINAL_RULES)
MASKFORMER_DEEP_STEM = replace(MASKFORMER_ORIGINAL, rules=maskformer.DEEP_STEM_RULES)
MASKFORMER_TRANSFORMERS = Origin(
    title="Hugging Face transformers",
    model="MaskFormer",
    rules=maskformer.TRANSFORMERS_RULES,
    not_weights=maskformer.NOT_WEIGHTS,
    with_current_names=maskformer.with_current_names,
    constants=maskformer.constants,
    versions={},
)

SignedOrigins = Sequence[tuple[str, Origin]]
"""Each after a regular expression for a key that such a file has and those of later ones do not."""

_ORIGINALS: SignedOrigins = (
    (maskformer.DEEP_STEM_SIGN, MASKFORMER_DEEP_STEM),
    (maskformer.ORIGINAL_SIGN, MASKFORMER_ORIGINAL),
    (r".*", ORIGINAL),
)
_TRANSFORMERS: SignedOrigins = (
    (maskformer.TRANSFORMERS_SIGN, MASKFORMER_TRANSFORMERS),
    (r".*", TRANSFORMERS),
)


def origin_of(tensors: Mapping[str, Tensor], origins: SignedOrigins) -> Origin:
    """The first origin whose sign is among the names; the last one where none is."""
    names = [re.sub(r"^module\.", "", key) for key in tensors]
    known = (origin for sign, origin in origins if any(re.fullmatch(sign, name) for name in names))
    return next(known, origins[-1][1])


def origin_for(model: ModelConfig | DetrConfig, to: Literal["original", "transformers"]) -> Origin:
    """Whose names the tensors of a model get."""
    if isinstance(model, DetrConfig):
        return {"original": detr.ORIGINAL, "transformers": detr.TRANSFORMERS}[to]
    if model.pixel_decoder.kind == "deformable":
        return {"original": ORIGINAL, "transformers": TRANSFORMERS}[to]
    if to == "transformers":
        return MASKFORMER_TRANSFORMERS
    return MASKFORMER_DEEP_STEM if model.backbone.name in DEEPLABS.values() else MASKFORMER_ORIGINAL


_DATA_SETS: Mapping[int, tuple[str, Callable[[str], Experiment]]] = {
    133: ("coco_panoptic", presets.coco),
    80: ("coco_instance", presets.coco),
    150: ("ade20k", presets.ade20k_semantic),
    19: ("cityscapes", presets.cityscapes),
    65: ("mapillary_vistas", presets.mapillary_vistas),
    100: ("ade20k_instance", presets.ade20k_panoptic),
    8: ("cityscapes_instance", presets.cityscapes),
}
"""Number of classes -> table of categories, and the settings of the data set."""

_MASKFORMER_DATA_SETS: Mapping[int, Callable[[str], Experiment]] = {
    133: presets_maskformer.maskformer_coco,
    150: presets_maskformer.maskformer_ade20k_semantic,
    19: presets_maskformer.maskformer_cityscapes,
    65: presets_maskformer.maskformer_mapillary_vistas,
}
"""The same for MaskFormer."""


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
    origin = origin_for(model_file.experiment.model, to)
    tensors = export(model, model_file, origin)
    if to == "transformers":
        hugging_face_files.write_folder(target, tensors, model_file)
    else:
        _write_original(target, tensors, origin)
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
    origin = origin_of(tensors, _ORIGINALS)
    ours, theirs = rename(tensors, origin, path)
    config, num_classes = infer_model(ours, path)
    model_file = ModelFile(
        experiment=settings_for(config, num_classes),
        categories=_categories(num_classes, ()),
        licence=licence,
        provenance=f"converted from {path.name} (the original release)",
    )
    return _build(config, num_classes, ours, theirs, origin, path), model_file


def import_hugging_face(folder: Path, provenance: str, licence: str) -> tuple[Model, ModelFile]:
    """The model of a folder of transformers.

    Raises:
        WeightsError: see `convert`.
    """
    said = hugging_face_files.read_description(folder)
    tensors = hugging_face_files.read_tensors(folder)
    origin = origin_of(tensors, _TRANSFORMERS)
    ours, theirs = rename(tensors, origin, folder)
    config, num_classes = infer_model(ours, folder)
    config = _with_heads(config, said.heads, folder)
    backbone = replace(
        config.backbone,
        image_mean=said.image_mean or config.backbone.image_mean,
        image_std=said.image_std or config.backbone.image_std,
    )
    config = replace(config, backbone=backbone)
    experiment = settings_for(config, num_classes)
    if said.resize:
        experiment = replace(experiment, data=replace(experiment.data, resize=said.resize))
    model_file = ModelFile(
        experiment=experiment,
        categories=_categories(num_classes, said.names),
        licence=licence,
        provenance=provenance,
    )
    return _build(config, num_classes, ours, theirs, origin, folder), model_file


def _with_heads(config: ModelConfig, heads: int, folder: Path) -> ModelConfig:
    """The model with the heads that the configuration states; where tensors tell them, both must agree."""
    if config.pixel_decoder.kind == "deformable":
        if heads != config.pixel_decoder.heads:
            raise WeightsError(
                folder,
                f"the tensors are of {config.pixel_decoder.heads} attention heads, config.json says {heads}",
            )
        return config
    return replace(
        config,
        pixel_decoder=replace(config.pixel_decoder, heads=heads),
        query_decoder=replace(config.query_decoder, heads=heads),
    )


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


def settings_for(config: ModelConfig, num_classes: int) -> Experiment:
    """The settings of the data set that has so many classes, with this model."""
    if config.pixel_decoder.kind == "pyramid":
        settings = _MASKFORMER_DATA_SETS.get(num_classes, presets_maskformer.maskformer_coco)
        if num_classes == 150 and config.pixel_decoder.layers:
            settings = presets_maskformer.maskformer_ade20k_panoptic
        return replace(settings(config.backbone.name), model=config)
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
    if isinstance(experiment.model, DetrConfig):
        differing = _differing_detr(experiment.model)
    else:
        differing = _differing(experiment.model, origin)
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


def _differing_detr(model: DetrConfig) -> str:
    usual = DetrConfig()
    fixed = ("stride", "positions")
    return ", ".join(
        f"{name} is {getattr(model, name)!r}"
        for name in fixed
        if getattr(model, name) != getattr(usual, name)
    )


def _differing(model: ModelConfig, origin: Origin) -> str:
    """The settings of the model that leave no trace in names and shapes and that others do not have."""
    decoder, pixels = model.query_decoder, model.pixel_decoder
    of_maskformer = presets_maskformer.maskformer_model(model.backbone.name, encoder_layers=0)
    usual = {"deformable": ModelConfig(), "pyramid": of_maskformer}[pixels.kind]
    fixed = (
        "memory_strides",
        "level_embedding",
        "visibility",
        "order",
        "query_features",
        "predict_before_layers",
    )
    differing = [
        f"query_decoder.{name} is {getattr(decoder, name)!r}"
        for name in fixed
        if getattr(decoder, name) != getattr(usual.query_decoder, name)
    ]
    if model.classification != usual.classification:
        differing.append(f"classification is {model.classification!r}")
    if pixels.strides != usual.pixel_decoder.strides:
        differing.append(f"pixel_decoder.strides is {pixels.strides}")
    if pixels.points != POINTS:
        differing.append(f"pixel_decoder.points is {pixels.points}")
    if pixels.position_octaves:
        differing.append(f"pixel_decoder.position_octaves is {pixels.position_octaves}")
    if pixels.heads != decoder.heads:
        differing.append("the two decoders differ in heads")
    if origin is MASKFORMER_TRANSFORMERS and pixels.layers:
        differing.append(f"pixel_decoder.layers is {pixels.layers}")
    if origin.model == "MaskFormer" and origin.title == ORIGINAL.title and decoder.heads != HEADS:
        differing.append(f"query_decoder.heads is {decoder.heads}")
    return ", ".join(differing)


def _write_original(path: Path, tensors: Mapping[str, Tensor], origin: Origin) -> None:
    """Write a file that the original loads: `.pth` with today's names and versions, `.pkl` with arrays.

    The original renames keys of files without versions, even where they have today's names already; so a
    `.pkl`, which has no place for versions, gets the names from before.
    """
    with complete_file(path) as temporary, temporary.open("wb") as file:
        if path.suffix == ".pkl":
            arrays = {original.old_name(key): tensor.numpy() for key, tensor in tensors.items()}
            pickle.dump({"model": arrays, "__author__": "unimask"}, file)
        else:
            state = OrderedDict(tensors)
            state._metadata = OrderedDict(origin.versions)  # type: ignore[attr-defined]
            torch.save({"model": state}, file)
