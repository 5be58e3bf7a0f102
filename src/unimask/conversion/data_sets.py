"""The data set of foreign weights, inferred from the number of classes: its settings and categories."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from unimask.config.images import Experiment
from unimask.config.models import AnyModelConfig, DetrConfig, EomtConfig, ModelConfig
from unimask.data.category_tables import default_color, load_categories
from unimask.errors import ConfigError, choices, some_of
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


@dataclass(frozen=True, kw_only=True)
class ForeignCategories:
    """The categories of foreign weights, and what had to be assumed of them (a sentence; "" for nothing)."""

    categories: Categories
    assumed: str


def categories_for(config: AnyModelConfig, num_classes: int, names: tuple[str, ...]) -> ForeignCategories:
    """Return the categories of foreign weights. Stated `names` are kept ("" for a label without one).

    The other fields of a category (a thing or stuff, its number and color) are those of the category of this
    name and label in the data set with this number of classes. Without one it is a thing: a model does not
    say what is stuff.
    """
    table, title = _table_for(config, num_classes)
    if not names:
        if table is None:
            return ForeignCategories(categories=made_up_categories(num_classes), assumed="")
        reason = f"the names of the categories are not stated; they are those of {title}, which has as many"
        return ForeignCategories(categories=table, assumed=reason)
    made_up = made_up_categories(num_classes)
    known = table if table and 2 * sum(map(_same, names, table.names)) > _count(names) else made_up
    same = [not name or _same(name, other) for name, other in zip(names, known.names, strict=True)]
    foreign = [name for name, is_known in zip(names, same, strict=True) if not is_known]
    assumed = (
        f"counted as things, as what is stuff is not stated: {some_of(foreign, 5)}; name stuff with --stuff"
    )
    categories = Categories(
        names=tuple(name or other for name, other in zip(names, known.names, strict=True)),
        is_thing=tuple(thing or not at for thing, at in zip(known.is_thing, same, strict=True)),
        file_ids=known.file_ids,
        colors=known.colors,
    )
    return ForeignCategories(categories=categories, assumed=assumed if foreign else "")


def with_stuff(categories: Categories, stuff: Sequence[str]) -> Categories:
    """Return the categories with exactly these as stuff, by name; each word may be several, with commas.

    Raises:
        ConfigError: there is no category of a name.
    """
    given = [part for word in stuff for part in ([word] if word in categories.names else word.split(","))]
    wanted = {part.strip() for part in given} - {""}
    unknown = sorted(wanted - set(categories.names))
    if unknown:
        there_are = choices(unknown[0], categories.names, 200)
        reason = f"no category is called {some_of(map(repr, unknown))}; {there_are}"
        raise ConfigError("stuff", reason)
    return replace(categories, is_thing=tuple(name not in wanted for name in categories.names))


def _table_for(config: AnyModelConfig, num_classes: int) -> tuple[Categories | None, str]:
    """Return the table of the data set with this number of classes, and its name; None if there is none."""
    tables = _DETR_TABLES if isinstance(config, DetrConfig) else _TABLES
    if num_classes not in tables:
        return None, ""
    title = tables[num_classes]
    table = load_categories(title)
    return (_by_file_id(table, num_classes) if isinstance(config, DetrConfig) else table), title


def _count(names: tuple[str, ...]) -> int:
    return sum(1 for name in names if name)


def _same(name: str, other: str) -> bool:
    """Return whether two names mean one category: up to case and signs, or in the first of their synonyms."""
    words = [re.sub(r"[^a-z0-9,]", "", text.lower()) for text in (name, other)]
    first, second = (text.split(",")[0] for text in words)
    return bool(name) and (words[0] == words[1] or first == second)


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


def made_up_categories(num_classes: int, names: tuple[str, ...] = ()) -> Categories:
    """Return things with these names, or numbered ones."""
    return Categories(
        names=names or tuple(f"category {index + 1}" for index in range(num_classes)),
        is_thing=(True,) * num_classes,
        file_ids=tuple(range(1, num_classes + 1)),
        colors=tuple(default_color(index) for index in range(num_classes)),
    )
