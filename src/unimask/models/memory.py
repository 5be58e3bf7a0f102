"""Makes a model use less memory: token-wise layers run for a few tokens at a time, or are recomputed."""

from functools import partial

from torch import nn

from unimask.models.eomt import Eomt
from unimask.nn.transformer import EncoderLayer, FeedForward
from unimask.nn.vit import Block
from unimask.ops.parts import recomputed, recomputed_between_products, token_by_token


def spare_memory(model: nn.Module) -> None:
    """Change how layers of the model run on the CPU, in place; results are the same up to rounding.

    Feed-forwards run for a few tokens at a time, so their hidden layer stays in the cache. In training, the
    backward pass computes it again, and the attention over very many tokens, too. Of the blocks of a Vision
    Transformer and the masks of an EoMT, only the results of matrix products and attention are kept for the
    backward pass.
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
