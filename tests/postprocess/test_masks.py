import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from unimask.config.images import PostprocessConfig
from unimask.config.tasks import Task
from unimask.ops.windows import ELEMENTS_AT_ONCE
from unimask.postprocess.masks import distinct, instance, panoptic, postprocess_masks
from unimask.postprocess.semantic import semantic
from unimask.structures import Categories, MaskPrediction, Placement, Segments

PLACEMENT = Placement(original=(61, 47), resized=(89, 69), canvas=(96, 96))
CATEGORIES = Categories(
    names=("cat", "dog", "grass"),
    is_thing=(True, True, False),
    file_ids=(7, 8, 9),
    colors=((1, 2, 3), (4, 5, 6), (7, 8, 9)),
)


def prediction(
    seed: int, queries: int = 11, size: tuple[int, int] = (24, 24), batch: int = 2
) -> MaskPrediction:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 5, 3, 5, generator=generator)
    return MaskPrediction(
        class_logits=4 * torch.randn(3, batch, queries, 4, generator=generator),
        mask_embeddings=3 * torch.randn(3, batch, queries, 5, generator=generator),
        mask_features=torch.nn.functional.interpolate(coarse, size, mode="bicubic")[None],
    )


def plain(given: MaskPrediction, image: int, placement: Placement) -> tuple[Tensor, Tensor]:
    """Class probabilities and full-size mask logits, the expensive way."""
    masks = placement.restore(given.mask_logits()[image])
    return given.class_logits[-1, image].softmax(dim=1), masks


def semantic_map(segments: Segments) -> Tensor:
    return segments.labels[segments.layers[0].long() - 1]


@pytest.mark.parametrize("seed", range(5))
def test_semantic_is_the_best_sum_over_queries(seed: int):
    given = prediction(seed)
    result = postprocess_masks(given, 1, PLACEMENT, CATEGORIES, PostprocessConfig(), "semantic")
    probabilities, masks = plain(given, 1, PLACEMENT)
    values = torch.einsum("qk,qhw->khw", probabilities[:, :-1], masks.sigmoid())
    assert torch.equal(semantic_map(result), values.argmax(dim=0))
    assert result.labels.tolist() == sorted(set(values.argmax(dim=0).flatten().tolist()))
    shares = (values / values.sum(dim=0)).amax(dim=0)
    expected = [shares[semantic_map(result) == label].mean() for label in result.labels]
    torch.testing.assert_close(result.scores, torch.stack(expected))


def test_class_maps_are_resized_where_the_settings_say_so():
    given = prediction(3)
    config = PostprocessConfig(resize_classes=True)
    result = postprocess_masks(given, 1, PLACEMENT, CATEGORIES, config, "semantic")
    on_canvas = torch.nn.functional.interpolate(given.mask_logits(), PLACEMENT.canvas, mode="bilinear")
    probabilities = given.class_logits[-1, 1].softmax(dim=1)[:, :-1]
    values = torch.einsum("qk,qhw->khw", probabilities, on_canvas[1].sigmoid())
    values = values[:, : PLACEMENT.resized[0], : PLACEMENT.resized[1]]
    values = torch.nn.functional.interpolate(values[None], PLACEMENT.original, mode="bilinear")[0]
    assert torch.equal(semantic_map(result), values.argmax(dim=0))
    before = postprocess_masks(given, 1, PLACEMENT, CATEGORIES, PostprocessConfig(), "semantic")
    assert (semantic_map(before) != semantic_map(result)).any()
    for task in ("panoptic", "instance"):  # the setting is of semantic results only
        one, other = (
            postprocess_masks(given, 1, PLACEMENT, CATEGORIES, each, task)
            for each in (config, PostprocessConfig())
        )
        assert torch.equal(one.layers, other.layers)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("thresholds", [(0.0, 0.0), (0.5, 0.3), (0.8, 0.8)])
def test_panoptic_follows_the_rule(seed: int, thresholds: tuple[float, float]):
    given = prediction(seed)
    config = PostprocessConfig(object_threshold=thresholds[0], overlap_threshold=thresholds[1])
    result = postprocess_masks(given, 0, PLACEMENT, CATEGORIES, config, "panoptic")
    expected, labels = slow_panoptic(*plain(given, 0, PLACEMENT), *thresholds)
    assert torch.equal(result.layers[0].long(), expected)
    assert result.labels.tolist() == labels


def slow_panoptic(
    probabilities: Tensor, masks: Tensor, object_threshold: float, overlap_threshold: float
) -> tuple[Tensor, list[int]]:
    """The rule, query by query and pixel by pixel, as the paper and the facts have it."""
    kept = [q for q, row in enumerate(probabilities) if row.argmax() != 3 and row.max() > object_threshold]
    layer, labels, stuff = torch.zeros(masks.shape[1:], dtype=torch.long), [], {}
    if not kept:
        return layer, labels
    weighted = torch.stack([probabilities[q].max() * masks[q].sigmoid() for q in kept])
    for position, query in enumerate(kept):
        won = weighted.argmax(dim=0) == position
        own = masks[query].sigmoid() >= 0.5
        if not own.any() or not (won & own).any() or won.sum() / own.sum() < overlap_threshold:
            continue
        label = int(probabilities[query].argmax())
        if label == 2 and label in stuff:
            layer[won & own] = stuff[label]
            continue
        labels.append(label)
        stuff[label] = len(labels)
        layer[won & own] = len(labels)
    return layer, labels


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [4, 17, 1000])
def test_instances_are_the_best_pairs_without_stuff(seed: int, count: int):
    given = prediction(seed)
    config = PostprocessConfig(max_instances=count, instance_threshold=0.0)
    result = postprocess_masks(given, 0, PLACEMENT, CATEGORIES, config, "instance")
    probabilities, masks = plain(given, 0, PLACEMENT)
    pairs = probabilities[:, :-1].flatten().argsort(descending=True)[:count]
    expected = {}
    for pair in pairs.tolist():
        query, label = divmod(pair, 3)
        if label != 2:
            mask = masks[query] > 0
            mean = masks[query].sigmoid()[mask].sum() / (mask.sum() + 1e-6)
            expected[label, mask.numpy().tobytes()] = float(probabilities[query, label] * mean)
    found = {
        (label, mask.numpy().tobytes()): score
        for label, mask, score in zip(result.labels.tolist(), result.masks(), result.scores.tolist())
    }
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, abs=1e-6)
    assert (result.scores.diff() <= 0).all()
    assert len(result) <= count


def test_overlapping_instances_share_few_layers():
    """Three masks: left half, right half, everything. Two layers hold them."""
    features = torch.full((2, 8, 8), -5.0)
    features[0, :, :4], features[1, :, 4:] = 5.0, 5.0
    features = torch.cat([features, torch.ones(1, 8, 8)])
    embeddings = torch.eye(3)
    logits = torch.tensor([[6.0, 0.0], [5.0, 0.0], [4.0, 0.0]])
    placement = Placement(original=(32, 32), resized=(32, 32), canvas=(32, 32))
    result = instance(logits, embeddings, features, placement, (True,))
    assert sorted(result.areas().tolist()) == [32 * 16, 32 * 16, 32 * 32]
    assert result.layers.shape[0] == 2
    assert result.scores.tolist() == sorted(result.scores.tolist(), reverse=True)


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_nothing_found(task: Task):
    given = prediction(0)
    config = PostprocessConfig(object_threshold=1.0, instance_threshold=1.0)
    result = postprocess_masks(given, 0, PLACEMENT, CATEGORIES, config, task)
    assert len(result) == 0
    assert result.layers.shape == (1, *PLACEMENT.original)
    assert not result.layers.any()


def test_an_instance_with_an_empty_mask_is_kept_with_score_0():
    features = -torch.ones(1, 8, 8)
    placement = Placement.fit((31, 29), (31, 29), 32)
    result = instance(torch.tensor([[3.0, 0.0]]), torch.ones(1, 1), features, placement, (True,))
    assert result.scores.tolist() == [0.0]
    assert result.areas().tolist() == [0]
    assert (
        len(
            instance(
                torch.tensor([[3.0, 0.0]]), torch.ones(1, 1), features, placement, (True,), threshold=0.1
            )
        )
        == 0
    )


def test_a_mask_in_the_padding_is_empty():
    features = -torch.ones(1, 8, 16)
    features[:, :, 12:] = 1
    placement = Placement.fit((31, 33), (31, 33), 32)
    result = instance(torch.tensor([[3.0, 0.0]]), torch.ones(1, 1), features, placement, (True,))
    assert result.areas().tolist() == [0]


def test_the_canvas_beyond_the_picture_does_not_matter():
    """Padding is cropped before the picture is resized, so its values never bleed into the picture."""
    given = prediction(4)
    placement = Placement(original=(29, 43), resized=(60, 88), canvas=(96, 96))
    wild = given.mask_features.clone()
    wild[..., 16:, :], wild[..., 23:] = 1e4, -1e4
    other = MaskPrediction(
        class_logits=given.class_logits, mask_embeddings=given.mask_embeddings, mask_features=wild
    )
    for task in ("panoptic", "instance", "semantic"):
        one, two = (
            postprocess_masks(p, 0, placement, CATEGORIES, PostprocessConfig(), task) for p in (given, other)
        )
        assert torch.equal(one.layers, two.layers)
        assert torch.equal(one.labels, two.labels)


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_mixed_precision_is_left_outside(task: Task):
    given = prediction(5)
    config = PostprocessConfig(object_threshold=0.3, overlap_threshold=0.1)
    expected = postprocess_masks(given, 0, PLACEMENT, CATEGORIES, config, task)
    with torch.autocast("cpu", torch.bfloat16):
        result = postprocess_masks(given, 0, PLACEMENT, CATEGORIES, config, task)
    assert torch.equal(result.layers, expected.layers)
    assert torch.equal(result.scores, expected.scores)
    half = MaskPrediction(
        class_logits=given.class_logits.bfloat16(),
        mask_embeddings=given.mask_embeddings.bfloat16(),
        mask_features=given.mask_features.bfloat16(),
    )
    assert postprocess_masks(half, 0, PLACEMENT, CATEGORIES, config, task).scores.dtype == torch.float32


def test_another_number_of_classes_is_an_error():
    one = Categories(names=("cat",), is_thing=(True,), file_ids=(1,), colors=((0, 0, 0),))
    with pytest.raises(ValueError, match="3 classes predicted, but there are 1"):
        postprocess_masks(prediction(0), 0, PLACEMENT, one, PostprocessConfig(), "panoptic")


class Largest(TorchDispatchMode):
    """Records the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_no_tensor_of_queries_times_pixels(task: Task):
    """100 queries on 1,001 x 999 pixels would be 100 million elements."""
    placement = Placement(original=(1001, 999), resized=(511, 510), canvas=(512, 512))
    given = prediction(6, queries=100, size=(128, 128), batch=1)
    config = PostprocessConfig(object_threshold=0.0, overlap_threshold=0.0, instance_threshold=0.5)
    with Largest() as largest:
        result = postprocess_masks(given, 0, placement, CATEGORIES, config, task)
    packed = result.layers.numel()
    assert largest.elements <= max(ELEMENTS_AT_ONCE, 100 * 128 * 128, packed, 1001 * 999)
    assert packed < 100 * 1001 * 999 / 2


def test_a_long_thin_picture():
    placement = Placement(original=(20_011, 3), resized=(20_011, 3), canvas=(20_032, 32))
    given = prediction(7, size=(5008, 8), batch=1)
    for task in ("panoptic", "instance", "semantic"):
        result = postprocess_masks(
            given, 0, placement, CATEGORIES, PostprocessConfig(object_threshold=0.2), task
        )
        assert result.size == (20_011, 3)


def test_functions_stand_alone():
    """Without a config: class logits, embeddings and features of one picture."""
    given = prediction(8)
    parts = given.class_logits[-1, 0], given.mask_embeddings[-1, 0], given.mask_features[0, 0], PLACEMENT
    assert semantic(*parts).layers.min() == 1
    assert panoptic(*parts, CATEGORIES.is_thing).layers.shape[0] == 1
    assert set(instance(*parts, CATEGORIES.is_thing).labels.tolist()) <= {0, 1}


def test_a_query_that_repeats_a_better_one_is_left_out() -> None:
    features = torch.full((4, 6, 10), -1.0)
    features[0, 1:5, 1:5] = 1.0  # 16 cells
    features[1, 1:5, 1:4] = 1.0  # 12 of them: IoU 0.75
    features[2, 1:5, 3:9] = 1.0  # IoU with the first 8 / 32
    rows = [[3.0, 0.0, 0.0], [5.0, 0.0, 0.0], [4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [3.0, 0.0, 0.0]]
    logits = torch.tensor(rows)  # the fourth is of another class, the last has an empty mask
    embeddings = torch.eye(4)[[0, 1, 2, 0, 3]] * 5
    assert distinct(logits, embeddings, features, 0.7).tolist() == [1, 2, 3, 4]
    assert distinct(logits, embeddings, features, 0.8).tolist() == [0, 1, 2, 3, 4]
    assert distinct(logits, embeddings, features, 0.2).tolist() == [1, 2, 3, 4]


def test_equal_masks_survive_the_overlap_rule_only_as_one() -> None:
    features = torch.full((1, 8, 8), -1.0)
    features[0, 2:6, 2:6] = 1.0
    prediction = MaskPrediction(
        class_logits=torch.tensor([[[[9.0, 0.0], [9.1, 0.0]]]]),
        mask_embeddings=torch.tensor([[[[8.0], [8.0]]]]),
        mask_features=features[None, None],
    )
    placement = Placement(original=(32, 32), resized=(32, 32), canvas=(32, 32))
    categories = Categories(names=("a",), is_thing=(True,), file_ids=(1,), colors=((0, 0, 0),))
    once = postprocess_masks(
        prediction, 0, placement, categories, PostprocessConfig(duplicate_iou=0.7), "instance"
    )
    twice = postprocess_masks(prediction, 0, placement, categories, PostprocessConfig(), "instance")
    assert (len(once), len(twice)) == (1, 2)
