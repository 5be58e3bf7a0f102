"""Predicting with an EoMT: squares with black padding, tiles, test-time augmentation, the prepared copy."""

import pytest
import torch

from unimask.checkpoints.images import ModelFile
from unimask.config.overrides import override
from unimask.data.category_tables import load_categories
from unimask.data.placing import batch_images, placement_for
from unimask.errors import ConfigError
from unimask.inference.segmenter import Segmenter
from unimask.models.build import Model, build_model
from unimask.models.optimize import prepare_for_inference
from unimask.presets.eomt import eomt_tiny
from unimask.structures import Placement

KINDS = ("dinov2", "dinov3")


def random_model(kind: str, **changes: object) -> tuple[Model, ModelFile]:
    settings = {
        "model.backbone.kind": kind,
        "postprocess.object_threshold": 0.05,
        "postprocess.instance_threshold": 0.01,
        **changes,
    }
    experiment = override(eomt_tiny(), settings)
    categories = load_categories("cityscapes")
    torch.manual_seed(3)
    model = build_model(experiment.model, len(categories)).eval()
    about = ModelFile(
        experiment=experiment, task="panoptic", categories=categories, licence="none", provenance="random"
    )
    return model, about


def image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (1, 3, 4, 5), generator=generator).float()
    resized = torch.nn.functional.interpolate(coarse, (height, width), mode="nearest")
    return resized[0].to(torch.uint8)


@pytest.mark.parametrize(
    ("size", "resized"), [((128, 64), (64, 32)), ((50, 100), (32, 64)), ((31, 31), (64, 64))], ids=str
)
def test_an_image_lies_in_a_square_with_black_padding(
    size: tuple[int, int], resized: tuple[int, int]
) -> None:
    _, about = random_model("dinov2")
    data, backbone = about.experiment.data, about.experiment.model.backbone
    placement = placement_for(size, data)
    assert placement == Placement(original=size, resized=resized, canvas=(64, 64))
    batch = batch_images([image(*size)], [placement], backbone.image_mean, backbone.image_std, data.padding)
    black = -torch.tensor(backbone.image_mean) / torch.tensor(backbone.image_std)
    outside = batch.pixels[0, :, ~batch.valid[0]]
    torch.testing.assert_close(outside, black[:, None].expand_as(outside))
    plain = batch_images([image(*size)], [placement], backbone.image_mean, backbone.image_std)
    assert not plain.pixels[0, :, ~plain.valid[0]].any()
    inside = (..., slice(resized[0]), slice(resized[1]))
    assert torch.equal(plain.pixels[inside], batch.pixels[inside])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["masked", "annealed"])
def test_the_prepared_copy_predicts_as_the_model(kind: str, attention: str) -> None:
    model, _ = random_model(kind, **{"model.attention": attention, "model.backbone.recompute": True})
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        expected = model(pixels)
        found = prepare_for_inference(model)(pixels)
        with torch.autocast("cpu", torch.bfloat16):
            reduced = prepare_for_inference(model, torch.bfloat16)(pixels)
    assert len(expected.class_logits) == (4 if attention == "masked" else 1)
    torch.testing.assert_close(found.class_logits, expected.class_logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.mask_logits(), expected.mask_logits(), atol=1e-4, rtol=0)
    first = {"masked": 0, "annealed": -1}[attention]  # later ones depend on masks that rounding may change
    difference = (reduced.mask_logits(first).float() - expected.mask_logits(first)).abs()
    assert difference.mean() < 0.05 * expected.mask_logits(first).std()


@pytest.mark.parametrize("kind", KINDS)
def test_every_task_whole_in_tiles_and_augmented(kind: str) -> None:
    segmenter = Segmenter(*random_model(kind))
    images = [image(61, 83), image(40, 97, seed=1), image(61, 83, seed=2)]
    for task in ("panoptic", "instance", "semantic"):
        alone = [next(iter(segmenter.find([one], task))) for one in images]
        together = list(segmenter.find(images, task, batch_size=3))
        for one, other, given in zip(alone, together, images, strict=True):
            assert one.size == tuple(given.shape[1:])
            assert (one.layers == other.layers).float().mean() > 0.999
        for changed in (segmenter.with_tiles(48, 16), segmenter.with_tta(["flip"])):
            (found,) = changed.find(images[:1], task)
            assert found.size == (61, 83)


def test_other_scales_are_for_rotary_positions() -> None:
    with pytest.raises(ConfigError, match="tta: this model takes squares of 64 only; take flip"):
        Segmenter(*random_model("dinov2")).with_tta(["flip", "scales"])
    segmenter = Segmenter(*random_model("dinov3")).with_tta(["scales"])
    (found,) = segmenter.find([image(61, 83)], "semantic")
    assert found.size == (61, 83)


def test_sliding_windows_are_averaged() -> None:
    view = {"kind": "sliding_window", "size": 64}
    resize = {"kind": "short_side", "size": 64, "longest": 2048}
    model, about = random_model("dinov2", **{"data.view": view, "data.resize": resize})
    segmenter = Segmenter(model, about)
    images = [image(80, 200), image(64, 64, seed=1), image(150, 90, seed=2)]
    alone = [next(iter(segmenter.find([one], "semantic"))) for one in images]
    together = list(segmenter.find(images, "semantic", batch_size=3))
    for one, other, given in zip(alone, together, images, strict=True):
        assert one.size == tuple(given.shape[1:])
        assert (one.layers == other.layers).float().mean() > 0.999
    whole = Segmenter(*random_model("dinov2", **{"postprocess.resize_classes": True}))
    (expected,) = whole.find(images[1:2], "semantic")  # one window is the whole image
    assert torch.equal(expected.layers, alone[1].layers)
    (tiled,) = segmenter.with_tiles(48, 16).find(images[:1], "panoptic")
    assert tiled.size == (80, 200)
    with pytest.raises(ConfigError, match=r"sliding windows are joined by averaging .* for panoptic"):
        segmenter.find(images, "panoptic")


def test_the_windows_of_learned_positions_have_their_size() -> None:
    with pytest.raises(ConfigError, match=r"data\.view\.size: the model has positions .* got 48, take 64"):
        random_model("dinov2", **{"data.view": {"kind": "sliding_window", "size": 48}})
