"""Reading a prediction at the size of a large picture, beside the original's way of computing it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks import original_reading
from benchmarks.settings import Case, Outcome, Settings, case_details, case_table, peak_or_none, progress
from unimask.benchmark.memory import Peak, measure_peak
from unimask.benchmark.timing import Stopwatch, interleave
from unimask.data.category_tables import load_categories
from unimask.postprocess import masks as postprocess
from unimask.structures import Placement, Segments

TASKS = ("panoptic", "instance", "semantic")
SIDES = ("original's algorithm", "unimask")
QUERIES, CHANNELS, KEPT, MOST = 100, 256, 30, 100
THRESHOLDS = (0.8, 0.8)  # object and overlap


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A prediction for a picture with much in it: `KEPT` queries are sure of a region each."""

    class_logits: Tensor
    mask_embeddings: Tensor
    mask_features: Tensor
    placement: Placement
    is_thing: tuple[bool, ...]

    def mask_logits(self) -> Tensor:
        return torch.einsum("qc,chw->qhw", self.mask_embeddings, self.mask_features)


def make_scene(quick: bool, device: torch.device) -> Scene:
    """1080 x 1920 as a model of COCO sees it: resized to 750 x 1333 on a canvas of 768 x 1344."""
    placement = Placement.fit((1080, 1920), (750, 1333), 32)
    if quick:
        placement = Placement.fit((135, 240), (94, 167), 32)
    is_thing = load_categories("coco_panoptic").is_thing
    generator = torch.Generator().manual_seed(0)
    height, width = placement.canvas[0] // 4, placement.canvas[1] // 4
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    centers = torch.rand((KEPT, 2, 1, 1), generator=generator)
    distances = ((y - centers[:, 0]) ** 2 + (x - centers[:, 1]) ** 2).sqrt()
    nearest = distances.topk(2, dim=0, largest=False).values
    rival = torch.where(distances == nearest[0], nearest[1], nearest[0])
    sure = 60 * (rival - distances)  # above 0 where this centre is the nearest
    wanted = (
        torch.randn((QUERIES, height, width), generator=generator) * 2 - 4
    )  # specks, as doubtful queries have
    kept = torch.randperm(QUERIES, generator=generator)[:KEPT]
    wanted[kept] = sure
    turned = torch.linalg.qr(torch.randn((CHANNELS, CHANNELS), generator=generator)).Q
    class_logits = torch.randn((QUERIES, len(is_thing) + 1), generator=generator)
    class_logits[:, -1] += 8
    labels = torch.randint(len(is_thing), (KEPT,), generator=generator)
    class_logits[kept, labels] += 16
    return Scene(
        class_logits=class_logits.to(device),
        mask_embeddings=turned[:QUERIES].contiguous().to(device),
        mask_features=torch.einsum("qc,qhw->chw", turned[:QUERIES], wanted).contiguous().to(device),
        placement=placement,
        is_thing=is_thing,
    )


def original_work(scene: Scene, task: str) -> Callable[[], object]:
    """The dense logits are given: making them counts as the model's work."""
    masks = scene.mask_logits()
    first = (scene.class_logits, masks, scene.placement)
    if task == "panoptic":
        return partial(original_reading.panoptic, *first, scene.is_thing, *THRESHOLDS)
    if task == "instance":
        return partial(original_reading.instance, *first, scene.is_thing, MOST)
    return partial(original_reading.semantic, *first)


def our_work(scene: Scene, task: str) -> Callable[[], Segments]:
    first = (scene.class_logits, scene.mask_embeddings, scene.mask_features, scene.placement)
    if task == "panoptic":
        return partial(
            postprocess.panoptic,
            *first,
            scene.is_thing,
            object_threshold=THRESHOLDS[0],
            overlap_threshold=THRESHOLDS[1],
        )
    if task == "instance":
        return partial(postprocess.instance, *first, scene.is_thing, max_instances=MOST)
    return partial(postprocess.semantic, *first)


WORK = dict(zip(SIDES, (original_work, our_work), strict=True))


@torch.inference_mode()
def agreement(scene: Scene, task: str) -> str:
    """What both say, compared: pixels with another segment or label, or instance masks that differ."""
    theirs, ours = original_work(scene, task)(), our_work(scene, task)()
    if task == "panoptic":
        segments, labels = theirs
        differing = int((segments != ours.layers[0]).sum())
        same = labels == ours.labels.tolist()
        return f"{len(ours)} segments, {differing} of {segments.numel()} pixels differ, labels {_equal(same)}"
    if task == "instance":
        masks, labels, scores = theirs
        order = scores.argsort(descending=True, stable=True)
        differing, pixels = _differing_instances(masks[order] > 0, labels[order], ours)
        worst = float((scores[order] - ours.scores).abs().max())
        return f"{len(ours)} instances, {differing} masks differ in {pixels} pixels, scores by {worst:.1e}"
    labels = ours.labels[ours.layers[0].long() - 1]
    return f"{len(ours)} segments, {int((theirs != labels).sum())} of {theirs.numel()} pixels differ"


def _equal(same: bool) -> str:
    return "equal" if same else "DIFFER"


def _differing_instances(masks: Tensor, labels: Tensor, ours: Segments) -> tuple[int, int]:
    """How many of our masks are none of theirs with that label, and how many pixels the closest misses."""
    count = pixels = 0
    for mine, label in zip(ours.masks(), ours.labels, strict=True):
        missed = int((masks[labels == label] != mine).flatten(1).sum(1).min())
        count += missed > 0
        pixels += missed
    return count, pixels


def peak_of(side: str, task: str, settings: Settings) -> Peak:
    torch.set_num_threads(settings.threads)
    with torch.inference_mode():
        WORK[side](make_scene(True, settings.torch_device), task)()  # loads code
        work = WORK[side](make_scene(settings.quick, settings.torch_device), task)
        return measure_peak(work, settings.torch_device)


def run(settings: Settings) -> Outcome:
    torch.set_num_threads(settings.threads)
    device = settings.torch_device
    scene = make_scene(settings.quick, device)
    cases = []
    for task in TASKS:
        progress(f"post-processing, {task}")
        words = agreement(scene, task)
        with torch.inference_mode():
            runs = {side: _timed(make(scene, task)) for side, make in WORK.items()}
            rounds = interleave(runs, device, rounds=2 if settings.quick else 7)
        peaks = {side: peak_or_none(peak_of, side, task, settings) for side in SIDES}
        cases.append(Case(name=task, rounds=rounds, peaks=peaks, remarks={SIDES[1]: words}))
    height, width = scene.placement.original
    table = case_table(
        f"Post-processing alone, {height} x {width}",
        f"{QUERIES} queries, {len(scene.is_thing)} classes, {KEPT} queries are sure.",
        "beside the original's",
        cases,
    )
    return Outcome(tables=(table,), details=case_details(cases))


def _timed(work: Callable[[], object]) -> Callable[[Stopwatch], None]:
    def run_once(watch: Stopwatch) -> None:
        with watch.stage("read"):
            work()

    return run_once
