"""What makes an EoMT fast to train on the CPU: doubled maps as one product, and what is computed again."""

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from parity.eomt_models import CLASSES, SIZE, our_config
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from unimask.models.build_eomt import build_eomt
from unimask.models.eomt import masked_attention
from unimask.models.memory import spare_memory
from unimask.ops.dispatch import double_maps

PRODUCTS = (torch.ops.aten.addmm.default, torch.ops.aten.mm.default)
NORM = torch.ops.aten.native_layer_norm.default


@pytest.mark.parametrize("shape", [(2, 7, 3, 5), (1, 4, 1, 1), (1, 3, 2, 1)])
def test_doubled_maps_are_those_of_a_transposed_convolution(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    maps, weight, bias = (
        torch.randn(size, generator=generator, requires_grad=True)
        for size in (shape, (shape[1], 6, 2, 2), (6,))
    )
    expected = functional.conv_transpose2d(maps, weight, bias, 2)
    found = double_maps(maps, weight, bias)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert found.is_contiguous(memory_format=torch.channels_last)
    upstream = torch.randn(expected.shape, generator=generator)
    for one, other in zip(
        torch.autograd.grad(found, (maps, weight, bias), upstream),
        torch.autograd.grad(expected, (maps, weight, bias), upstream),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


class Counted(TorchDispatchMode):
    """Counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[object] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kind", ["dinov2", "dinov3"])
def test_only_what_lies_between_products_is_computed_again(kind, gated: bool) -> None:
    plain = build_eomt(our_config(kind, gated=gated), CLASSES)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    spared = copy.deepcopy(plain)
    spare_memory(spared)
    pixels = torch.randn(2, 3, SIZE, SIZE, generator=generator)

    def step(model: nn.Module) -> tuple[Counter[object], Tensor]:
        with Counted() as counted:
            prediction = model.predict(pixels, masked_attention)
            loss = prediction.mask_features.square().mean() + prediction.class_logits.square().mean()
            loss.backward()
        return counted.calls, loss.detach()

    (once, expected), (again, found) = step(plain), step(spared)
    assert torch.equal(found, expected)
    for one, other in zip(spared.parameters(), plain.parameters(), strict=True):
        if other.grad is not None:
            assert torch.equal(one.grad, other.grad)
    assert all(again[product] == once[product] > 0 for product in PRODUCTS)
    blocks, predictions, doublings = 5, 4, 2
    assert again[NORM] == once[NORM] + 2 * blocks + doublings * predictions
