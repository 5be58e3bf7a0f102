"""Access to PyTorch's private operators, which may change or disappear with any release.

They are called only through `private_operator`, and wherever one is used there is a plain version for
releases without it.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

_ARGUMENTS = {
    "mkldnn::_convolution_pointwise": "X W B padding stride dilation groups attr scalars algorithm",
    "mkldnn::_convolution_pointwise_.binary": (
        "other X W B padding stride dilation groups "
        "binary_attr alpha unary_attr unary_scalars unary_algorithm"
    ),
    "mkldnn::_linear_pointwise": "X W B attr scalars algorithm",
    "mkldnn::_reorder_linear_weight": "self batch_size",
    "mkldnn::_is_mkldnn_bf16_supported": "",
    "aten::_scaled_dot_product_flash_attention_for_cpu": (
        "query key value dropout_p is_causal attn_mask scale"
    ),
    "aten::_embedding_bag_per_sample_weights_backward": (
        "grad weight indices offsets offset2bag mode padding_idx"
    ),
}
"""The operators that this library calls, each with the arguments that it expects."""


@cache
def private_operator(name: str) -> Callable[..., Any] | None:
    """Return the operator of this name, or None if the installed PyTorch has none with these `_ARGUMENTS`."""
    library, _, rest = name.partition("::")
    packet, _, overload = rest.partition(".")
    try:
        operator = getattr(getattr(getattr(torch.ops, library), packet), overload or "default")
    except AttributeError:
        return None
    known = " ".join(argument.name for argument in operator._schema.arguments) == _ARGUMENTS[name]
    return operator if known else None


@cache
def fuses(dtype: torch.dtype) -> bool:
    """Return whether PyTorch's fused oneDNN convolutions and products support a type on this processor."""
    names = [name for name in _ARGUMENTS if name.startswith("mkldnn::")]
    if not torch.backends.mkldnn.is_available() or None in map(private_operator, names):
        return False
    if "AVX" not in torch.backends.cpu.get_cpu_capability():
        return False
    bfloat16_serves = private_operator("mkldnn::_is_mkldnn_bf16_supported")
    assert bfloat16_serves is not None
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(bfloat16_serves()))
