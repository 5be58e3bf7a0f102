"""The per-pixel baselines: form of the prediction, its reading, its loss, and training them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from training.small_runs import SETTINGS, small_data, small_task

from unimask.checkpoints.images import ModelFile, load_model
from unimask.config.images import Experiment, PostprocessConfig
from unimask.config.models import ModelConfig
from unimask.config.overrides import override
from unimask.conversion import original
from unimask.errors import ConfigError, WeightsError
from unimask.inference.segmenter import Segmenter
from unimask.losses.build import build_criterion
from unimask.losses.pixels import VOID, category_dice, category_map
from unimask.models.build import build_model
from unimask.postprocess.masks import postprocess_masks
from unimask.presets.own_data import tiny
from unimask.structures import MaskPrediction, Placement, Segments
from unimask.training.progress import SilentReporter
from unimask.training.run import train

CLASSES = 6


def experiment(layers: int) -> Experiment:
    return override(
        tiny(),
        {
            "model.classification": "pixels",
            "model.pixel_decoder.kind": "pyramid",
            "model.pixel_decoder.strides": (32,),
            "model.pixel_decoder.layers": 0,
            "model.query_decoder.layers": layers,
            "model.query_decoder.memory_strides": (32,),
            "model.query_decoder.level_embedding": False,
            "model.query_decoder.visibility": "full",
            "model.query_decoder.query_features": "zeros",
            "model.query_decoder.predict_before_layers": False,
        },
    )


def model_config(layers: int) -> ModelConfig:
    return experiment(layers).model


def predict(layers: int) -> MaskPrediction:
    torch.manual_seed(4)
    model = build_model(model_config(layers), CLASSES).eval()
    return model(torch.randn(2, 3, 64, 96))


@pytest.mark.parametrize("layers", [0, 2])
def test_each_category_has_a_query_that_is_certain_of_it(layers: int) -> None:
    prediction = predict(layers)
    assert prediction.class_logits.shape == (max(1, layers), 2, CLASSES, CLASSES + 1)
    probabilities = prediction.class_logits.softmax(-1)
    torch.testing.assert_close(probabilities[-1, 0, :, :-1], torch.eye(CLASSES))
    assert prediction.per_pixel


@pytest.mark.parametrize("layers", [0, 2])
@torch.no_grad()
def test_reading_gives_each_pixel_its_best_category(layers: int) -> None:
    prediction, data = predict(layers), small_task("semantic")
    placement = Placement(original=(64, 96), resized=(64, 96), canvas=(64, 96))
    found = postprocess_masks(prediction, 1, placement, data.categories, PostprocessConfig(), "semantic")
    best = placement.restore(prediction.mask_logits()[1]).argmax(dim=0)
    labels = found.labels[found.layers[0].long() - 1]
    assert (labels == best).float().mean() > 0.999  # ties of rounding aside
    assert len(found) > 1


@pytest.mark.parametrize("offset", [0.0, 100.0])  # which a softmax does not see, and a sigmoid would
@pytest.mark.parametrize("resize_classes", [False, True])
@torch.no_grad()
def test_scores_are_the_mean_softmax_of_the_pixels(resize_classes: bool, offset: float) -> None:
    prediction, data = predict(0), small_task("semantic")
    torch.manual_seed(5)
    features = torch.randn_like(prediction.mask_features)
    features[:, :, 0], embeddings = 1, prediction.mask_embeddings.clone()
    embeddings[..., 0] += offset
    shifted = replace(prediction, mask_features=features, mask_embeddings=embeddings)
    placement = Placement(original=(128, 192), resized=(64, 96), canvas=(64, 96))
    config = PostprocessConfig(resize_classes=resize_classes)
    found = postprocess_masks(shifted, 1, placement, data.categories, config, "semantic")
    logits = torch.einsum("qc,chw->qhw", embeddings[0, 1].double(), features[0, 1].double())[None]
    logits = resized(logits, placement.canvas)
    if resize_classes:
        values = resized(logits.softmax(dim=1), placement.original)[0]
    else:
        values = resized(logits, placement.original)[0].softmax(dim=0)
    highest, best = values.max(dim=0)
    labels = found.labels[found.layers[0].long() - 1]
    assert (labels == best).float().mean() > 0.999  # ties of rounding aside
    scores = [float(highest[best == label].mean()) for label in found.labels]
    torch.testing.assert_close(found.scores.double(), torch.tensor(scores).double(), atol=1e-3, rtol=0)


def resized(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return functional.interpolate(maps, size, mode="bilinear", align_corners=False)


def test_dice_of_the_categories_counts_each_alike_and_no_void() -> None:
    labels = torch.tensor([[[0, 0, 0, 0, 0, 0, 1, VOID]]])
    right = torch.nn.functional.one_hot(labels.clamp(min=0), 3).movedim(-1, 1) * 100.0
    assert category_dice(right, labels) == pytest.approx(0.0)
    only_first = torch.tensor([100.0, 0, 0])[None, :, None, None].expand(1, 3, 1, 8)
    # 6 of 7 pixels are right: 2 * 6 / (7 + 6) for the first, 0 for the second, and the third is not shown
    assert category_dice(only_first, labels) == pytest.approx(1 - (12 / 13 + 0) / 2)
    changed = only_first.clone()
    changed[..., -1] = -100 * changed[..., -1]
    assert category_dice(changed, labels) == category_dice(only_first, labels)
    assert category_dice(only_first, torch.full_like(labels, VOID)) == 0


def test_dice_of_the_categories_is_a_term_where_it_has_a_weight() -> None:
    experiment = override(tiny(), {"losses.class_weight": 1.0, "losses.category_dice_weight": 2.0})
    criterion = build_criterion(experiment.losses, CLASSES, kind="pixels")
    assert criterion.weights == {"pixels": 1.0, "category_dice": 2.0}


def test_the_loss_is_cross_entropy_at_every_pixel_that_has_a_category() -> None:
    prediction = predict(2)
    layer = torch.zeros(1, 64, 96, dtype=torch.int16)
    layer[0, :20], layer[0, 20:41, 7:] = 1, 2
    target = Segments(
        layers=layer,
        labels=torch.tensor([4, 1]),
        scores=torch.ones(2),
        is_crowd=torch.zeros(2, dtype=torch.bool),
    )
    empty = replace(
        target,
        layers=torch.zeros_like(layer),
        labels=target.labels[:0],
        scores=target.scores[:0],
        is_crowd=target.is_crowd[:0],
    )
    labels = category_map(target)
    assert labels[0, 0] == 4
    assert labels[30, 50] == 1
    assert labels[63, 0] == VOID
    criterion = build_criterion(override(tiny(), {"losses.class_weight": 3.0}).losses, CLASSES, kind="pixels")
    losses = criterion(prediction, (target, empty), torch.rand)
    assert losses.weights == {"pixels": 3.0}
    for index in range(2):
        logits = functional.interpolate(
            prediction.mask_logits(index), (64, 96), mode="bilinear", align_corners=False
        )[0]
        expected = functional.cross_entropy(logits[None], labels[None], ignore_index=VOID)
        torch.testing.assert_close(losses.terms["pixels"][index], expected)
    losses.total.backward()
    nothing = criterion(prediction, (empty, empty), torch.rand)
    assert nothing.total == 0


def test_where_segments_overlap_the_first_layer_counts() -> None:
    layers = torch.zeros(2, 3, 4, dtype=torch.int16)
    layers[0, 0], layers[1, :2] = 1, 2
    target = Segments(
        layers=layers,
        labels=torch.tensor([5, 3]),
        scores=torch.ones(2),
        is_crowd=torch.zeros(2, dtype=torch.bool),
    )
    assert category_map(target)[:, 0].tolist() == [5, 3, VOID]


@pytest.mark.parametrize("layers", [0, 1])
def test_training_and_predicting(layers: int, tmp_path: Path) -> None:
    changes = {"training.steps": 3, "training.evaluate_every": 3, "data.crop": [64, 64]}
    settings = override(experiment(layers), SETTINGS | changes)
    with small_data():
        result = train(
            settings, "shapes", tmp_path / "run", task="semantic", device="cpu", reporter=SilentReporter()
        )
    assert result.completed
    assert "mIoU" in result.final
    model, model_file = load_model(result.output / "best")
    segmenter = Segmenter(model, model_file)
    picture = torch.randint(0, 255, (3, 53, 67), dtype=torch.uint8)
    (found,) = segmenter.find([picture], "semantic")
    assert found.size == (53, 67)
    # mirrored and not, queries of both lie one after the other; the mean of both is a probability, too
    (twice,) = Segmenter(model, model_file).with_tta(["flip"]).find([picture], "semantic")
    assert twice.scores.max() <= 1
    assert twice.scores.min() > 1 / (len(model_file.categories) + 1)
    with pytest.raises(ConfigError, match="does not know 'panoptic'; it knows: semantic"):
        segmenter.find([picture], "panoptic")
    with pytest.raises(WeightsError, match="classification is 'pixels'"):
        original.MASKFORMER.write(model, model_file)
    assert isinstance(model_file, ModelFile)


def test_other_tasks_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trained for semantic, not instance"):
        train(experiment(1), "shapes", tmp_path / "run", task="instance", device="cpu")
    assert not (tmp_path / "run").exists()
