"""The kernels of deformable sampling: checked against the plain version, measured in bytes a second."""

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu_measure import (
    TYPES,
    Failures,
    Plan,
    Step,
    Times,
    as_graph,
    copy_bandwidth,
    in_turn,
    ratio,
)
from unimask.ops.deformable import cuda as deformable_cuda
from unimask.ops.deformable.cuda import kernel_sampling
from unimask.ops.deformable.plain import deformable_sampling
from unimask.ops.positions import cell_centers
from unimask.structures import Size

HEADS, CHANNELS, POINTS = 8, 32, 4  # of the pixel decoder in the paper


def sampling_inputs(size: Size, batch: int, dtype: torch.dtype, plan: Plan) -> tuple[tuple[Size, ...], list]:
    """As the pixel decoder has them: every cell of strides 32, 16, 8 looks a few cells around itself."""
    sizes = tuple((-(-size[0] // stride), -(-size[1] // stride)) for stride in (32, 16, 8))
    torch.manual_seed(0)
    places = torch.cat([cell_centers(*one, device=plan.device) for one in sizes])
    shape = (batch, len(places), HEADS, len(sizes), POINTS)
    sides = torch.tensor([(width, height) for height, width in sizes], device=plan.device)
    steps = 3 * torch.randn(*shape, 2, device=plan.device) / sides[:, None]
    weights = torch.rand(shape, device=plan.device).flatten(3).softmax(-1).unflatten(3, shape[3:])
    values = torch.randn(batch, len(places), HEADS, CHANNELS, device=plan.device).to(dtype)
    return sizes, [values, places[:, None, None, None] + steps, weights]


def counted_bytes(inputs: list[Tensor], batch: int) -> dict[str, int]:
    """Bytes that have to move at least: every tensor once; the float32 sums of the values' gradient three
    times (cleared, read, written) and, in half precision, read and written once more. `gathered`: the four
    cells of every point, most of which the caches serve."""
    values, locations, weights = inputs
    result = batch * locations.shape[1] * HEADS * CHANNELS * values.element_size()
    sums = 4 * values.numel() * 3 + (0 if values.element_size() == 4 else 6 * values.numel())
    read = values.nbytes + locations.nbytes + weights.nbytes
    return {
        "forward": read + result,
        "backward": read + result + sums + locations.nbytes + weights.nbytes,
        "gathered": weights.numel() * 4 * CHANNELS * values.element_size(),
    }


def answer(sampling: Callable[..., Tensor], sizes: tuple[Size, ...], inputs: list[Tensor]) -> list[Tensor]:
    """Result and gradients in float32."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    result = sampling(leaves[0], sizes, *leaves[1:])
    upstream = torch.linspace(-1, 1, result.numel(), device=result.device).view_as(result).to(inputs[0].dtype)
    gradients = torch.autograd.grad(result, leaves, upstream.to(result.dtype))
    return [tensor.detach().float() for tensor in (result, *gradients)]


def check_kernels(
    sizes: tuple[Size, ...], inputs: list[Tensor], failures: Failures, what: str
) -> list[float]:
    """The largest error of result and gradients, as a part of the largest value; the plain version in float32
    on the same values is the truth. A location next to a cell's centre may take the slope of either side."""
    expected = answer(deformable_sampling, sizes, [inputs[0].float(), *inputs[1:]])
    found = answer(kernel_sampling, sizes, inputs)
    rounding = torch.finfo(inputs[0].dtype).eps
    errors = []
    for name, ours, theirs in zip(("result", "values", "locations", "weights"), found, expected, strict=True):
        distance = (ours - theirs).abs() / theirs.abs().max()
        if name == "locations":
            distance = distance.flatten().topk(max(1, int(0.99999 * distance.numel())), largest=False).values
        errors.append(float(distance.max()))
        failures.check(errors[-1] <= max(2e-5, rounding), f"kernels, {what}, {name}: error {errors[-1]:.1e}")
    return errors


def kernels(plan: Plan, failures: Failures) -> list[dict[str, object]]:
    bandwidth = copy_bandwidth(plan)
    flush = torch.empty(2**28 if plan.real else 1, dtype=torch.uint8, device=plan.device)
    rows = []
    for size in plan.pictures:
        for batch in plan.batches:
            for name, dtype in TYPES.items():
                sizes, inputs = sampling_inputs(size, batch, dtype, plan)
                errors = check_kernels(sizes, inputs, failures, f"{size[0]}x{size[1]} batch {batch} {name}")
                times = time_sampling(sizes, inputs, plan, lambda: flush.zero_())
                counted = counted_bytes(inputs, batch)
                medians = {key: statistics.median(values) for key, values in times.items()}
                backward = medians["kernels both"] - medians["kernels forward"]
                rows.append(
                    {
                        "picture": f"{size[0]}x{size[1]}",
                        "batch": batch,
                        "type": name,
                        "worst error": max(errors),
                        "forward ms": medians["kernels forward"],
                        "forward GB/s": counted["forward"] / medians["kernels forward"] / 1e6,
                        "of copy": counted["forward"] / medians["kernels forward"] / 1e6 / bandwidth,
                        "gathered GB/s": counted["gathered"] / medians["kernels forward"] / 1e6,
                        "backward ms": backward,
                        "backward of copy": counted["backward"] / backward / 1e6 / bandwidth,
                        "plain / kernels forward": ratio(times, "plain forward", "kernels forward"),
                        "plain / kernels both": ratio(times, "plain both", "kernels both"),
                        "copy GB/s": bandwidth,
                    }
                )
    return rows


def time_sampling(sizes: tuple[Size, ...], inputs: list[Tensor], plan: Plan, before: Step) -> Times:
    """Forward, and forward with backward; as CUDA graphs, with cold caches."""
    steps: dict[str, Step] = {}
    for name, sampling in {"plain": deformable_sampling, "kernels": kernel_sampling}.items():
        given = [inputs[0].float(), *inputs[1:]] if name == "plain" else inputs

        def forward(sampling: Callable[..., Tensor] = sampling, given: list[Tensor] = given) -> Tensor:
            with torch.no_grad():
                return sampling(given[0], sizes, *given[1:])

        leaves = [tensor.detach().requires_grad_() for tensor in given]
        upstream = torch.ones_like(forward())

        def both(
            sampling: Callable[..., Tensor] = sampling,
            leaves: list[Tensor] = leaves,
            upstream: Tensor = upstream,
        ) -> object:
            return torch.autograd.grad(sampling(leaves[0], sizes, *leaves[1:]), leaves, upstream)

        steps[f"{name} forward"], _ = as_graph(forward, plan)
        steps[f"{name} both"], _ = as_graph(both, plan)
    return in_turn(steps, plan, before)


def tune(plan: Plan) -> list[dict[str, object]]:
    """Other sizes of a program; put the best into `ops/deformable/cuda.py`."""
    kept = deformable_cuda.BLOCK_VALUES, deformable_cuda.WARPS
    rows = []
    for name, dtype in TYPES.items():
        sizes, inputs = sampling_inputs(plan.pictures[-1], plan.batches[0], dtype, plan)
        for block in (128, 256, 512, 1024):
            for warps in (1, 2, 4):
                deformable_cuda.BLOCK_VALUES, deformable_cuda.WARPS = block, warps
                times = time_sampling(sizes, inputs, plan, lambda: None)
                forward, both = (statistics.median(times[f"kernels {key}"]) for key in ("forward", "both"))
                row: dict[str, object] = {"type": name, "block values": block, "warps": warps}
                rows.append({**row, "forward ms": forward, "backward ms": both - forward})
    deformable_cuda.BLOCK_VALUES, deformable_cuda.WARPS = kept
    return rows
