"""Run functions on parts of their inputs that fit the processor's cache: faster, and with less memory."""

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
"""How many tokens are computed at a time: few enough that a feed-forward's hidden layer fits the cache."""

VERY_MANY_TOKENS = 4096
"""From this many tokens per image on, the backward pass computes attention again, to save memory."""

WINDOW_TOKENS_AT_ONCE = 4096
"""How many tokens of attention windows are computed at a time."""


def token_by_token(
    function: Callable[[Tensor], Tensor], tokens: Float[Tensor, "batch tokens channels"]
) -> Float[Tensor, "batch tokens others"]:
    """Return `function(tokens)`, computed for a few tokens at a time; no token may depend on another.

    Intermediate results are not kept for the backward pass, which computes them again.
    """
    if tokens.shape[0] * tokens.shape[1] <= TOKENS_AT_ONCE:
        return function(tokens)
    step = partial(checkpoint, function, use_reentrant=False) if torch.is_grad_enabled() else function
    parts = [step(part) for part in tokens.flatten(0, 1)[None].split(TOKENS_AT_ONCE, dim=1)]
    return torch.cat(parts, dim=1).view(*tokens.shape[:2], -1)


def token_over_token(
    function: Callable[..., Tensor], tokens: Float[Tensor, "batch tokens channels"], *others: Tensor
) -> Float[Tensor, "batch tokens channels"]:
    """Return `function(tokens, *others)`, computed for a few tokens at a time; may modify `tokens` in place.

    No token may depend on another. Tokens are the second dimension of the `others`, too. Not differentiable.
    """
    at_once = max(1, TOKENS_AT_ONCE // max(1, tokens.shape[0]))
    result = tokens
    for start in range(0, tokens.shape[1], at_once):
        some = slice(start, start + at_once)
        found = function(*(tensor[:, some] for tensor in (tokens, *others)))
        if found.dtype != result.dtype:  # at the first tokens, in mixed precision
            result = tokens.to(found.dtype)
        result[:, some] = found
    return result


def recomputed(
    function: Callable[..., Tensor], tokens: Float[Tensor, "batch tokens channels"], *others: object
) -> Tensor:
    """Return `function(tokens, *others)`.

    From `VERY_MANY_TOKENS` on, only the inputs are kept for the backward pass, which computes the rest again.
    """
    if not torch.is_grad_enabled() or tokens.shape[1] < VERY_MANY_TOKENS:
        return function(tokens, *others)
    result: Tensor = checkpoint(function, tokens, *others, use_reentrant=False)
    return result


_PRODUCTS = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    private_operator("aten::_scaled_dot_product_flash_attention_for_cpu"),
]
"""The operators that take long compared with the memory of their result."""


def recomputed_between_products(function: Callable[..., Result], *inputs: object) -> Result:
    """Return `function(*inputs)`; of intermediate results, only matrix products and attention are kept.

    The backward pass computes norms, activations and depthwise convolutions again: they take little time, but
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

    `biases` holds one bias for all windows or one per window.
    """
    at_once = max(1, WINDOW_TOKENS_AT_ONCE // (windows.shape[0] * windows.shape[2]))
    if windows.shape[1] <= at_once:
        return function(windows, biases)
    parts = windows.split(at_once, dim=1)
    bias_of_part = biases.split(at_once) if len(biases) > 1 else (biases,) * len(parts)
    return torch.cat([function(*part) for part in zip(parts, bias_of_part, strict=True)], dim=1)
