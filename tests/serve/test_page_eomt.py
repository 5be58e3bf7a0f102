"""What the page tells of the blocks of an EoMT."""

import pytest
import torch

from unimask.checkpoints.images import ModelFile
from unimask.config.overrides import override
from unimask.data.category_tables import load_categories
from unimask.inference.segmenter import Segmenter
from unimask.models.build import build_model
from unimask.presets.eomt import eomt_tiny
from unimask.serve.cached import offers_of, predict_cached
from unimask.serve.layers import describe, query_of, watch, why_not


@pytest.mark.parametrize("attention", ["open", "masked", "annealed"])
@pytest.mark.parametrize("kind", ["dinov2", "dinov3"])
def test_the_blocks_of_a_query(attention: str, kind: str) -> None:
    experiment = override(eomt_tiny(), {"model.attention": attention, "model.backbone.kind": kind})
    categories = load_categories("cityscapes")
    torch.manual_seed(0)
    model = build_model(experiment.model, len(categories)).eval()
    about = ModelFile(
        experiment=experiment, task="panoptic", categories=categories, licence="none", provenance="random"
    )
    segmenter = Segmenter(model, about)
    assert why_not(segmenter) == ""
    image = torch.randint(0, 256, (3, 61, 83), dtype=torch.uint8)
    (seen,) = predict_cached(segmenter, [image], [""], 1, lambda: None)
    watched = watch(segmenter, image, seen.tiles[0])
    assert [step.stride for step in watched.steps] == [0, 8, 8, 8]
    assert len(watched.prediction.class_logits) == 4
    final = segmenter.predictor.forward(segmenter.predictor.preprocess([image]))
    torch.testing.assert_close(watched.prediction.mask_logits(), final.mask_logits(), atol=1e-4, rtol=0)
    for step in watched.steps[1:]:
        assert step.visible.shape == step.shares.shape == (13, 8, 8)
        sums = step.shares.flatten(1).sum(1)
        assert bool((sums <= 1 + 1e-4).all())  # queries, class token and registers have the rest
        assert bool((step.shares[~step.visible] == 0).all())
        assert bool(step.visible.all()) == (attention != "masked")
    query = query_of(watched, torch.ones(61, 83, dtype=torch.bool), 0)
    told = describe(watched, query, categories)
    assert told["masked"] == (attention == "masked")
    assert len(told["steps"]) == 4
    assert told["extent"] == [64 / 64, 64 / 47]


def test_a_sliding_window_is_shown_where_it_lies_in_the_file() -> None:
    view = {"kind": "sliding_window", "size": 64}
    resize = {"kind": "short_side", "size": 64, "longest": 2048}
    experiment = override(eomt_tiny(), {"data.view": view, "data.resize": resize})
    categories = load_categories("cityscapes")
    model = build_model(experiment.model, len(categories)).eval()
    about = ModelFile(
        experiment=experiment, task="semantic", categories=categories, licence="none", provenance="random"
    )
    segmenter = Segmenter(model, about)
    offers = offers_of(segmenter)
    assert [task for task, offer in offers.items() if not offer.reason] == ["semantic"]
    image = torch.randint(0, 256, (3, 32, 50), dtype=torch.uint8)
    (seen,) = predict_cached(segmenter, [image], [""], 2, lambda: None)
    assert [one.box for one in seen.tiles] == [(0, 0, 32, 32), (18, 0, 50, 32)]
    mask = torch.zeros(32, 50, dtype=torch.bool)
    mask[8:24, 20:30] = True
    framed = seen.tiles[1].in_frame(mask)
    assert framed.shape == (64, 100)
    assert torch.equal(framed.nonzero().aminmax(dim=0).max, torch.tensor([47, 59]))
    watched = watch(segmenter, image, seen.tiles[1])
    told = describe(watched, query_of(watched, framed[seen.tiles[1].tile.window], 0), categories)
    assert (told["window"], told["extent"]) == ([18, 0, 32, 32], [1, 1])
