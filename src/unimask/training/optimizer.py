"""AdamW with the paper's parameter groups."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unimask.config.images import TrainingConfig
from unimask.training.schedule import learning_rate_factor

_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.modules.instancenorm._InstanceNorm,
)
# Embeddings of positions that are plain parameters, by the last part of their name (ours, then timm's).
_EMBEDDINGS = frozenset({"position_bias", "relative_position_bias_table", "absolute_pos_embed", "pos_embed"})


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that share their hyperparameters; `names` are those of the model's state dict."""

    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    in_backbone: bool
    decays: bool


def _trainable(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{module_name}.{name}".lstrip("."), module, parameter


def _decays(name: str, module: nn.Module) -> bool:
    return not (isinstance(module, (*_NORMS, nn.Embedding)) or name.rpartition(".")[2] in _EMBEDDINGS)


def parameter_groups(model: nn.Module) -> tuple[ParameterGroup, ...]:
    """Every trainable parameter in one of four groups: in the backbone or not, with weight decay or not.

    Norms do not decay, nor do embeddings: those of queries, of the query decoder's levels, of positions in
    Swin. Biases do, and so does the level embedding of the pixel decoder, as in the original.

    Source: Mask2Former, Sec. 4.1 (learning rate of the backbone); what decays is only in the original code.
    """
    parts: dict[tuple[bool, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, module, parameter in _trainable(model):
        key = ("backbone" in name.split(".")[:2], _decays(name, module))  # DETR with masks has a detector
        parts.setdefault(key, []).append((name, parameter))
    return tuple(
        ParameterGroup(
            names=tuple(name for name, _ in members),
            parameters=tuple(parameter for _, parameter in members),
            in_backbone=in_backbone,
            decays=decays,
        )
        for (in_backbone, decays), members in sorted(parts.items())
    )


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over all trainable parameters; each group keeps its full rate under `full_rate`."""
    groups = []
    for group in parameter_groups(model):
        rate = config.learning_rate * (config.backbone_multiplier if group.in_backbone else 1.0)
        groups.append(
            {
                "params": list(group.parameters),
                "lr": rate,
                "full_rate": rate,
                "weight_decay": config.weight_decay if group.decays else 0.0,
            }
        )
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, config: TrainingConfig) -> float:
    """The rate outside of the backbone in step `step` (counted from 0); sets the rates of all groups."""
    factor = learning_rate_factor(step, config)
    for group in optimizer.param_groups:
        group["lr"] = group["full_rate"] * factor
    return config.learning_rate * factor


def parameters_of(optimizer: torch.optim.Optimizer) -> Iterable[Tensor]:
    """All parameters that the optimiser moves."""
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
