"""A small DETR with a mask head learns boxes and masks of a few pictures: all parts of its training fit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unimask.checkpoints.images import load_model
from unimask.config.images import Experiment
from unimask.config.models import BackboneConfig, DetrConfig
from unimask.config.overrides import override
from unimask.config.training import TrainingConfig
from unimask.data.loader import box_mask_targets, training_loader
from unimask.data.open import open_dataset
from unimask.errors import ConfigError
from unimask.losses.build import build_criterion
from unimask.models.build import build_model
from unimask.models.detr_masks import DetrWithMasks
from unimask.ops.boxes import cxcywh_to_xyxy, scale_of
from unimask.presets.detr import detr_tiny
from unimask.structures import Batch, BoxMaskTargets
from unimask.training.checks import check_model
from unimask.training.initial import load_initial
from unimask.training.optimizer import parameter_groups
from unimask.training.run import train

MODEL = DetrConfig(
    backbone=BackboneConfig(name="test_resnet", freeze_norm=False, dilated=True),
    channels=128,
    feedforward_channels=64,
    dropout=0.0,
    encoder_layers=1,
    decoder_layers=2,
    queries=6,
    mask_head=True,
)


def experiment() -> Experiment:
    settings = {
        "data.crop": [61, 61],
        "data.jitter.low": 1.0,
        "data.jitter.high": 1.0,
        "training.steps": 2,
        "training.batch_size": 2,
        "training.evaluate_every": 2,
    }
    return override(replace(detr_tiny(), model=MODEL), settings)


def one_batch(pictures: int) -> Batch:
    dataset = open_dataset("shapes:61x61", "val", "panoptic")
    loader = training_loader(
        dataset, experiment().data, mean=(123.0,) * 3, std=(58.0,) * 3, batch_size=pictures, seed=3
    )
    return box_mask_targets(next(loader))


def test_boxes_lie_around_the_segments_of_the_canvas() -> None:
    batch = one_batch(3)
    assert batch.images.placements[0].canvas == (64, 64)
    for target in batch.targets:
        assert isinstance(target, BoxMaskTargets)
        boxes = cxcywh_to_xyxy(target.boxes) * scale_of((61, 61), target.boxes)
        for mask, box in zip(target.segments.masks(), boxes, strict=True):
            rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
            found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            torch.testing.assert_close(box, torch.stack(found).float())


def test_masks_of_a_picture_are_learned_by_heart() -> None:
    torch.manual_seed(0)
    batch = one_batch(1)
    model = build_model(MODEL, 6)
    criterion = build_criterion(experiment().losses, 6, kind="boxes_and_masks")
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(250):  # how fast masks come differs between processors
        prediction = model(batch.images.pixels, batch.images.valid)
        losses = criterion(prediction, batch.targets, torch.rand)
        optimizer.zero_grad()
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    last = {name: values.tolist() for name, values in losses.terms.items()}
    assert last["mask"][0] == last["dice"][0] == 0  # masks of the final queries only
    # attention maps are small numbers beside the features that all queries share, so masks come late: about
    # 0.8 for the first 70 steps, then it falls steadily
    assert last["dice"][1] < 0.4
    assert last["box"][1] < 0.05
    assert last["class"][1] < 0.05


def test_no_segments_give_no_mask_loss_but_a_gradient() -> None:
    batch, model = one_batch(2), build_model(MODEL, 6)
    empty = tuple(
        replace(
            target,
            boxes=target.boxes[:0],
            segments=replace(
                target.segments,
                layers=torch.zeros_like(target.segments.layers),
                labels=target.segments.labels[:0],
                scores=target.segments.scores[:0],
                is_crowd=target.segments.is_crowd[:0],
            ),
        )
        for target in batch.targets
        if isinstance(target, BoxMaskTargets)
    )
    prediction = model(batch.images.pixels, batch.images.valid)
    losses = build_criterion(experiment().losses, 6, kind="boxes_and_masks")(prediction, empty, torch.rand)
    assert losses.terms["mask"].tolist() == losses.terms["dice"].tolist() == [0, 0]
    losses.total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(("task", "metric"), [("panoptic", "PQ"), ("instance", "AP50")])
def test_a_training_and_what_it_leaves(tmp_path: Path, task: str, metric: str) -> None:
    result = train(experiment(), "shapes:61x67", tmp_path / "run", task=task, device="cpu")
    assert result.completed
    assert 0 <= result.final[metric] <= 1
    model, about = load_model(tmp_path / "run" / "model")
    assert isinstance(model, DetrWithMasks)
    assert len(about.categories) == {"panoptic": 6, "instance": 3}[task]


def test_a_trained_detector_gets_a_mask_head(tmp_path: Path) -> None:
    boxes = override(experiment(), {"model.mask_head": False, "training.evaluate_every": 0})
    train(boxes, "shapes:61x67", tmp_path / "boxes", task="detection", device="cpu")
    detector, _ = load_model(tmp_path / "boxes" / "model")
    categories = open_dataset("shapes", "val", "panoptic").categories
    model = build_model(MODEL, len(categories))
    assert isinstance(model, DetrWithMasks)
    random = {name: value.clone() for name, value in model.state_dict().items()}
    text = load_initial(model, MODEL, categories, tmp_path / "boxes" / "model")
    assert "3 of 6 categories" in text
    heads = model.detr.query_decoder.heads.classes.weight
    theirs = detector.state_dict()["query_decoder.heads.classes.weight"]
    torch.testing.assert_close(heads[[0, 1, 2, 6]], theirs)  # and "no object"
    assert torch.equal(heads[3:6], random["detr.query_decoder.heads.classes.weight"][3:6])
    assert torch.equal(model.pyramid.mask.weight, random["pyramid.mask.weight"])


def test_tasks_that_a_detr_is_trained_for() -> None:
    check_model(MODEL, "panoptic")
    check_model(replace(MODEL, mask_head=False), "detection")
    with pytest.raises(ConfigError, match=r"panoptic, instance, not detection; take model.mask_head=false"):
        check_model(MODEL, "detection")
    with pytest.raises(ConfigError, match=r"for detection, not panoptic; take model.mask_head=true"):
        check_model(replace(MODEL, mask_head=False), "panoptic")
    with pytest.raises(ConfigError, match=r"not semantic; take another preset"):
        check_model(MODEL, "semantic")


def test_the_backbone_inside_the_detector_has_its_own_rate() -> None:
    groups = parameter_groups(build_model(MODEL, 2), TrainingConfig())
    inside = {name for group in groups if group.in_backbone for name in group.names}
    assert inside
    assert all(name.startswith("detr.backbone.") for name in inside)
