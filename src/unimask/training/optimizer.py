"""AdamW with the paper's parameter groups."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unimask.config.training import TrainingConfig
from unimask.errors import ConfigError
from unimask.models.eomt import Eomt
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
    rate: float  # what the learning rate is multiplied with
    decays: bool


def _trainable(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{module_name}.{name}".lstrip("."), module, parameter


def _rate(name: str, config: TrainingConfig, blocks: int, query_blocks: int) -> float:
    """Return what the learning rate of a parameter is multiplied with.

    In a Vision Transformer it falls from block to block, down from the last; what lies before the blocks
    learns as the first of them. The norm after them learns as the rest of the model, and so do the blocks
    with queries where the rate does not fall in them.

    Source: BEiT (2106.08254), Sec. 3.2; which blocks is only in the code of EoMT.
    """
    parts = name.split(".")
    if "backbone" not in parts[:2]:  # DETR with masks has a detector
        return 1.0
    if not blocks:
        return config.backbone_multiplier
    block = int(parts[2]) if parts[1] == "blocks" else 0
    if parts[1] == "norm" or (block >= blocks - query_blocks and not config.query_blocks_decay):
        return 1.0
    return config.backbone_multiplier * config.layer_decay ** (blocks - 1 - block)


def _decays(name: str, module: nn.Module) -> bool:
    return not (isinstance(module, (*_NORMS, nn.Embedding)) or name.rpartition(".")[2] in _EMBEDDINGS)


def parameter_groups(model: nn.Module, config: TrainingConfig) -> tuple[ParameterGroup, ...]:
    """Group all trainable parameters: by backbone or not, learning rate, and with weight decay or not.

    Norms do not decay, nor do embeddings: those of queries, of the query decoder's levels, of positions in
    Swin. Biases do, and so does the level embedding of the pixel decoder, as in the original. With
    `decay_everything` all of them do.

    Raises:
        ConfigError: the rate is to fall from block to block, and the backbone has no blocks.

    Source: Mask2Former, Sec. 4.1 (learning rate of the backbone); what decays is only in the original code.
    """
    blocks = len(model.backbone.blocks) if isinstance(model, Eomt) else 0
    query_blocks = blocks - model.first_query_block if isinstance(model, Eomt) else 0
    if config.layer_decay != 1 and not blocks:
        raise ConfigError("training.layer_decay", "is for a Vision Transformer (EoMT); take 1 for this model")
    parts: dict[tuple[bool, float, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, module, parameter in _trainable(model):
        rate = _rate(name, config, blocks, query_blocks)
        decays = config.decay_everything or _decays(name, module)
        parts.setdefault(("backbone" in name.split(".")[:2], rate, decays), []).append((name, parameter))
    return tuple(
        ParameterGroup(
            names=tuple(name for name, _ in members),
            parameters=tuple(parameter for _, parameter in members),
            in_backbone=in_backbone,
            rate=rate,
            decays=decays,
        )
        for (in_backbone, rate, decays), members in sorted(parts.items())
    )


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """Return AdamW over all trainable parameters; each group keeps its full rate under `full_rate`."""
    groups = []
    for group in parameter_groups(model, config):
        rate = config.learning_rate * group.rate
        groups.append(
            {
                "params": list(group.parameters),
                "lr": rate,
                "full_rate": rate,
                "in_backbone": group.in_backbone,
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
    """Set the rates of all groups for step `step` (counted from 0); return that outside of the backbone."""
    factors = {part: learning_rate_factor(step, config, in_backbone=part) for part in (False, True)}
    for group in optimizer.param_groups:
        group["lr"] = group["full_rate"] * factors[group["in_backbone"]]
    return config.learning_rate * factors[False]


def parameters_of(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """Return all parameters that the optimiser updates."""
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
