"""What a compiler and a CUDA graph ask of a model's forward pass, seen without either and without a GPU.

Run by test_tracing.py in a process of its own: the compiler cannot see through checks of types.
"""

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from unimask.config.overrides import override
from unimask.models.build import build_model
from unimask.presets import PRESETS

TINY = PRESETS["tiny"]()
SETTINGS: dict[str, dict[str, object]] = {
    "trained norms": {},
    "frozen norms, positions": {
        "model.backbone.freeze_norm": True,
        "model.pixel_decoder.position_octaves": 2,
    },
    "swin": {"model.backbone.name": "swin_tiny", "model.backbone.drop_path_rate": 0.1},
}


def build(settings: dict[str, object]) -> nn.Module:
    return build_model(override(TINY, settings).model, 5)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_one_graph_without_a_break(settings: dict[str, object]) -> None:
    model, pixels = build(settings), torch.randn(2, 3, 64, 96)
    report = torch._dynamo.explain(model)(pixels)
    assert (report.graph_count, report.graph_break_count) == (1, 0), report.break_reasons
    torch._dynamo.reset()


class Waiting(TorchDispatchMode):
    """Notes operations that need the host: those that meet a CPU tensor, and those that read a number."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        tensors = torch.utils._pytree.tree_leaves((args, kwargs, result))
        touched = {tensor.device.type for tensor in tensors if isinstance(tensor, Tensor)}
        if "cpu" in touched or func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero"):
            self.found.append(str(func))
        return result


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")  # there is none
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_host_never_waits(settings: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that is only imagined: shapes and devices are right, nothing is computed."""
    monkeypatch.setattr(nn.init, "trunc_normal_", nn.init.normal_)  # looks at what it has drawn
    with FakeTensorMode(), torch.device("cuda"):
        model, pixels = build(settings).eval(), torch.randn(2, 3, 64, 96)
        with torch.no_grad(), Waiting() as waiting:
            prediction = model(pixels)
    assert prediction.class_logits.device.type == "cuda"
    assert waiting.found == []
