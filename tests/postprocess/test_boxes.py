import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from unimask.config.images import PostprocessConfig
from unimask.postprocess.boxes import panoptic, postprocess_boxes, postprocess_panoptic
from unimask.structures import BoxMaskPrediction, BoxPrediction, Categories, Placement


def placed(size: tuple[int, int]) -> Placement:
    return Placement(original=size, resized=(64, 96), canvas=(64, 96))


def test_boxes_are_those_of_the_original(golden: Path) -> None:
    stored = load_file(golden / "detr_small.safetensors")
    sizes = json.loads((golden / "detr_small.json").read_text())["postprocess"]["target_sizes_hw"]
    prediction = BoxPrediction(
        class_logits=stored["pred.1.class_logits"][None], boxes=stored["pred.1.boxes"][None]
    )
    for image, (height, width) in enumerate(sizes):
        found = postprocess_boxes(prediction, image, placed((height, width)), 0.0)
        scores, labels = stored[f"postprocess.{image}.scores"], stored[f"postprocess.{image}.labels"]
        order = scores.argsort(descending=True, stable=True)
        torch.testing.assert_close(found.scores, scores[order], atol=1e-5, rtol=0)
        assert torch.equal(found.labels, labels[order])
        expected = stored[f"postprocess.{image}.boxes"][order]
        torch.testing.assert_close(found.boxes, expected, atol=1e-3, rtol=1e-5)


def test_the_threshold_leaves_out_what_is_below_it() -> None:
    logits = torch.tensor([[4.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 9.0]])
    boxes = torch.tensor([0.5, 0.25, 1.0, 0.5]).expand(1, 1, 3, 4)
    prediction = BoxPrediction(class_logits=logits[None, None], boxes=boxes)
    found = postprocess_boxes(prediction, 0, placed((10, 20)), 0.5)
    assert found.labels.tolist() == [0, 1]
    assert found.boxes.tolist() == [[0.0, 0.0, 20.0, 5.0]] * 2
    assert found.areas.tolist() == [100.0, 100.0]
    assert len(postprocess_boxes(prediction, 0, placed((10, 20)), 0.0)) == 3


@pytest.mark.parametrize("image", [0, 1])
def test_panoptic_ids_are_those_of_the_original(golden: Path, image: int) -> None:
    stored = load_file(golden / "detr_mask_head_small.safetensors")
    facts = json.loads((golden / "detr_mask_head_small.json").read_text())["postprocess"]
    scores, labels = stored["post.class_logits"][image].softmax(1).max(1)
    kept = (labels != facts["num_classes"]) & (scores > facts["threshold"])
    masks = stored["post.mask_logits"][image][kept]
    if len(masks):
        masks = functional.interpolate(masks[None], facts["processed_sizes_hw"][image], mode="bilinear")[0]
    is_thing = tuple(label in facts["thing_classes"] for label in range(facts["num_classes"]))
    height, width = facts["target_sizes_hw"][image]
    found = panoptic(labels[kept], scores[kept], masks, is_thing, (height, width))
    expected = facts["panoptic"][image]["segments"]
    assert found.labels.tolist() == [segment["category_id"] for segment in expected]
    assert found.areas().tolist() == [segment["area"] for segment in expected]
    shift = 1 if expected else 0  # theirs start at 0, and have no void
    assert torch.equal(found.layers[0].int(), stored[f"post.panoptic.{image}.ids"] + shift)


def test_panoptic_segments_of_a_padded_picture() -> None:
    categories = Categories(
        names=("cat", "sky"), is_thing=(True, False), file_ids=(1, 2), colors=((9, 9, 9), (5, 5, 5))
    )
    logits = torch.full((1, 1, 4, 3), -9.0)
    for query, label in enumerate((0, 1, 1, 2)):
        logits[0, 0, query, label] = 9.0
    masks = torch.full((1, 4, 8, 8), -5.0)
    masks[0, 0, :, :2] = 5.0  # the cat, at the left
    masks[0, 1, :4, 2:] = 5.0  # the sky, twice
    masks[0, 2, 4:, 2:] = 5.0
    prediction = BoxMaskPrediction(
        class_logits=logits, boxes=torch.full((1, 1, 4, 4), 0.5), mask_logits=masks
    )
    placement = Placement(original=(32, 16), resized=(32, 16), canvas=(32, 32))
    found = postprocess_panoptic(prediction, 0, placement, categories, PostprocessConfig())
    assert found.size == (32, 16)
    assert found.labels.tolist() == [0, 1]
    assert found.areas().sum() == 32 * 16
    one = Categories(names=("cat",), is_thing=(True,), file_ids=(1,), colors=((9, 9, 9),))
    with pytest.raises(ValueError, match="2 classes predicted"):
        postprocess_panoptic(prediction, 0, placement, one, PostprocessConfig())
