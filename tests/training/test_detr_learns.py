"""A small DETR finds the shapes of a few pictures after some steps on them: all its parts work together."""

import torch

from unimask.data.open import open_dataset
from unimask.data.placing import batch_images
from unimask.losses.build import build_criterion
from unimask.metrics.average_precision import BoxAveragePrecision
from unimask.models.build import build_model
from unimask.ops.boxes import xyxy_to_cxcywh
from unimask.postprocess.boxes import postprocess_boxes
from unimask.presets.detr import detr_tiny
from unimask.structures import BoxTargets, Placement

SIDE = 64


def test_a_few_pictures_are_learned_by_heart() -> None:
    torch.manual_seed(0)
    experiment, dataset = detr_tiny(), open_dataset(f"shapes:{SIDE}x{SIDE}", "val", "detection")
    model, criterion = build_model(experiment.model, 3), build_criterion(experiment.losses, 3, kind="boxes")
    samples = [sample for sample in (dataset[index] for index in range(8)) if len(sample.truth) > 1][:3]
    placements = [Placement.fit((SIDE, SIDE), (SIDE, SIDE), 32) for _ in samples]
    images = batch_images([sample.image for sample in samples], placements, (123.0,) * 3, (58.0,) * 3)
    targets = tuple(
        BoxTargets(boxes=xyxy_to_cxcywh(sample.truth.boxes / SIDE), labels=sample.truth.labels)
        for sample in samples
    )
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    totals = []
    for _ in range(140):
        losses = criterion(model(images.pixels, images.valid), targets, torch.rand)
        optimizer.zero_grad()
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        totals.append(losses.total.item())
    assert totals[-1] < 0.1 * totals[0]
    metric = BoxAveragePrecision(dataset.categories)
    with torch.inference_mode():
        prediction = model.eval()(images.pixels, images.valid)
    for index, sample in enumerate(samples):
        metric.update(postprocess_boxes(prediction, index, placements[index], 0.0), sample.truth)
    assert metric.compute().as_dict()["AP50"] > 0.95
