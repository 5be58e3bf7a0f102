"""Rename rules between two naming schemes, usable in both directions.

A rule is a pair of patterns. `{block}` and every other name in braces stands for a number, `{parameter}` for
the last part of a key (weight, bias, ...). Where one side keeps in one tensor what the other keeps in
several, the rule lists the several: they are joined along the first dimension.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

_PARAMETERS = "weight|bias|running_mean|running_var|num_batches_tracked"


@dataclass(frozen=True)
class Rule:
    """`ours` and `theirs` name the same numbers; one of the two may be several keys.

    With `ours_batched` our tensor has a first dimension of 1, for the batch, which theirs lacks.
    """

    ours: str | tuple[str, ...]
    theirs: str | tuple[str, ...]
    ours_batched: bool = False

    @property
    def our_patterns(self) -> tuple[str, ...]:
        """Our keys as a tuple, also where it is one."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    @property
    def their_patterns(self) -> tuple[str, ...]:
        """Their keys as a tuple, also where it is one."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs


@dataclass(frozen=True, kw_only=True)
class Renamed:
    """Tensors under the names of the other side, and the keys without a rule or without a partner."""

    tensors: dict[str, Tensor]
    unknown: tuple[str, ...]


def prefixed(rules: Sequence[Rule], prefix: str) -> tuple[Rule, ...]:
    """Return the rules for a module that lies under `prefix` on both sides."""

    def under(patterns: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return prefix + patterns if isinstance(patterns, str) else tuple(prefix + one for one in patterns)

    return tuple(replace(rule, ours=under(rule.ours), theirs=under(rule.theirs)) for rule in rules)


@cache
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a pattern; its groups are the names in braces."""
    parts = re.split(r"\{(\w+)\}", pattern)
    expression = re.escape(parts[0])
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        content = _PARAMETERS if name == "parameter" else r"\d+"
        expression += f"(?P<{name}>{content})" + re.escape(text)
    return re.compile(expression)


def to_ours(tensors: Mapping[str, Tensor], rules: Sequence[Rule]) -> Renamed:
    """Return tensors with their names under our names."""
    return _rename(
        tensors,
        [
            (rule.their_patterns, rule.our_patterns, _batched if rule.ours_batched else _as_it_is)
            for rule in rules
        ],
    )


def to_theirs(tensors: Mapping[str, Tensor], rules: Sequence[Rule]) -> Renamed:
    """Return tensors with our names under their names: the inverse of `to_ours`."""
    return _rename(
        tensors,
        [
            (rule.our_patterns, rule.their_patterns, _unbatched if rule.ours_batched else _as_it_is)
            for rule in rules
        ],
    )


def substitute(keys: Sequence[str], aliases: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return key -> current name, for keys of which a part was renamed.

    `aliases` are pairs of a regular expression and its replacement, applied in turn.

    Raises:
        ValueError: two keys become one; the message names them.
    """
    names: dict[str, str] = {}
    for key in keys:
        name = key
        for expression, replacement in aliases:
            name = re.sub(expression, replacement, name)
        if name in names.values():
            other = next(first for first, taken in names.items() if taken == name)
            raise ValueError(f"{other} and {key} both mean {name}")
        names[key] = name
    return names


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _batched(tensor: Tensor) -> Tensor:
    return tensor[None]


def _unbatched(tensor: Tensor) -> Tensor:
    return tensor[0]


def _rename(
    tensors: Mapping[str, Tensor],
    pairs: list[tuple[tuple[str, ...], tuple[str, ...], Callable[[Tensor], Tensor]]],
) -> Renamed:
    renamed: dict[str, Tensor] = {}
    used: set[str] = set()
    for key in tensors:
        for sources, targets, shaped in pairs:
            match = compile_pattern(sources[0]).fullmatch(key)
            parts = [source.format(**match.groupdict()) for source in sources] if match else []
            if match and all(part in tensors for part in parts):
                names = [target.format(**match.groupdict()) for target in targets]
                regrouped = _regroup([shaped(tensors[part]) for part in parts], len(names))
                renamed.update(zip(names, regrouped, strict=True))
                used.update(parts)
                break
    return Renamed(tensors=renamed, unknown=tuple(key for key in tensors if key not in used))


def _regroup(parts: list[Tensor], count: int) -> list[Tensor]:
    """Return the same rows in `count` tensors of equal height."""
    if len(parts) == count:
        return parts
    whole = torch.cat(parts) if len(parts) > 1 else parts[0]
    return [chunk.contiguous() for chunk in whole.tensor_split(count)]
