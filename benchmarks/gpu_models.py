"""The whole model beside transformers' Mask2Former with the same weights, on CUDA."""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu_measure import TYPES, Failures, Plan, Step, as_graph, in_turn, peak_megabytes, ratio
from unimask.checkpoints.images import load_model
from unimask.config.training import LossConfig
from unimask.conversion import convert
from unimask.losses.build import build_criterion
from unimask.structures import MaskPrediction, Segments, Size
from unimask.training.step import uniform_source

CLASSES = 133
STAGES = ["stage1", "stage2", "stage3", "stage4"]


@contextmanager
def models(plan: Plan) -> Iterator[tuple[nn.Module, nn.Module]]:
    """transformers' Mask2Former with random weights and a ResNet-50, and ours with the same weights."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig

    small = {"encoder_layers": 1, "decoder_layers": 3, "num_queries": 11, "train_num_points": 112}
    torch.manual_seed(0)
    backbone = ResNetConfig(out_features=STAGES)
    config = Mask2FormerConfig(backbone_config=backbone, num_labels=CLASSES, **({} if plan.real else small))
    theirs = Mask2FormerForUniversalSegmentation(config)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(Path(folder) / "theirs")
        convert(Path(folder) / "theirs", Path(folder) / "ours")
        ours, _ = load_model(Path(folder) / "ours")
        yield theirs.to(plan.device).eval(), ours.to(plan.device).eval()


class KernelCalls(TorchDispatchMode):
    """Counts how often the kernels are called: whether the model really uses them."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func is torch.ops.unimask.deformable_sampling.default
        return func(*args, **(kwargs or {}))


def cast(plan: Plan, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(plan.device.type, dtype, enabled=dtype != torch.float32)


def largest_difference(theirs: object, ours: MaskPrediction) -> float:
    """Of class and mask logits, as a part of the largest logit."""
    pairs = [
        (theirs.class_queries_logits, ours.class_logits[-1]),  # type: ignore[attr-defined]
        (theirs.masks_queries_logits, ours.mask_logits()),  # type: ignore[attr-defined]
    ]
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def forward(plan: Plan, failures: Failures) -> list[dict[str, object]]:
    """Inference of the whole network, both in the same precision, eager, ours also as CUDA graph."""
    rows = []
    with models(plan) as (theirs, ours), torch.no_grad():
        for size in plan.pictures:
            for batch in plan.batches:
                pixels = torch.randn(batch, 3, *size, device=plan.device)
                valid = torch.ones(batch, *size, dtype=torch.long, device=plan.device)
                error = largest_difference(theirs(pixel_values=pixels, pixel_mask=valid), ours(pixels))
                what = f"forward {size[0]}x{size[1]} batch {batch}"
                state = failures.check(error < 1e-3, f"{what}: outputs differ by {error:.1e}")
                with KernelCalls() as calls:
                    ours(pixels)
                for name, dtype in TYPES.items():
                    with cast(plan, dtype):
                        rows.append(
                            {
                                "picture": f"{size[0]}x{size[1]}",
                                "batch": batch,
                                "type": name,
                                "fp32 outputs": state,
                                "kernel calls": calls.count,
                                **compare_forward(theirs, ours, pixels, valid, plan, failures, what),
                            }
                        )
    return rows


def compare_forward(
    theirs: nn.Module,
    ours: nn.Module,
    pixels: Tensor,
    valid: Tensor,
    plan: Plan,
    failures: Failures,
    what: str,
) -> dict[str, object]:
    steps: dict[str, Step] = {
        "transformers": lambda: theirs(pixel_values=pixels, pixel_mask=valid),
        "unimask": lambda: ours(pixels),
    }
    peaks = {name: peak_megabytes(step, plan) for name, step in steps.items()}
    steps["graph"], captured = as_graph(steps["unimask"], plan)
    steps["graph"]()
    assert isinstance(captured, MaskPrediction)
    same = torch.allclose(captured.class_logits, ours(pixels).class_logits, atol=1e-2, rtol=1e-2)
    failures.check(same, f"{what}: the CUDA graph gives another result")
    times = in_turn(steps, plan)
    return {
        **{f"{name} ms": statistics.median(values) for name, values in times.items()},
        "ratio": ratio(times, "transformers", "unimask"),
        "ratio of graph": ratio(times, "transformers", "graph"),
        "transformers MB": peaks["transformers"],
        "unimask MB": peaks["unimask"],
    }


def compiled(plan: Plan, failures: Failures) -> list[dict[str, object]]:
    """Graph breaks, and the compiled model beside the eager one."""
    rows: list[dict[str, object]] = []
    with models(plan) as (_, ours), torch.no_grad():
        pixels = torch.randn(plan.batches[0], 3, *plan.pictures[0], device=plan.device)
        report = torch._dynamo.explain(ours)(pixels)
        failures.check(report.graph_break_count == 0, f"{report.graph_break_count} graph breaks")
        variants: dict[str, dict[str, str]] = {"aot_eager": {"backend": "aot_eager"}}
        if plan.real:
            variants = {"default": {}, "reduce-overhead": {"mode": "reduce-overhead"}}
        for mode, options in variants.items():
            for name, dtype in TYPES.items():
                torch._dynamo.reset()
                with cast(plan, dtype):
                    row = compare_compiled(ours, pixels, options, plan)
                worst = 1e-3 if name == "fp32" else 0.2
                failures.check(row["difference"] < worst, f"compiled {mode} {name}: {row['difference']:.1e}")
                graphs = {"graphs": report.graph_count, "breaks": report.graph_break_count}
                rows.append({"mode": mode, "type": name, **graphs, **row})
    return rows


def compare_compiled(
    ours: nn.Module, pixels: Tensor, options: dict[str, str], plan: Plan
) -> dict[str, float]:
    fast = torch.compile(ours, fullgraph=True, **options)  # type: ignore[call-overload]
    expected, found = ours(pixels).class_logits, fast(pixels).class_logits.clone()
    times = in_turn({"eager": lambda: ours(pixels), "compiled": lambda: fast(pixels)}, plan)
    return {
        "difference": float((found - expected).abs().max() / expected.abs().max()),
        **{f"{key} ms": statistics.median(values) for key, values in times.items()},
        "ratio": ratio(times, "eager", "compiled"),
    }


def stripes(size: Size, count: int, device: torch.device) -> Segments:
    """A picture cut into `count` upright stripes."""
    columns = torch.arange(size[1], device=device) * count // size[1] + 1
    return Segments(
        layers=columns.to(torch.int16).expand(1, *size).contiguous(),
        labels=torch.arange(count, device=device) % CLASSES,
        scores=torch.ones(count, device=device),
        is_crowd=torch.zeros(count, dtype=torch.bool, device=device),
    )


def training(plan: Plan, failures: Failures) -> list[dict[str, object]]:
    """A step of AdamW with all losses, batch 2; losses have to stay finite in every precision."""
    rows = []
    for count in plan.segments:
        for name, dtype in TYPES.items():
            row = compare_training(count, dtype, plan)
            failures.check(bool(row["finite"]), f"training {count} segments {name}: a loss is not finite")
            rows.append({"crop": f"{plan.crop[0]}x{plan.crop[1]}", "segments": count, "type": name, **row})
    return rows


def compare_training(count: int, dtype: torch.dtype, plan: Plan) -> dict[str, object]:
    target = stripes(plan.crop, count, plan.device)
    masks, labels = target.masks().float(), target.labels
    pixels = torch.randn(2, 3, *plan.crop, device=plan.device)
    criterion = build_criterion(LossConfig() if plan.real else LossConfig(points=112), CLASSES)
    uniform = uniform_source(0, plan.device)
    losses: dict[str, list[Tensor]] = {"transformers": [], "unimask": []}
    with models(plan) as (theirs, ours):

        def their_loss() -> Tensor:
            loss: Tensor = theirs(
                pixel_values=pixels, mask_labels=[masks, masks], class_labels=[labels, labels]
            ).loss
            return loss.squeeze()

        def our_loss() -> Tensor:
            return criterion(ours(pixels), (target, target), uniform).total

        steps = {
            "transformers": training_step(theirs.train(), their_loss, dtype, losses["transformers"], plan),
            "unimask": training_step(ours.train(), our_loss, dtype, losses["unimask"], plan),
        }
        peaks = {f"{who} MB": peak_megabytes(step, plan) for who, step in steps.items()}
        times = in_turn(steps, plan)
    return {
        **{f"{who} ms": statistics.median(values) for who, values in times.items()},
        "ratio": ratio(times, "transformers", "unimask"),
        **peaks,
        "finite": all(bool(torch.isfinite(loss)) for loss in losses["unimask"]),
        "first losses": [round(float(values[0]), 2) for values in losses.values()],
    }


def training_step(
    model: nn.Module, loss_of: Callable[[], Tensor], dtype: torch.dtype, losses: list[Tensor], plan: Plan
) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5)
    scaler = torch.amp.GradScaler(plan.device.type, enabled=dtype == torch.float16)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with cast(plan, dtype):
            loss = loss_of()
        losses.append(loss.detach())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step
