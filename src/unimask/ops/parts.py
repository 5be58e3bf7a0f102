"""Work in parts that fit the cache of a processor: less memory is allocated, and access is faster."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from unimask.ops.private import private_operator

Result = TypeVar("Result")

TOKENS_AT_ONCE = 1024
"""So many tokens of a feed-forward's hidden width fit into the cache."""

VERY_MANY_TOKENS = 4096
"""From so many tokens of an image on, memory is worth more than the time to compute attention twice."""

WINDOW_TOKENS_AT_ONCE = 4096
"""Tokens of windows whose attention is computed at a time."""


def token_by_token(
    function: Callable[[Tensor], Tensor], tokens: Float[Tensor, "batch tokens channels"]
) -> Float[Tensor, "batch tokens others"]:
    """Return `function(tokens)`, where no token depends on another, computed for a few tokens at a time.

    What lies between input and output is not kept for the backward pass, which computes it again.
    """
    if tokens.shape[0] * tokens.shape[1] <= TOKENS_AT_ONCE:
        return function(tokens)
    step = partial(checkpoint, function, use_reentrant=False) if torch.is_grad_enabled() else function
    parts = [step(part) for part in tokens.flatten(0, 1)[None].split(TOKENS_AT_ONCE, dim=1)]
    return torch.cat(parts, dim=1).view(*tokens.shape[:2], -1)


def token_over_token(
    function: Callable[..., Tensor], tokens: Float[Tensor, "batch tokens channels"], *others: Tensor
) -> Float[Tensor, "batch tokens channels"]:
    """As `token_by_token`, but the result may be written over `tokens`. Not differentiable.

    The `others`, which the function takes too, have the tokens in their second dimension.
    """
    at_once = max(1, TOKENS_AT_ONCE // max(1, tokens.shape[0]))
    result = tokens
    for start in range(0, tokens.shape[1], at_once):
        some = slice(start, start + at_once)
        found = function(*(tensor[:, some] for tensor in (tokens, *others)))
        if found.dtype != result.dtype:  # of the first ones, in mixed precision
            result = tokens.to(found.dtype)
        result[:, some] = found
    return result


def recomputed(
    function: Callable[..., Tensor], tokens: Float[Tensor, "batch tokens channels"], *others: object
) -> Tensor:
    """Return `function(tokens, *others)`; of very many tokens the backward pass keeps only the inputs."""
    if not torch.is_grad_enabled() or tokens.shape[1] < VERY_MANY_TOKENS:
        return function(tokens, *others)
    result: Tensor = checkpoint(function, tokens, *others, use_reentrant=False)
    return result


_PRODUCTS = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    private_operator("aten::_scaled_dot_product_flash_attention_for_cpu"),
]
"""What takes long compared with the memory of its result."""


def recomputed_between_products(function: Callable[..., Result], *inputs: object) -> Result:
    """Return `function(*inputs)`; of what lies between, only matrix products and attention are kept.

    The backward pass computes norms, activations and depthwise convolutions again: they take little time, and
    as much memory as the products.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    products = [product for product in _PRODUCTS if product is not None]
    kept = partial(create_selective_checkpoint_contexts, products)
    result: Result = checkpoint(function, *inputs, use_reentrant=False, context_fn=kept)
    return result


def window_by_window(
    function: Callable[[Tensor, Tensor], Tensor],
    windows: Float[Tensor, "batch windows tokens channels"],
    biases: Float[Tensor, "groups tokens tokens"],
) -> Float[Tensor, "batch windows tokens channels"]:
    """Return `function(windows, biases)`, computed for a few windows at a time.

    There is one bias for all windows, or one for each.
    """
    at_once = max(1, WINDOW_TOKENS_AT_ONCE // (windows.shape[0] * windows.shape[2]))
    if windows.shape[1] <= at_once:
        return function(windows, biases)
    parts = windows.split(at_once, dim=1)
    bias_of_part = biases.split(at_once) if len(biases) > 1 else (biases,) * len(parts)
    return torch.cat([function(*part) for part in zip(parts, bias_of_part, strict=True)], dim=1)
