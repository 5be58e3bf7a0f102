"""The kernels of deformable sampling through Triton's whole compiler, which needs no GPU.

Run by test_deformable_cuda.py in a process of its own, apart from the interpreter. Checked is what can be
seen in the machine code: vector loads, no memory for spilled registers, no barrier, vector additions.
"""

import os
import re

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed")
assert os.environ.get("TRITON_INTERPRET") != "1"

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from unimask.ops.deformable import triton as deformable_kernels  # noqa: E402
from unimask.ops.deformable.cuda import BLOCK_VALUES, WARPS  # noqa: E402

HALF = {"values", "result", "gradient"}  # the tensors that may come in half precision
SUMS = {"locations", "weights", "value_gradient", "location_gradient", "weight_gradient"}


def compiled(name: str, dtype: str, capability: int, channels: int, wide: bool) -> str:
    """The PTX of a kernel, for 2 levels with a point each; it also went through the assembler."""
    kernel = getattr(deformable_kernels, name)
    block = triton.next_power_of_2(channels)
    constants = {
        "LEVELS": 2,
        "POINTS": 1,
        "CHANNELS": channels,
        "BLOCK_QUERIES": max(1, BLOCK_VALUES // block),
        "BLOCK_CHANNELS": block,
        "VECTOR": min(4, block),
        "WIDE": wide,
    }
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    signature: dict[str, object] = {}
    attributes = {}
    for index, argument in enumerate(kernel.arg_names):
        if argument in HALF | SUMS:
            signature[argument] = f"*{dtype if argument in HALF else 'fp32'}"
            attributes[index,] = [["tt.divisibility", 16]]
        elif argument in constants:
            signature[argument] = "constexpr"
        elif argument in ("heights", "widths"):
            signature[argument] = ("fp32", "fp32")
        else:
            signature[argument] = "i32"
            if re.match("value|gradient|result|sum", argument) and channels % 16 == 0:
                attributes[index,] = [["tt.divisibility", 16]]
    places = {(kernel.arg_names.index(key),): value for key, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs=attributes)
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": WARPS})
    assert len(result.asm["cubin"]) > 0
    return str(result.asm["ptx"])


@pytest.mark.parametrize(("dtype", "vectors"), [("fp32", "v4"), ("bf16", "v4")])
def test_forward(dtype: str, vectors: str) -> None:
    code = compiled("forward_kernel", dtype, 90, channels=32, wide=False)
    assert re.search(rf"ld\.global\S*\.{vectors}\.b32", code)
    assert re.search(r"st\.global\S*\.v4\.b32", code)
    assert not re.search(r"\.local|bar\.sync|\.f64", code)


@pytest.mark.parametrize(("dtype", "vectors"), [("fp32", "v4"), ("bf16", "v2")])
def test_backward(dtype: str, vectors: str) -> None:
    code = compiled("backward_kernel", dtype, 90, channels=32, wide=False)
    assert re.search(rf"ld\.global\S*\.{vectors}\.b32", code)
    assert re.search(r"(atom|red)\.global\S*relaxed\S*add\.v4\.f32", code)
    assert not re.search(r"\.local|bar\.sync|\.f64", code)


@pytest.mark.parametrize("name", ["forward_kernel", "backward_kernel"])
@pytest.mark.parametrize(("capability", "channels", "wide"), [(75, 1, False), (80, 37, True)])
def test_other_devices_and_channels(name: str, capability: int, channels: int, wide: bool) -> None:
    code = compiled(name, "fp16", capability, channels, wide)
    assert not re.search(r"\.local|\.f64", code)
