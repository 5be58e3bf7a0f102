"""How others name their tensors, and a model of ours from what lies in their files."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from unimask.conversion.rules import Rule, to_ours, to_theirs
from unimask.data.formats.coco_file import default_color
from unimask.errors import WeightsError
from unimask.models.build import Model
from unimask.structures import Categories


@dataclass(frozen=True, kw_only=True)
class Origin:
    """How others name the tensors of a kind of model."""

    title: str  # whose names they are
    model: str  # of which model
    rules: tuple[Rule, ...]
    not_weights: tuple[str, ...]  # keys of a file that hold nothing learned, as regular expressions
    with_current_names: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    constants: Callable[[Mapping[str, Tensor], float], dict[str, Tensor]]
    versions: Mapping[str, Mapping[str, int]]  # of modules: what a state dict of theirs says besides


def rename(
    tensors: Mapping[str, Tensor], origin: Origin, path: object
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights under our names, and under today's names of their side.

    Raises:
        WeightsError: the file holds a tensor twice, or no name that `origin` knows.
    """
    try:
        theirs = origin.with_current_names(tensors)
    except ValueError as error:
        raise WeightsError(str(path), f"holds a tensor twice: {error}") from None
    theirs = {
        key: tensor
        for key, tensor in theirs.items()
        if not any(re.fullmatch(expression, key) for expression in origin.not_weights)
    }
    renamed = to_ours(theirs, origin.rules)
    if not renamed.tensors:
        raise WeightsError(
            str(path),
            f"no name in it is one of a {origin.model} of {origin.title}",
            unexpected=renamed.unknown,
        )
    return renamed.tensors, theirs


def build_from(
    build: Callable[[], Model],
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    origin: Origin,
    path: object,
    backbone: str,
) -> Model:
    """The model that `build` makes, with these weights, in eval mode; a complaint uses the names of the file.

    Raises:
        WeightsError: keys are missing, unexpected or of another shape.
    """
    with torch.random.fork_rng(devices=[]):
        model = build()
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
            str(path),
            f"does not fit the {origin.model} with {backbone} that its shapes suggest",
            missing=missing,
            unexpected=unexpected,
            mismatched=mismatched,
        )
    model.load_state_dict(dict(ours))
    return model.eval()


def made_up_categories(num_classes: int, names: tuple[str, ...]) -> Categories:
    """Things with these names, where there are as many, else numbered ones: a model alone says no more."""
    if len(names) != num_classes:
        names = tuple(f"category {index + 1}" for index in range(num_classes))
    return Categories(
        names=names,
        is_thing=(True,) * num_classes,
        file_ids=tuple(range(1, num_classes + 1)),
        colors=tuple(default_color(index) for index in range(num_classes)),
    )
