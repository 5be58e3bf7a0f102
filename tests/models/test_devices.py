"""Every family on a device that is only imagined: a tensor on another one is found without a GPU.

Shapes and devices are right, nothing is computed. Factory functions without a device are made to use "cuda",
as a user may set it; a tensor that code puts on the CPU itself must be moved before it meets the others.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from types import MappingProxyType

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._pytree import tree_leaves

from unimask.config.images import Experiment
from unimask.config.models import DetrConfig, EomtConfig, ModelConfig
from unimask.config.overrides import override
from unimask.losses import matcher
from unimask.losses.build import build_criterion, kind_of
from unimask.losses.tokens import TokenCriterion
from unimask.models.build import build_model
from unimask.models.build_eomt import build_eomt
from unimask.models.build_text import build_sequence_model
from unimask.models.eomt import AnnealedAttention
from unimask.postprocess.boxes import postprocess_boxes, postprocess_panoptic
from unimask.postprocess.masks import postprocess_masks
from unimask.presets import PRESETS
from unimask.presets.transformer import transformer_tiny_multi30k
from unimask.structures import (
    BoxMaskPrediction,
    BoxMaskTargets,
    BoxPrediction,
    BoxTargets,
    Categories,
    Placement,
    Segments,
)

CATEGORIES = Categories(
    names=("a", "b", "c"),
    is_thing=(True, True, False),
    file_ids=(1, 2, 3),
    colors=((1, 2, 3), (4, 5, 6), (7, 8, 9)),
)
PYRAMID: dict[str, object] = {
    "model.pixel_decoder.kind": "pyramid",
    "model.pixel_decoder.strides": [32],
    "model.query_decoder.memory_strides": [32],
    "model.query_decoder.level_embedding": False,
    "model.query_decoder.visibility": "full",
    "model.query_decoder.order": ["self", "cross", "feedforward"],
    "model.query_decoder.query_features": "zeros",
    "model.query_decoder.predict_before_layers": False,
    "losses.sampling": "pixels",
    "losses.mask_term": "focal",
}
FAMILIES = MappingProxyType(
    {
        "mask2former": lambda: PRESETS["tiny"](),
        "mask2former_swin": lambda: override(PRESETS["tiny"](), {"model.backbone.name": "swin_tiny"}),
        "maskformer": lambda: override(PRESETS["tiny"](), PYRAMID),
        "per_pixel": lambda: override(
            PRESETS["tiny"](), PYRAMID | {"model.classification": "pixels", "model.query_decoder.layers": 0}
        ),
        "eomt": lambda: override(PRESETS["eomt_tiny"](), {"model.attention": "masked"}),
        "detr": lambda: PRESETS["detr_tiny"](),
        "detr_masks": lambda: override(
            PRESETS["detr_tiny"](), {"model.mask_head": True, "model.channels": 128, "model.heads": 8}
        ),
    }
)


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(nn.init, "trunc_normal_", nn.init.normal_)  # looks at what it has drawn
    monkeypatch.setattr(matcher, "assign", first_ones)
    with FakeTensorMode(), torch.device("cuda"):
        yield


def first_ones(cost: Tensor) -> tuple[Tensor, Tensor]:
    """In place of the solver, which needs numbers; like it, on the CPU."""
    assert cost.device.type == "cpu"
    pairs = torch.arange(min(cost.shape), device="cpu")
    return pairs, pairs


def devices(value: object) -> set[str]:
    leaves = tree_leaves(list(vars(value).values()))
    return {leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)}


def segments() -> Segments:
    return Segments(
        layers=torch.zeros(1, 64, 96, dtype=torch.int16),
        labels=torch.zeros(2, dtype=torch.int64),
        scores=torch.ones(2),
        is_crowd=torch.zeros(2, dtype=torch.bool),
    )


def targets_of(experiment: Experiment) -> tuple[object, ...]:
    boxes, labels = torch.rand(2, 4), torch.zeros(2, dtype=torch.int64)
    make: dict[str, Callable[[], object]] = {
        "masks": segments,
        "pixels": segments,
        "boxes": lambda: BoxTargets(boxes=boxes, labels=labels),
        "boxes_and_masks": lambda: BoxMaskTargets(segments=segments(), boxes=boxes),
    }
    kind = kind_of(experiment.model)
    return tuple(make[kind]() for _ in range(2))


def postprocess(experiment: Experiment, prediction: object) -> None:
    """Every task, as far as it goes without numbers."""
    placement = Placement(original=(47, 71), resized=(60, 90), canvas=(64, 96))
    reads: list[Callable[[], object]]
    if isinstance(prediction, BoxPrediction | BoxMaskPrediction):
        reads = [lambda: postprocess_boxes(prediction, 0, placement, 0.5)]
        if isinstance(prediction, BoxMaskPrediction):
            reads += [
                lambda: postprocess_panoptic(prediction, 0, placement, CATEGORIES, experiment.postprocess)
            ]
    else:
        tasks = ("panoptic", "instance", "semantic")
        reads = [
            lambda task=task: postprocess_masks(
                prediction, 0, placement, CATEGORIES, experiment.postprocess, task
            )  # type: ignore[misc]
            for task in tasks
        ]
    for one in reads:
        with suppress(DataDependentOutputException, DynamicOutputShapeException):
            one()


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")  # there is none
@pytest.mark.parametrize("family", FAMILIES)
def test_images_on_another_device(on_cuda: None, family: str) -> None:
    experiment: Experiment = FAMILIES[family]()
    assert isinstance(experiment.model, ModelConfig | EomtConfig | DetrConfig)
    model, pixels = build_model(experiment.model, len(CATEGORIES)), torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        prediction = model(pixels, torch.ones(2, 64, 96, dtype=torch.bool))
        assert devices(prediction) == {"cuda"}
        criterion = build_criterion(experiment.losses, len(CATEGORIES), kind=kind_of(experiment.model))
        losses = criterion(prediction, targets_of(experiment), torch.rand)
        assert losses.total.device.type == "cuda"
        postprocess(experiment, prediction)


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
@pytest.mark.parametrize("kind", ["dinov2", "dinov3"])
def test_annealed_masks_on_another_device(on_cuda: None, kind: str) -> None:
    config = override(PRESETS["eomt_tiny"](), {"model.backbone.kind": kind}).model
    assert isinstance(config, EomtConfig)
    model = build_eomt(config, len(CATEGORIES)).train()
    rule = AnnealedAttention(chances=(0.9, 0.5, 0.0), uniform=torch.rand)
    prediction = model.predict(torch.randn(2, 3, 64, 64), rule)
    assert devices(prediction) == {"cuda"}
    assert prediction.mask_features.shape == (4, 2, 13, 16, 16)


def test_text_on_another_device(on_cuda: None) -> None:
    model = build_sequence_model(transformer_tiny_multi30k().model, 31)
    source, target = torch.ones(2, 7, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64)
    valid = torch.ones(2, 7, dtype=torch.bool)
    with torch.no_grad():
        states = model(source, valid, target)
        assert states.device.type == "cuda"
        criterion = TokenCriterion(0.1, lambda count: count)
        losses = criterion(states.flatten(0, 1), model.embedding.weight, None, target.flatten())
        assert losses.total.device.type == "cuda"
        progress = model.start(model.encode(source, valid))
        state, progress = model.step(target[:, 0], progress, valid)
        state, _ = model.step(target[:, 1], progress, valid)
        assert model.logits(state).device.type == "cuda"
