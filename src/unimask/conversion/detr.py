"""DETR's weights of other releases become our models, and the other way round."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from unimask.checkpoints.images import ModelFile
from unimask.config.images import BackboneConfig, DetrConfig, Experiment
from unimask.conversion import hugging_face_detr, hugging_face_files, original_detr
from unimask.conversion.architecture import count_keys, infer_backbone
from unimask.conversion.origin import Origin, build_from, made_up_categories, rename
from unimask.data.category_tables import load_categories
from unimask.data.formats.coco_file import default_color
from unimask.errors import WeightsError
from unimask.models.build import Model, build_model
from unimask.presets import detr as detr_presets
from unimask.structures import Categories

ORIGINAL = Origin(
    title="the original release",
    model="DETR",
    rules=original_detr.RULES,
    not_weights=original_detr.NOT_WEIGHTS,
    with_current_names=original_detr.with_current_names,
    constants=original_detr.constants,
    versions={},
)
TRANSFORMERS = Origin(
    title="Hugging Face transformers",
    model="DETR",
    rules=hugging_face_detr.RULES,
    not_weights=hugging_face_detr.NOT_WEIGHTS,
    with_current_names=hugging_face_detr.with_current_names,
    constants=hugging_face_detr.constants,
    versions={},
)

COCO_CLASSES = 91  # of the detectors: labels are COCO's ids, which have holes
COCO_PANOPTIC_CLASSES = 250  # of the panoptic models, likewise
HEADS = 8  # of every published model; without a mask head they leave no trace


def knows(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file of the original release holds a DETR."""
    return any(re.search(r"(^|\.)bbox_embed\.layers\.0\.weight$", key) for key in tensors)


def import_original(tensors: Mapping[str, Tensor], path: Path, licence: str) -> tuple[Model, ModelFile]:
    """The model of a file of the original release.

    A dilated last stage leaves no trace in the tensors; a file whose name holds `dc5` has one.

    Raises:
        WeightsError: it is no DETR with a ResNet, or its tensors do not fit each other.
    """
    ours, theirs = rename(tensors, ORIGINAL, path)
    config, num_classes = _infer(ours, path, heads=HEADS, dilated="dc5" in path.name.lower(), backbone="")
    model_file = ModelFile(
        experiment=_experiment(config),
        categories=_categories(num_classes, ()),
        licence=licence,
        provenance=f"converted from {path.name} (the original release)",
    )
    return _build(config, num_classes, ours, theirs, ORIGINAL, path), model_file


def import_hugging_face(folder: Path, provenance: str, licence: str) -> tuple[Model, ModelFile]:
    """The model of a folder of transformers.

    Raises:
        WeightsError: as for `import_original`, or its configuration asks for what our model does not have.
    """
    path = folder / "config.json"
    said = hugging_face_files.read_description(folder, hugging_face_detr.check)
    architecture = hugging_face_detr.architecture_of(path, hugging_face_files.read_json(path))
    ours, theirs = rename(hugging_face_files.read_tensors(folder), TRANSFORMERS, folder)
    config, num_classes = _infer(
        ours, folder, heads=architecture.heads, dilated=architecture.dilated, backbone=architecture.backbone
    )
    backbone = replace(
        config.backbone,
        image_mean=said.image_mean or config.backbone.image_mean,
        image_std=said.image_std or config.backbone.image_std,
    )
    experiment = _experiment(replace(config, backbone=backbone, dropout=architecture.dropout))
    if said.resize:
        experiment = replace(experiment, data=replace(experiment.data, resize=said.resize))
    model_file = ModelFile(
        experiment=experiment,
        categories=_categories(num_classes, said.names),
        licence=licence,
        provenance=provenance,
    )
    assert isinstance(experiment.model, DetrConfig)
    return _build(experiment.model, num_classes, ours, theirs, TRANSFORMERS, folder), model_file


def _build(
    config: DetrConfig,
    num_classes: int,
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    origin: Origin,
    path: Path,
) -> Model:
    return build_from(
        lambda: build_model(config, num_classes), ours, theirs, origin, path, config.backbone.name
    )


def _infer(
    tensors: Mapping[str, Tensor], path: Path, *, heads: int, dilated: bool, backbone: str
) -> tuple[DetrConfig, int]:
    """The model that tensors with our names are of, and its classes; "": the backbone is told too."""
    mask_head = any(key.startswith("pyramid.") for key in tensors)
    if mask_head:
        tensors = {**tensors, **{key.removeprefix("detr."): tensor for key, tensor in tensors.items()}}
    try:
        queries, channels = tensors["query_decoder.query_positions.weight"].shape
        feedforward = tensors["query_decoder.layers.0.feedforward.update.expand.weight"].shape[0]
        if mask_head:
            heads = tensors["pyramid.convolutions.0.weight"].shape[0] - channels
        told = BackboneConfig(name=backbone) if backbone else infer_backbone(tensors, path)
        config = DetrConfig(
            backbone=replace(told, freeze_norm=True, dilated=dilated),
            channels=channels,
            heads=heads,
            feedforward_channels=feedforward,
            encoder_layers=count_keys(tensors, r"encoder\.layers\.(\d+)\.attention\.attention\.input_weight"),
            decoder_layers=count_keys(
                tensors, r"query_decoder\.layers\.(\d+)\.cross\.attention\.input_weight"
            ),
            queries=queries,
            mask_head=mask_head,
        )
        return config, tensors["query_decoder.heads.classes.weight"].shape[0] - 1
    except KeyError as error:
        raise WeightsError(path, "these are not the weights of a DETR", missing=(error.args[0],)) from None


def _experiment(config: DetrConfig) -> Experiment:
    preset = detr_presets.detr_panoptic if config.mask_head else detr_presets.detr
    return replace(preset(config.backbone.name), model=config)


def _categories(num_classes: int, names: tuple[str, ...]) -> Categories:
    """COCO's, where the label is the id in its files; ids that COCO does not use are categories too."""
    tables = {COCO_CLASSES: "coco_instance", COCO_PANOPTIC_CLASSES: "coco_panoptic"}
    if num_classes not in tables:
        return made_up_categories(num_classes, names if len(set(names)) == len(names) else ())
    table = load_categories(tables[num_classes])
    label_of = {file_id: label for label, file_id in enumerate(table.file_ids)}
    places = [label_of.get(file_id, -1) for file_id in range(num_classes)]
    return Categories(
        names=tuple(table.names[p] if p >= 0 else f"unused {i}" for i, p in enumerate(places)),
        is_thing=tuple(table.is_thing[p] if p >= 0 else True for p in places),
        file_ids=tuple(range(num_classes)),
        colors=tuple(table.colors[p] if p >= 0 else default_color(i) for i, p in enumerate(places)),
    )
