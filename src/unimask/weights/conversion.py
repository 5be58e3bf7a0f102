"""Weights of other releases become our model folders, and the other way round."""

import os
import pickle
import re
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from unimask import presets, presets_maskformer
from unimask.checkpoint import CONFIG_NAME, ModelFile, load_categories, load_model, save_model
from unimask.config import Experiment, ModelConfig
from unimask.data.coco_file import default_color
from unimask.errors import WeightsError
from unimask.models.build import build_model
from unimask.models.mask_classifier import MaskClassifier
from unimask.structures import Categories
from unimask.weights import hugging_face, hugging_face_files, maskformer, original
from unimask.weights.architecture import DEEPLABS, HEADS, POINTS, infer_model
from unimask.weights.files import read_foreign_tensors
from unimask.weights.rules import Rule, to_ours, to_theirs

Format = Literal["unimask", "transformers", "original"]

FOREIGN_FILES = (".pkl", ".pth", ".pt", ".bin", ".safetensors")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """How others name their tensors."""

    title: str
    model: str  # whose tensors they are
    sign: str  # a key that such a file has and others do not, as a regular expression
    rules: tuple[Rule, ...]
    not_weights: tuple[str, ...]  # keys of a file that hold nothing learned, as regular expressions
    with_current_names: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    constants: Callable[[Mapping[str, Tensor], float], dict[str, Tensor]]


ORIGINAL = Origin(
    title="the original release",
    model="Mask2Former",
    sign=r".*",
    rules=original.RULES,
    not_weights=original.NOT_WEIGHTS,
    with_current_names=original.with_current_names,
    constants=original.constants,
)
TRANSFORMERS = Origin(
    title="Hugging Face transformers",
    model="Mask2Former",
    sign=r".*",
    rules=hugging_face.RULES,
    not_weights=hugging_face.NOT_WEIGHTS,
    with_current_names=hugging_face.with_current_names,
    constants=hugging_face.constants,
)

MASKFORMER_ORIGINAL = replace(
    ORIGINAL, model="MaskFormer", sign=maskformer.ORIGINAL_SIGN, rules=maskformer.ORIGINAL_RULES
)
MASKFORMER_DEEP_STEM = replace(
    MASKFORMER_ORIGINAL, sign=maskformer.DEEP_STEM_SIGN, rules=maskformer.DEEP_STEM_RULES
)
MASKFORMER_TRANSFORMERS = Origin(
    title="Hugging Face transformers",
    model="MaskFormer",
    sign=maskformer.TRANSFORMERS_SIGN,
    rules=maskformer.TRANSFORMERS_RULES,
    not_weights=maskformer.NOT_WEIGHTS,
    with_current_names=maskformer.with_current_names,
    constants=maskformer.constants,
)

_ORIGINALS = (MASKFORMER_DEEP_STEM, MASKFORMER_ORIGINAL, ORIGINAL)
_TRANSFORMERS = (MASKFORMER_TRANSFORMERS, TRANSFORMERS)


def origin_of(tensors: Mapping[str, Tensor], origins: Sequence[Origin]) -> Origin:
    """The first origin whose sign is among the names; the last one has that of any file."""
    names = [re.sub(r"^module\.", "", key) for key in tensors]
    return next(
        (origin for origin in origins if any(re.fullmatch(origin.sign, name) for name in names)), origins[-1]
    )


def origin_for(model: ModelConfig, to: Literal["original", "transformers"]) -> Origin:
    """Whose names the tensors of a model get."""
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
        WeightsError: the source cannot be had or read, is no Mask2Former or MaskFormer of known architecture,
            or has no counterpart in the format asked for.
        ConfigError: the `config.json` of a model folder of ours is wrong.
    """
    _check_target(target, to)
    model, model_file = read_model(source, licence)
    if to == "unimask":
        save_model(target, model, model_file)
        return model_file
    tensors = export(model, model_file, origin_for(model_file.experiment.model, to))
    if to == "transformers":
        hugging_face_files.write_folder(target, tensors, model_file)
    else:
        _write_original(target, tensors)
    return model_file


def _check_target(target: Path, to: Format) -> None:
    if to == "original" and target.suffix not in (".pth", ".pkl"):
        raise WeightsError(target, "must be a file that ends with .pth or .pkl for the original release")
    if to != "original" and (target.suffix in FOREIGN_FILES or target.is_file()):
        raise WeightsError(target, "must be a folder; for a file of the original release ask for that format")


def read_model(source: str | Path, licence: str) -> tuple[MaskClassifier, ModelFile]:
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


def import_original(
    tensors: Mapping[str, Tensor], path: Path, licence: str
) -> tuple[MaskClassifier, ModelFile]:
    """The model of a file of the original release, in old or new names, with or without version metadata.

    The file holds no pixel statistics: they are those of ImageNet, in RGB, as in all its configurations. The
    categories are those of the data set with this number of classes.

    Raises:
        WeightsError: see `convert`.
    """
    origin = origin_of(tensors, _ORIGINALS)
    ours, theirs = _rename(tensors, origin, path)
    config, num_classes = infer_model(ours, path)
    model_file = ModelFile(
        experiment=_experiment(config, num_classes),
        categories=_categories(num_classes, ()),
        licence=licence,
        provenance=f"converted from {path.name} (the original release)",
    )
    return _build(config, num_classes, ours, theirs, origin, path), model_file


def import_hugging_face(folder: Path, provenance: str, licence: str) -> tuple[MaskClassifier, ModelFile]:
    """The model of a folder of transformers.

    Raises:
        WeightsError: see `convert`.
    """
    said = hugging_face_files.read_description(folder)
    tensors = hugging_face_files.read_tensors(folder)
    origin = origin_of(tensors, _TRANSFORMERS)
    ours, theirs = _rename(tensors, origin, folder)
    config, num_classes = infer_model(ours, folder)
    config = _with_heads(config, said.heads, folder)
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


def _rename(
    tensors: Mapping[str, Tensor], origin: Origin, path: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights under our names, and under today's names of their side."""
    try:
        theirs = origin.with_current_names(tensors)
    except ValueError as error:
        raise WeightsError(path, f"holds a tensor twice: {error}") from None
    theirs = {
        key: tensor
        for key, tensor in theirs.items()
        if not any(re.fullmatch(expression, key) for expression in origin.not_weights)
    }
    renamed = to_ours(theirs, origin.rules)
    if not renamed.tensors:
        raise WeightsError(
            path, f"no name in it is one of a {origin.model} of {origin.title}", unexpected=renamed.unknown
        )
    return renamed.tensors, theirs


def _build(
    config: ModelConfig,
    num_classes: int,
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    origin: Origin,
    path: Path,
) -> MaskClassifier:
    """The model with these weights; a complaint uses the names of the file."""
    with torch.random.fork_rng(devices=[]):
        model = build_model(config, num_classes)
    wanted = to_theirs(model.state_dict(), origin.rules).tensors
    missing = tuple(key for key in wanted if key not in theirs)
    unexpected = tuple(key for key in theirs if key not in wanted)
    mismatched = tuple(
        f"{key} {tuple(theirs[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in theirs and theirs[key].shape != wanted[key].shape
    )
    if missing or unexpected or mismatched:
        raise WeightsError(
            path,
            f"does not fit the {origin.model} with {config.backbone.name} that its shapes suggest",
            missing=missing,
            unexpected=unexpected,
            mismatched=mismatched,
        )
    model.load_state_dict(dict(ours))
    return model.eval()


def _experiment(config: ModelConfig, num_classes: int) -> Experiment:
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
    if len(names) != num_classes:
        names = tuple(f"category {index + 1}" for index in range(num_classes))
    return Categories(
        names=names,
        is_thing=(True,) * num_classes,
        file_ids=tuple(range(1, num_classes + 1)),
        colors=tuple(default_color(index) for index in range(num_classes)),
    )


def export(model: MaskClassifier, model_file: ModelFile, origin: Origin) -> dict[str, Tensor]:
    """The tensors of the model under the names of `origin`, with the constants its files hold.

    Raises:
        WeightsError: the model has settings or tensors that `origin` does not know.
    """
    experiment = model_file.experiment
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
    if pixels.heads != decoder.heads:
        differing.append("the two decoders differ in heads")
    if origin is MASKFORMER_TRANSFORMERS and pixels.layers:
        differing.append(f"pixel_decoder.layers is {pixels.layers}")
    if origin.model == "MaskFormer" and origin.title == ORIGINAL.title and decoder.heads != HEADS:
        differing.append(f"query_decoder.heads is {decoder.heads}")
    return ", ".join(differing)


def _write_original(path: Path, tensors: Mapping[str, Tensor]) -> None:
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
                state._metadata = OrderedDict(original.VERSIONS)  # type: ignore[attr-defined]
                torch.save({"model": state}, file)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
