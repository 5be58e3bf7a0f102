"""A model that needs less memory: what depends on one token alone runs for a few tokens at a time."""

from functools import partial

from torch import nn

from unimask.models.eomt import Eomt
from unimask.nn.transformer import EncoderLayer, FeedForward
from unimask.nn.vit import Block
from unimask.ops.parts import recomputed, recomputed_between_products, token_by_token


def spare_memory(model: nn.Module) -> None:
    """Change how layers of the model run, not what they compute: for the CPU.

    A few tokens at a time go through a feed-forward, so what lies between stays in the cache. In training it
    is not kept for the backward pass but computed again, and so is the attention over very many tokens. Of a
    block of a Vision Transformer, and of the masks of an EoMT, only products are kept.
    """
    of_blocks = {module.feedforward for module in model.modules() if isinstance(module, Block)}
    for module in model.modules():
        if isinstance(module, EncoderLayer):
            module.attend = partial(recomputed, module.attend)  # type: ignore[method-assign]
            module.feed = partial(token_by_token, module.feed)  # type: ignore[method-assign]
        elif isinstance(module, Block):
            module.forward = partial(recomputed_between_products, module.forward)  # type: ignore[method-assign]
        elif isinstance(module, Eomt):
            module.masks = partial(recomputed_between_products, module.masks)  # type: ignore[method-assign]
        elif isinstance(module, FeedForward) and module not in of_blocks:
            module.forward = partial(token_by_token, module.forward)  # type: ignore[method-assign]
