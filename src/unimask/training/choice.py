"""Settings of a training on own data that are not set by the user: a pure function of data and machine.

The rules stand in docs/guide/choice.md, with the reason for each. Nothing is chosen that was set.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from unimask.config.data import Exact, Scale
from unimask.config.images import Experiment
from unimask.config.models import AnyModelConfig, EomtConfig
from unimask.config.overrides import override
from unimask.config.tasks import Task
from unimask.files import json_text
from unimask.presets import PRESETS

NUCLEI = ("nucleus", "nuclei")  # the categories of the shipped model
NUCLEI_SIDES = (6.0, 40.0)  # shorter side of the objects that it was trained on, in pixels of the file
STEP = 32  # of sizes
SMALLEST, LARGEST_CPU, LARGEST_GPU = 256, 512, 768  # short side of an image for the model
SIDE = 16.0  # pixels that the shorter side of the median object should have for the model
ENLARGED = 2.0  # that much at most
QUERIES, MOST_QUERIES = 100, 200
IN_A_TILE = 50  # objects that a tile should have, where a whole image has more than `MOST_QUERIES`
BATCH = 8
TIMES_SEEN = 60  # how often a training from ImageNet's weights sees each image
FROM_A_MODEL, OF_BOXES = 0.5, 3.0  # times as long: what is trained already, and DETR, which learns slowly
GENTLE = 0.2  # of the learning rate, where a model is trained already
FEWEST_STEPS, MOST_STEPS_CPU, MOST_STEPS_GPU = 1500, 8000, 20_000
USED = 0.7  # of the free memory
_VIEW = ("data.view", "data.crop", "data.resize", "data.jitter")  # settings that go with tiles


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Statistics of the train split."""

    task: Task
    images: int
    size: tuple[int, int]  # (height, width) of the median image
    things: tuple[str, ...]
    side: float  # shorter side of the median object in pixels of the file; 0 where there is none
    large_side: float  # the same of nine objects in ten
    most_objects: int  # in one image


@dataclass(frozen=True, kw_only=True)
class Here:
    """The machine of the training."""

    gpu: bool
    memory: int  # bytes that are free
    no_imagenet: str  # why ImageNet's weights are not available; "" where they are


@dataclass(frozen=True, kw_only=True)
class ChosenOptions:
    """Some of what was chosen, as options of the command line, and why."""

    flags: tuple[str, ...]
    because: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An experiment, where its weights start, and the same as five lines of options."""

    experiment: Experiment
    initial: str
    lines: tuple[ChosenOptions, ...]


@dataclass(frozen=True, kw_only=True)
class Base:
    """Where the choice starts: an experiment, the options that name it, and its initial weights."""

    experiment: Experiment
    flags: tuple[str, ...]
    initial: str
    because: str
    keep_data: bool  # the model is trained already, for images of this size
    weights: str  # why these initial weights


def choose(
    seen: Seen,
    here: Here,
    asked: Mapping[str, object],
    *,
    given: Base | None = None,
    initial: str = "",
    epochs: int | float = 0,
) -> Choice:
    """Return what to train on `seen` with the machine `here`.

    `asked` are settings that somebody set, by dotted paths; `given` is where a named model leads, or None for
    a preset to be chosen; `initial` is what was named as initial weights, or ""; `epochs` is how often each
    image is to be seen, where that was said (above 0).
    """
    base = given or _preset(seen, here, initial)
    experiment = override(base.experiment, asked)
    size = {} if base.keep_data else _size(seen, here, experiment, asked)
    batch: dict[str, object] = {"training.batch_size": min(BATCH, experiment.training.batch_size)}
    experiment = _with(experiment, size | batch, asked)
    if epochs:
        asked = {**asked, "training.steps": steps_of(epochs, seen.images, experiment)}
        experiment = override(experiment, asked)
    steps = (
        _bookkeeping(experiment.training.steps)
        if "training.steps" in asked
        else _steps(seen, here, experiment, trained=base.keep_data)
    )
    if base.keep_data:
        steps["training.learning_rate"] = _gentle(base.experiment.training.learning_rate)
    batch |= _passes(here, experiment)
    experiment = _with(experiment, steps | batch, asked)
    times = experiment.training.steps * experiment.training.batch_size / max(1, seen.images)
    kept = "the model keeps the size that it was trained for"
    return Choice(
        experiment=experiment,
        initial=base.initial,
        lines=(
            ChosenOptions(flags=("--task", seen.task, *base.flags), because=base.because),
            ChosenOptions(
                flags=_flags(size, asked), because=kept if base.keep_data else _why_size(seen, size)
            ),
            ChosenOptions(
                flags=_flags(steps, asked),
                because=f"each of the {seen.images:,} images is seen about {_times(times)}",
            ),
            ChosenOptions(flags=_flags(batch, asked), because=_why_batch(here, experiment)),
            ChosenOptions(flags=("--initial", base.initial), because=base.weights),
        ),
    )


def steps_of(epochs: int | float, images: int, experiment: Experiment) -> int:
    """Return the steps in which each of `images` is seen so often."""
    return max(1, math.ceil(epochs * images / experiment.training.batch_size))


def _preset(seen: Seen, here: Here, initial: str) -> Base:
    """Return the preset for the task, and the initial weights."""
    named = initial or ("none" if here.no_imagenet else "imagenet")
    weights = (
        "as asked"
        if initial
        else f"random: ImageNet's cannot be had here ({here.no_imagenet})"
        if here.no_imagenet
        else "those of the backbone from ImageNet"
    )
    if not initial and _are_nuclei(seen):
        return Base(
            experiment=PRESETS["nuclei"](),
            flags=("--preset", "nuclei"),
            initial="nuclei",
            because="the only things are nuclei, about as large as those that the shipped model knows",
            keep_data=True,
            weights="the shipped model goes on from what it knows",
        )
    name = "detr_small" if seen.task == "detection" else "small"
    because = (
        "boxes"
        if seen.task == "detection"
        else f"masks of {len(seen.things)} things"
        if seen.things
        else "no things"
    )
    return Base(
        experiment=PRESETS[name](),
        flags=("--preset", name),
        initial=named,
        because=f"{because}: the model for a modest machine",
        keep_data=False,
        weights=weights,
    )


def _are_nuclei(seen: Seen) -> bool:
    names = {name.casefold() for name in seen.things}
    low, high = NUCLEI_SIDES
    known = bool(names) and names <= set(NUCLEI)
    return known and seen.task in ("panoptic", "instance") and low <= seen.side <= high


def _with(experiment: Experiment, chosen: Mapping[str, object], asked: Mapping[str, object]) -> Experiment:
    return override(experiment, _not_asked(chosen, asked))


def _not_asked(chosen: Mapping[str, object], asked: Mapping[str, object]) -> dict[str, object]:
    """Return what was chosen and is not set, wholly or in part."""
    return {
        path: value
        for path, value in chosen.items()
        if not any(one == path or one.startswith(f"{path}.") or path.startswith(f"{one}.") for one in asked)
    }


def _times(times: float) -> str:
    return "once" if round(times) == 1 else f"{times:.0f} times" if times >= 1 else f"{times:.1f} times"


def _flags(chosen: Mapping[str, object], asked: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(
        word
        for path, value in _not_asked(chosen, asked).items()
        for word in ("--set", f"{path}={json_text(value, None).replace(' ', '')}")
    )


# size


def _size(seen: Seen, here: Here, experiment: Experiment, asked: Mapping[str, object]) -> dict[str, object]:
    """Return how images reach the model: their size, or tiles, and with how many queries."""
    set_already = any(path.startswith(_VIEW) for path in asked)
    if seen.task in ("panoptic", "instance") and seen.most_objects > MOST_QUERIES and not set_already:
        return _tiles(seen, here)
    side = _side_asked(experiment, asked) or _side(seen, here)
    chosen: dict[str, object] = {
        "data.crop": [side, side],
        "data.resize": {"kind": "short_side", "size": side, "longest": 2 * side},
    }
    return chosen | _queries(experiment.model, seen)


def _side(seen: Seen, here: Here) -> int:
    """Return the short side of an image for the model."""
    short = max(1, min(seen.size))
    usual = min(max(short, SMALLEST), LARGEST_GPU if here.gpu else LARGEST_CPU)
    if 0 < seen.side * usual / short < SIDE:  # larger, up to twice the usual side
        return _round(min(SIDE / seen.side * short, ENLARGED * usual))
    return _round(usual)


def _side_asked(experiment: Experiment, asked: Mapping[str, object]) -> int:
    """Return the side that a set crop or resize means, so that both are of one size; 0 where neither is."""
    if "data.crop" in asked:
        return min(experiment.data.crop)
    resize = experiment.data.resize
    if any(path.startswith("data.resize") for path in asked) and not isinstance(resize, Scale):
        return min(resize.height, resize.width) if isinstance(resize, Exact) else resize.size
    return 0


def _queries(model: AnyModelConfig, seen: Seen) -> dict[str, object]:
    """Return the number of queries where an image has nearly as many objects as there are, or more."""
    have = model.query_decoder.queries if model.kind == "masks" else model.queries
    if seen.task == "semantic" or 1.25 * seen.most_objects <= have:
        return {}
    needed = math.ceil(1.25 * seen.most_objects / 50) * 50
    path = "model.query_decoder.queries" if model.kind == "masks" else "model.queries"
    return {path: needed, "postprocess.max_instances": max(100, needed)}


def _tiles(seen: Seen, here: Here) -> dict[str, object]:
    """Return tiles that hold about `IN_A_TILE` objects each."""
    height, width = seen.size
    tile = math.sqrt(height * width * IN_A_TILE / seen.most_objects)
    tile = min(max(_round(tile), 2 * STEP), _round(min(seen.size)))
    factor = min(max(1.0, SIDE / max(seen.side, 1.0), SMALLEST / 2 / tile), 4.0)
    largest = LARGEST_GPU if here.gpu else LARGEST_CPU
    factor = round(min(factor, largest / tile), 2)
    side = _round(tile * factor)
    overlap = min(tile // 2, max(tile // 8, math.ceil(1.5 * seen.large_side / 8) * 8))
    return {
        "data.view": {"kind": "tiles", "size": int(tile), "overlap": int(overlap)},
        "data.resize": {"kind": "scale", "factor": factor},
        "data.crop": [side, side],
        "data.jitter": {
            "low": round(0.75 * factor, 3),
            "high": round(1.5 * factor, 3),
            "relative_to": "file",
        },
    }


def _round(side: int | float) -> int:
    return max(STEP, round(side / STEP) * STEP)


def _why_size(seen: Seen, size: Mapping[str, object]) -> str:
    height, width = seen.size
    found = f"images of {height} x {width}"
    if seen.side:
        found += f", half of the objects narrower than {seen.side:g} pixels"
    if "data.view" in size:
        return f"{found}, up to {seen.most_objects} in one: tiles, joined afterwards"
    if seen.most_objects > QUERIES * 0.8 and seen.task != "semantic":
        return f"{found}, up to {seen.most_objects} in one"
    return found


# steps


def _steps(seen: Seen, here: Here, experiment: Experiment, *, trained: bool) -> dict[str, object]:
    """Return how long to train, with warm-up, evaluations and checkpoints on the way."""
    share = FROM_A_MODEL if trained else OF_BOXES if seen.task == "detection" else 1.0
    wanted = share * TIMES_SEEN * seen.images / experiment.training.batch_size
    most = MOST_STEPS_GPU if here.gpu else MOST_STEPS_CPU
    steps = min(max(wanted, FEWEST_STEPS * share), most * share)
    return _bookkeeping(max(100, round(steps / 100) * 100))


def _gentle(rate: float) -> float:
    """Return the learning rate of a trained model: low, so that its weights are not lost at the start."""
    return float(f"{GENTLE * rate:.2g}")


def _bookkeeping(steps: int) -> dict[str, object]:
    every = max(1, steps // 8) if steps < 400 else round(steps / 8 / 50) * 50
    return {
        "training.steps": steps,
        "training.warmup_steps": min(max(steps // 20, 1), 500),
        "training.evaluate_every": every,
        "training.checkpoint_every": max(1, every // 2),
    }


# batch


def _passes(here: Here, experiment: Experiment) -> dict[str, object]:
    """Return the number of passes of a step: the images of one pass fit into memory together."""
    batch = experiment.training.batch_size
    fitting = max(1, int((USED * here.memory - _fixed(experiment.model)) // _of_an_image(experiment)))
    passes = next(
        passes for passes in range(1, batch + 1) if batch % passes == 0 and batch / passes <= fitting
    )
    return {"training.accumulate": passes}


_PIXEL_BYTES: Mapping[str, int] = {
    "tf_efficientnet_lite0": 3_000,  # 2,450 measured on a CPU
    "test_resnet": 3_000,
    "resnet50": 8_000,
    "resnet101": 9_500,
    "swin_tiny": 10_000,
    "swin_small": 12_000,
    "swin_base": 16_000,
    "swin_large": 22_000,
}
_OTHERS_BYTES = 12_000
"""Of memory that a training needs for each pixel of an image; those of ResNet and Swin are MaskFormer's."""

_FIXED = 1 << 30  # of any training: libraries, weights, their gradients and the optimiser's means


def _fixed(model: AnyModelConfig) -> int:
    return _FIXED * (4 if "large" in model.backbone.name or "base" in model.backbone.name else 1)


def _of_an_image(experiment: Experiment) -> int:
    """Return the bytes that a training needs for one image, roughly."""
    height, width = experiment.data.crop
    model = experiment.model
    if isinstance(model, EomtConfig):  # the inputs of every layer of each block, for each token
        vit = model.backbone
        return height * width // vit.patch**2 * vit.blocks * vit.channels * 34 * 4
    return height * width * _PIXEL_BYTES.get(model.backbone.name, _OTHERS_BYTES)


def _why_batch(here: Here, experiment: Experiment) -> str:
    training = experiment.training
    at_once = training.batch_size // training.accumulate
    needed = _fixed(experiment.model) + at_once * _of_an_image(experiment)
    return f"{at_once} at a time need about {_gigabytes(needed)} of {_gigabytes(here.memory)} that are free"


def _gigabytes(number: int) -> str:
    return f"{number / 2**30:.1f} GiB"
