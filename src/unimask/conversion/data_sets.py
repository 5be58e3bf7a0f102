"""What the number of classes tells of foreign weights: the data set, its settings and its categories."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from unimask.config.images import AnyModelConfig, DetrConfig, EomtConfig, Experiment, ModelConfig
from unimask.data.category_tables import default_color, load_categories
from unimask.presets import detr, eomt, mask2former, maskformer
from unimask.structures import Categories

_TABLES: Mapping[int, str] = {
    133: "coco_panoptic",
    80: "coco_instance",
    150: "ade20k",
    19: "cityscapes",
    65: "mapillary_vistas",
    100: "ade20k_instance",
    8: "cityscapes_instance",
}
"""Number of classes -> table of categories."""

_DETR_TABLES: Mapping[int, str] = {91: "coco_instance", 250: "coco_panoptic"}
"""The same for DETR, whose labels are COCO's ids, which have holes."""

_MASK2FORMER: Mapping[int, Callable[[str], Experiment]] = {
    133: mask2former.coco,
    80: mask2former.coco,
    150: mask2former.ade20k_semantic,
    19: mask2former.cityscapes,
    65: mask2former.mapillary_vistas,
    100: mask2former.ade20k_panoptic,
    8: mask2former.cityscapes,
}
"""Number of classes -> settings of the data set."""

_MASKFORMER: Mapping[int, Callable[[str], Experiment]] = {
    150: maskformer.maskformer_ade20k_semantic,
    19: maskformer.maskformer_cityscapes,
    65: maskformer.maskformer_mapillary_vistas,
}


_EOMT: Mapping[int, Callable[[EomtConfig], Experiment]] = {
    150: eomt.ade20k_panoptic,
    19: eomt.cityscapes_semantic,
}
_EOMT_SEMANTIC_QUERIES = 100  # published models of ADE20K with more of them are panoptic


def settings_for(config: AnyModelConfig, num_classes: int) -> Experiment:
    """Return the settings of the data set that has this number of classes, with this model."""
    if isinstance(config, EomtConfig):
        if num_classes == 150 and config.queries <= _EOMT_SEMANTIC_QUERIES:
            return eomt.ade20k_semantic(config)
        return _EOMT.get(num_classes, eomt.coco)(config)
    return replace(_preset(config, num_classes)(config.backbone.name), model=config)


def _preset(config: ModelConfig | DetrConfig, num_classes: int) -> Callable[[str], Experiment]:
    if isinstance(config, DetrConfig):
        return detr.detr_panoptic if config.mask_head else detr.detr
    if config.pixel_decoder.kind == "deformable":
        return _MASK2FORMER.get(num_classes, lambda backbone: Experiment())
    if num_classes == 150 and config.pixel_decoder.layers:
        return maskformer.maskformer_ade20k_panoptic
    return _MASKFORMER.get(num_classes, maskformer.maskformer_coco)


def categories_for(config: AnyModelConfig, num_classes: int, names: tuple[str, ...]) -> Categories:
    """Return the table of the data set with this number of classes, unless most stated names differ from it.

    Names without a table are things: a model does not say what is stuff.
    """
    if isinstance(config, DetrConfig):
        if num_classes in _DETR_TABLES:
            return _by_file_id(load_categories(_DETR_TABLES[num_classes]), num_classes)
        return made_up_categories(num_classes, names if len(set(names)) == len(names) else ())
    if num_classes in _TABLES:
        table = load_categories(_TABLES[num_classes])
        same = sum(a.strip().lower() == b.lower() for a, b in zip(names, table.names, strict=False))
        if not names or 2 * same > num_classes:
            return table
    return made_up_categories(num_classes, names)


def _by_file_id(table: Categories, num_classes: int) -> Categories:
    """Return a table whose labels are the ids in the files; ids that are not used are categories too."""
    label_of = {file_id: label for label, file_id in enumerate(table.file_ids)}
    labels = [label_of.get(file_id, -1) for file_id in range(num_classes)]
    return Categories(
        names=tuple(table.names[p] if p >= 0 else f"unused {i}" for i, p in enumerate(labels)),
        is_thing=tuple(p < 0 or table.is_thing[p] for p in labels),
        file_ids=tuple(range(num_classes)),
        colors=tuple(table.colors[p] if p >= 0 else default_color(i) for i, p in enumerate(labels)),
    )


def made_up_categories(num_classes: int, names: tuple[str, ...]) -> Categories:
    """Return things with these names if there is one per class, else with numbered ones."""
    if len(names) != num_classes:
        names = tuple(f"category {index + 1}" for index in range(num_classes))
    return Categories(
        names=names,
        is_thing=(True,) * num_classes,
        file_ids=tuple(range(1, num_classes + 1)),
        colors=tuple(default_color(index) for index in range(num_classes)),
    )
