import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from losses.loss_inputs import (
    CLASSES,
    Generator,
    leaves,
    random_prediction,
    random_targets,
    slow_losses,
    stripes,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from unimask.config.training import LossConfig
from unimask.losses import mask_comparison as masks_file
from unimask.losses.build import build_criterion
from unimask.structures import Losses, MaskPrediction

SIZE, CANVAS = (11, 13), (44, 52)
SMALL = LossConfig(points=101)


def gradients(losses: Losses, prediction) -> tuple[Tensor, ...]:
    return torch.autograd.grad(losses.total, leaves(prediction))


@pytest.mark.parametrize("counts", [(3, 4), (0, 5), (9, 1)], ids=str)
@pytest.mark.parametrize("points", [23, 401], ids=["fewer points than cells", "more"])
def test_losses_and_gradients_are_those_of_dense_masks(counts: tuple[int, int], points: int) -> None:
    criterion = build_criterion(LossConfig(points=points), CLASSES)
    prediction, targets = random_prediction(3, 2, 6, SIZE), random_targets(counts, CANVAS)
    losses = criterion(prediction, targets, Generator(0))
    expected = slow_losses(criterion, prediction, targets, Generator(0))
    assert list(losses.terms) == ["class", "mask", "dice"]
    for name, values in losses.terms.items():
        assert values.shape == (3,)
        torch.testing.assert_close(values, expected[name], rtol=1e-5, atol=1e-6)
    actual = gradients(losses, prediction)
    other = gradients(Losses(terms=expected, weights={"class": 2.0, "mask": 5.0, "dice": 5.0}), prediction)
    for gradient, expected_gradient in zip(actual, other, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def test_the_size_of_the_groups_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    criterion = build_criterion(SMALL, CLASSES)
    prediction, targets = random_prediction(2, 3, 8, SIZE), random_targets((7, 0, 5), CANVAS)
    at_once = criterion(prediction, targets, Generator(0))
    wanted = gradients(at_once, prediction)
    for values in (1, 700):  # one pair at a time, two at a time
        monkeypatch.setattr(masks_file, "VALUES_AT_ONCE", values)
        losses = criterion(prediction, targets, Generator(0))
        for name in losses.terms:
            torch.testing.assert_close(losses.terms[name], at_once.terms[name])
        for gradient, expected in zip(gradients(losses, prediction), wanted, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_weights_and_total() -> None:
    config = LossConfig(class_weight=3.0, mask_weight=7.0, dice_weight=11.0, points=101)
    losses = build_criterion(config, CLASSES)(
        random_prediction(2, 1, 6, SIZE), random_targets((3,), CANVAS), Generator(0)
    )
    assert losses.weights == {"class": 3.0, "mask": 7.0, "dice": 11.0}
    expected = sum(losses.weights[name] * values.sum() for name, values in losses.terms.items())
    torch.testing.assert_close(losses.total, expected)


def test_the_same_draws_give_the_same_losses() -> None:
    criterion = build_criterion(SMALL, CLASSES)
    prediction, targets = random_prediction(2, 2, 6, SIZE), random_targets((3, 4), CANVAS)
    first, again, other = (criterion(prediction, targets, Generator(seed)) for seed in (0, 0, 1))
    for name in ("mask", "dice"):
        assert torch.equal(first.terms[name], again.terms[name])
        assert not torch.equal(first.terms[name], other.terms[name])
    state = torch.random.get_rng_state()
    criterion(prediction, targets, Generator(0))
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("sampling", ["points", "dense"])
@pytest.mark.parametrize("deep_supervision", [True, False])
def test_a_batch_without_objects_trains(sampling, deep_supervision: bool) -> None:
    config = LossConfig(points=101, sampling=sampling, deep_supervision=deep_supervision)
    prediction = random_prediction(3, 2, 6, SIZE)
    losses = build_criterion(config, CLASSES)(prediction, random_targets((0, 0), CANVAS), Generator(0))
    assert not losses.terms["mask"].any()
    assert not losses.terms["dice"].any()
    assert (losses.terms["class"] > 0).all()
    losses.total.backward()
    assert prediction.class_logits.grad is not None
    assert prediction.class_logits.grad.abs().sum() > 0
    for mask_leaf in (prediction.mask_embeddings, prediction.mask_features):
        assert mask_leaf.grad is not None  # every parameter takes part, as distributed training demands
        assert not mask_leaf.grad.any()


@pytest.mark.parametrize("sampling", ["points", "dense", "pixels"])
def test_each_prediction_may_have_its_own_mask_features(sampling) -> None:
    config = LossConfig(points=101, sampling=sampling)
    shared = random_prediction(3, 2, 6, SIZE, channels=6)
    blocks = torch.eye(3)[:, None, None, :, None]  # channels of prediction i are those of block i
    own = MaskPrediction(
        class_logits=shared.class_logits,
        mask_embeddings=shared.mask_embeddings,
        mask_features=torch.stack([shared.features() * factor for factor in (0.5, -1.0, 2.0)]).detach(),
    )
    together = MaskPrediction(
        class_logits=own.class_logits,
        mask_embeddings=(own.mask_embeddings[:, :, :, None] * blocks).flatten(3),
        mask_features=own.mask_features.transpose(0, 1).flatten(1, 2)[None],
    )
    targets = random_targets((3, 4), CANVAS)
    criterion = build_criterion(config, CLASSES)
    losses, expected = (criterion(one, targets, Generator(5)) for one in (own, together))
    for name, values in losses.terms.items():
        torch.testing.assert_close(values, expected.terms[name], atol=1e-5, rtol=1e-4)
    assert len(set(losses.terms["mask"].tolist())) == 3
    assert bool(own.finite().all())


@pytest.mark.parametrize("counts", [(3, 0), (0, 3)])
def test_images_without_objects_get_no_mask_gradient(counts: tuple[int, int]) -> None:
    prediction = random_prediction(2, 2, 6, SIZE)
    losses = build_criterion(SMALL, CLASSES)(prediction, random_targets(counts, CANVAS), Generator(0))
    _, embeddings, features = gradients(losses, prediction)
    for image, count in enumerate(counts):
        assert bool(embeddings[:, image].any()) == bool(features[0, image].any()) == (count > 0)


def test_only_the_final_prediction_without_deep_supervision() -> None:
    prediction, targets = random_prediction(3, 2, 6, SIZE), random_targets((3, 4), CANVAS)
    deep = build_criterion(SMALL, CLASSES)(prediction, targets, Generator(0))
    config = dataclasses.replace(SMALL, deep_supervision=False)
    final = build_criterion(config, CLASSES)(prediction, targets, Generator(0))
    for name, values in final.terms.items():
        assert values.shape == (1,)
        assert torch.equal(values[-1], deep.terms[name][-1])
    class_logits, embeddings, _ = gradients(final, prediction)
    assert not class_logits[:2].any()
    assert not embeddings[:2].any()
    assert class_logits[2].any()


def test_every_cell_is_a_point_of_the_dense_ablation() -> None:
    config = LossConfig(sampling="dense")
    prediction, (target,) = random_prediction(1, 1, 1, SIZE), random_targets((1,), CANVAS)
    losses = build_criterion(config, CLASSES)(prediction, (target,), Generator(0))
    labels = torch.nn.functional.interpolate(target.masks()[None].float(), SIZE, mode="bilinear")[0]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(prediction.mask_logits()[0], labels)
    torch.testing.assert_close(losses.terms["mask"][0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_predictions_are_measured_in_float32(dtype: torch.dtype) -> None:
    criterion = build_criterion(SMALL, CLASSES)
    prediction, targets = random_prediction(2, 2, 6, SIZE), random_targets((3, 4), CANVAS)
    low = dataclasses.replace(
        prediction,
        class_logits=prediction.class_logits.to(dtype),
        mask_embeddings=prediction.mask_embeddings.to(dtype) * 30,
        mask_features=prediction.mask_features.to(dtype) * 300,  # logits beyond the range of float16
    )
    with torch.autocast("cpu", dtype=dtype):
        losses = criterion(low, targets, Generator(0))
    same = dataclasses.replace(
        low,
        class_logits=low.class_logits.float(),
        mask_embeddings=low.mask_embeddings.float(),
        mask_features=low.mask_features.float(),
    )
    expected = criterion(same, targets, Generator(0))
    for name, values in losses.terms.items():
        assert values.dtype == torch.float32
        assert torch.isfinite(values).all()
        assert torch.equal(values, expected.terms[name])
    losses.total.backward()
    for leaf in leaves(prediction):
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()


def test_masks_are_counted_over_all_processes() -> None:
    seen = []

    def average(count: Tensor) -> Tensor:
        seen.append(float(count))
        return torch.tensor(14.0)

    prediction, targets = random_prediction(2, 2, 6, SIZE), random_targets((9, 1), CANVAS)
    alone = build_criterion(SMALL, CLASSES)(prediction, targets, Generator(0))
    together = build_criterion(SMALL, CLASSES, average=average)(prediction, targets, Generator(0))
    assert seen == [10.0]  # targets, not pairs; once for all predictions
    for name, factor in {"class": 1.0, "mask": 10 / 14, "dice": 10 / 14}.items():
        torch.testing.assert_close(together.terms[name], alone.terms[name] * factor)


def test_fewer_masks_than_processes_count_as_one() -> None:
    prediction, targets = random_prediction(1, 1, 6, SIZE), random_targets((1,), CANVAS)
    alone = build_criterion(SMALL, CLASSES)(prediction, targets, Generator(0))
    few = build_criterion(SMALL, CLASSES, average=lambda count: count / 4)(prediction, targets, Generator(0))
    assert torch.equal(few.terms["mask"], alone.terms["mask"])


@pytest.mark.parametrize("index", [0, 1, 2], ids=["class logits", "embeddings", "features"])
def test_a_diverged_prediction_says_so_in_the_loss(index: int) -> None:
    prediction, targets = random_prediction(2, 2, 6, SIZE), random_targets((3, 4), CANVAS)
    with torch.no_grad():
        leaves(prediction)[index][:] = float("nan")
    losses = build_criterion(SMALL, CLASSES)(prediction, targets, Generator(0))
    assert not torch.isfinite(losses.total)


def test_targets_must_be_as_many_as_pictures() -> None:
    with pytest.raises(ValueError, match="shorter"):
        build_criterion(SMALL, CLASSES)(
            random_prediction(1, 2, 6, SIZE), random_targets((3,), CANVAS), Generator(0)
        )


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.untyped_storage().nbytes() // value.element_size())
        return result


@contextmanager
def kept_for_backward(storages: dict[int, int]) -> Iterator[None]:
    """Notes the bytes of every storage that the graph keeps."""

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


@pytest.mark.parametrize("sampling", ["points", "dense"])
def test_no_large_tensor_is_made(sampling) -> None:
    canvas, size, queries, segments, predictions = (260, 252), (65, 63), 97, 43, 3
    targets = (stripes(segments, canvas), stripes(segments, canvas))
    prediction = random_prediction(predictions, 2, queries, size)
    largest = LargestTensor()
    criterion = build_criterion(LossConfig(points=499, sampling=sampling), CLASSES)
    with largest:
        criterion(prediction, targets, Generator(0)).total.backward()
    assert largest.elements < segments * canvas[0] * canvas[1] / 3  # no stack of masks
    assert largest.elements < predictions * 2 * queries * size[0] * size[1] / 3  # no logits of all queries
    maps_of_one_picture = queries * size[0] * size[1]
    assert largest.elements <= maps_of_one_picture


def test_what_is_kept_for_the_backward_pass_grows_with_points_only() -> None:
    canvas, size, points = (260, 252), (65, 63), 101
    bytes_of = {}
    for segments in (11, 41):
        storages: dict[int, int] = {}
        prediction = random_prediction(2, 1, 53, size)
        criterion = build_criterion(LossConfig(points=points), CLASSES)
        with kept_for_backward(storages):
            losses = criterion(prediction, (stripes(segments, canvas),), Generator(0))
        bytes_of[segments] = sum(storages.values())
        assert torch.isfinite(losses.total)
    per_pair = (bytes_of[41] - bytes_of[11]) / (30 * 2 * 4)
    assert per_pair < 7 * points  # a map would be 40 times as large


def test_only_the_total_can_be_differentiated() -> None:
    criterion = build_criterion(SMALL, CLASSES)
    prediction, targets = random_prediction(2, 2, 6, SIZE), random_targets((3, 4), CANVAS)
    losses = criterion(prediction, targets, Generator(0))
    with pytest.raises(RuntimeError, match="only the weighted total"):
        torch.autograd.grad(losses.terms["mask"].sum(), leaves(prediction))
    wanted = gradients(criterion(prediction, targets, Generator(0)), prediction)
    scaled = criterion(prediction, targets, Generator(0)).total * -3
    for gradient, expected in zip(torch.autograd.grad(scaled, leaves(prediction)), wanted, strict=True):
        torch.testing.assert_close(gradient, -3 * expected)
    with torch.no_grad():
        assert not criterion(prediction, targets, Generator(0)).total.requires_grad
