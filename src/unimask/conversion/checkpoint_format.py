"""The type of a checkpoint format: how a release names the tensors of a kind of model, in both directions."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from unimask.checkpoints.images import ModelFile
from unimask.checkpoints.tensors import check_fit
from unimask.config.images import Experiment
from unimask.config.models import AnyModelConfig, ModelConfig
from unimask.config.values import settings_to_dict
from unimask.conversion.architecture import Stated
from unimask.conversion.rules import Rule, substitute, to_ours, to_theirs
from unimask.errors import ConfigError, WeightsError, first_line, is_out_of_memory
from unimask.models.build import Model, build_model

COUNTER = ".num_batches_tracked"  # of the batches that a norm has learned from; frozen norms have none
Infer = Callable[[Mapping[str, Tensor], Stated, Path], tuple[AnyModelConfig, int]]
Constants = Callable[[Mapping[str, Tensor], Experiment], dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class CheckpointFormat:
    """How a release names the tensors of a kind of model, and what else is in its files."""

    title: str  # of the release
    model: str  # the kind of model
    rules: tuple[Rule, ...]  # the table of names
    aliases: tuple[tuple[str, str], ...]  # other names of the same tensors -> those in `rules`
    not_weights: str  # matches keys without influence on a prediction (regular expression)
    infer: Infer  # tensors under our names -> the model and its number of classes
    constants: Constants  # exported tensors, settings -> what a file holds besides
    usual: AnyModelConfig  # with the values of `fixed` that the release has
    fixed: tuple[str, ...]  # settings of the model that leave no trace in names and shapes
    versions: Mapping[str, Mapping[str, int]]  # of modules, in the metadata of a state dict

    def current_names(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors under the names in `rules`.

        Raises:
            ValueError: two keys mean the same tensor.
        """
        return {name: tensors[key] for key, name in substitute(list(tensors), self.aliases).items()}

    def read(
        self, tensors: Mapping[str, Tensor], stated: Stated, path: Path
    ) -> tuple[Model, AnyModelConfig, int]:
        """Return a file's model in eval mode, its settings and its number of classes.

        Raises:
            WeightsError: the file holds a tensor twice, or keys are unknown, missing or of a wrong shape; the
                message uses the names in the file.
        """
        try:
            return self._read(tensors, stated, path)
        except (ConfigError, ValueError, IndexError, ZeroDivisionError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            reason = f"its tensors have shapes that no {self.model} has ({first_line(error)})"
            raise WeightsError(path, f"{reason}; download or save it again") from None

    def _read(
        self, tensors: Mapping[str, Tensor], stated: Stated, path: Path
    ) -> tuple[Model, AnyModelConfig, int]:
        try:
            theirs = self.current_names(tensors)
        except ValueError as error:
            raise WeightsError(path, f"holds a tensor twice: {error}") from None
        theirs = {key: tensor for key, tensor in theirs.items() if not re.fullmatch(self.not_weights, key)}
        if stated.idle_norms_are_frozen and are_idle(theirs):
            theirs = {key: tensor for key, tensor in theirs.items() if not key.endswith(COUNTER)}
        renamed = to_ours(theirs, self.rules)
        if not renamed.tensors:
            reason = f"no name in it is one of a {self.model} of {self.title}"
            raise WeightsError(path, reason, unexpected=renamed.unknown)
        try:
            config, num_classes = self.infer(renamed.tensors, stated, path)
        except KeyError as error:
            reason = f"these are not the weights of a {self.model}"
            raise WeightsError(path, reason, missing=(error.args[0],)) from None
        with torch.random.fork_rng(devices=[]):
            model = build_model(config, num_classes)
        wanted = to_theirs(model.state_dict(), self.rules).tensors
        reason = f"does not fit the {self.model} with {config.backbone.name} that its shapes suggest"
        check_fit(path, reason, wanted=wanted, found=theirs)
        model.load_state_dict(renamed.tensors)
        return model.eval(), config, num_classes

    def write(self, model: Model, model_file: ModelFile) -> dict[str, Tensor]:
        """Return the tensors of a model under the names in `rules`, with the constants of a file.

        Raises:
            WeightsError: the model has settings or tensors that the release does not have.
        """
        experiment = model_file.experiment
        name = experiment.model.backbone.name
        differing = self._differing(experiment.model)
        if differing:
            raise WeightsError(name, f"{self.title} has no such model: {', '.join(differing)}")
        renamed = to_theirs(model.state_dict(), self.rules)
        if renamed.unknown:
            reason = f"{self.title} has no counterpart, only of ResNet and Swin"
            raise WeightsError(name, reason, unexpected=renamed.unknown)
        return renamed.tensors | self.constants(renamed.tensors, experiment)

    def _differing(self, model: AnyModelConfig) -> list[str]:
        given, usual = settings_to_dict(model), settings_to_dict(self.usual)
        found = [
            f"{path} is {_value(given, path)!r}"
            for path in self.fixed
            if _value(given, path) != _value(usual, path)
        ]
        if isinstance(model, ModelConfig) and model.pixel_decoder.heads != model.query_decoder.heads:
            found.append("the two decoders differ in heads")
        return found


def _value(settings: object, path: str) -> object:
    return reduce(lambda values, name: values[name], path.split("."), settings)  # type: ignore[index]


def are_idle(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether batch norms have counters, and none of them has counted a batch: they never learned."""
    counters = [tensor for key, tensor in tensors.items() if key.endswith(COUNTER)]
    return bool(counters) and not any(bool(counter.any()) for counter in counters)


def no_constants(tensors: Mapping[str, Tensor], experiment: Experiment) -> dict[str, Tensor]:
    """Return nothing: the files hold weights only."""
    return {}


def class_weights(bias: Tensor, no_object_weight: float) -> dict[str, Tensor]:
    """Return the weights of the classes in the loss; the original and transformers store them."""
    weights = torch.ones_like(bias)
    weights[-1] = no_object_weight
    return {"criterion.empty_weight": weights}


def relative_positions(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the index that lies beside each table of a Swin's position biases."""
    table = ".relative_position_bias_table"
    return {
        f"{key.removesuffix(table)}.relative_position_index": relative_position_index(len(tensor)).to(
            tensor.device
        )
        for key, tensor in tensors.items()
        if key.endswith(table)
    }


def relative_position_index(rows: int) -> Tensor:
    """Return the row of the bias table for each pair of tokens of a Swin window.

    The table has (2 window - 1)^2 rows.
    """
    window = (round(rows**0.5) + 1) // 2
    places = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    steps = places[:, None] - places[None] + window - 1
    return steps[..., 0] * (2 * window - 1) + steps[..., 1]
