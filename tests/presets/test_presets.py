import json

import pytest
import torch

from unimask.config.images import (
    DetrConfig,
    EomtConfig,
    Experiment,
    ShortSide,
    experiment_from_dict,
    experiment_to_dict,
)
from unimask.config.overrides import override
from unimask.losses.build import build_criterion
from unimask.models.build import build_model
from unimask.presets import PRESETS, description
from unimask.presets.ablation import ROWS, Row
from unimask.presets.own_data import tiny
from unimask.structures import Segments

CLASSES = 5


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_described_and_survive_json(name: str) -> None:
    experiment = PRESETS[name]()
    assert 20 < len(description(name)) <= 110
    assert experiment_from_dict(json.loads(json.dumps(experiment_to_dict(experiment)))) == experiment
    assert experiment == PRESETS[name]()


@pytest.mark.parametrize("name", PRESETS)
def test_models_of_presets_build(name: str) -> None:
    model = PRESETS[name]().model
    with torch.device("meta"):
        built = build_model(model, CLASSES)
    state = built.state_dict()
    if isinstance(model, DetrConfig):
        assert state["query_decoder.query_positions.weight"].shape == (model.queries, model.channels)
    elif isinstance(model, EomtConfig):
        assert state["queries.weight"].shape == (model.queries, model.backbone.channels)
        assert len(built.backbone.blocks) - built.first_query_block == model.query_blocks
    elif model.classification == "masks":
        queries = state["query_decoder.query_positions.weight"]
        assert queries.shape == (model.query_decoder.queries, model.query_decoder.channels)
    elif model.query_decoder.layers:
        assert len(state["query_decoder.query_positions.weight"]) == CLASSES
    else:
        assert state["query_decoder.weight"].shape == (CLASSES, model.pixel_decoder.mask_channels)


def test_the_default_experiment_is_that_of_the_paper() -> None:
    assert PRESETS["coco_panoptic_resnet50"]() == Experiment()
    assert PRESETS["coco_instance_resnet50"]() == Experiment()


def test_settings_that_differ_between_backbones() -> None:
    large = PRESETS["coco_panoptic_swin_large"]()
    assert (large.model.query_decoder.queries, large.training.steps) == (200, 737_500)
    assert large.model.backbone.drop_path_rate == 0.3
    assert PRESETS["ade20k_semantic_swin_large"]().model.query_decoder.queries == 100
    assert PRESETS["ade20k_semantic_swin_large"]().data.crop == (640, 640)
    assert PRESETS["ade20k_semantic_swin_tiny"]().data.crop == (512, 512)
    assert not PRESETS["ade20k_semantic_resnet101"]().model.backbone.freeze_norm
    assert PRESETS["ade20k_semantic_resnet50"]().model.backbone.freeze_norm


def test_settings_that_differ_between_data_sets() -> None:
    ade20k = PRESETS["ade20k_semantic_resnet50"]()
    assert ade20k.data.resize == ShortSide(size=512, longest=2048)
    assert (ade20k.data.jitter.low, ade20k.data.jitter.high) == (0.5, 2.0)
    assert (ade20k.training.schedule, ade20k.training.steps) == ("poly", 160_000)
    cityscapes = PRESETS["cityscapes_panoptic_swin_tiny"]()
    assert cityscapes.data.crop == (512, 1024)
    assert cityscapes.data.jitter.low * min(cityscapes.data.crop) == 512  # half of 1024
    assert cityscapes.data.resize == ShortSide(size=1024, longest=2048)
    mapillary = PRESETS["mapillary_panoptic_resnet50"]()
    assert mapillary.data.jitter.high * min(mapillary.data.crop) == 4096  # twice 2048
    assert mapillary.postprocess.object_threshold == 0.0
    assert mapillary.training.steps == 300_000


def target() -> Segments:
    layers = torch.zeros(1, 61, 83, dtype=torch.int16)
    layers[0, 3:31, 5:41] = 1
    layers[0, 37:, 11:] = 2
    return Segments(
        layers=layers,
        labels=torch.tensor([3, 0]),
        scores=torch.ones(2),
        is_crowd=torch.zeros(2, dtype=torch.bool),
    )


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_thing_taken_away_leaves_a_model_that_learns(row: Row) -> None:
    """Each one runs forward and backward, and the gradient reaches every parameter that has a say."""
    torch.manual_seed(11)
    experiment = override(tiny(), row.without)
    assert bool(row.without) == (experiment != tiny())
    model = build_model(experiment.model, CLASSES).train()
    for parameter in model.parameters():
        if not parameter.any():  # some start as zero and let no gradient through
            torch.nn.init.normal_(parameter, std=0.02)
    criterion = build_criterion(experiment.losses, CLASSES)
    prediction = model(torch.randn(2, 3, 64, 96))
    layers = experiment.model.query_decoder.layers
    before = experiment.model.query_decoder.predict_before_layers
    assert prediction.class_logits.shape == (layers + before, 2, 13, CLASSES + 1)
    padded = torch.zeros(1, 64, 96, dtype=torch.int16)
    padded[:, :61, :83] = target().layers
    segments = Segments(
        layers=padded, labels=target().labels, scores=target().scores, is_crowd=target().is_crowd
    )
    losses = criterion(prediction, (segments, segments), torch.rand)
    losses.total.backward()
    assert torch.isfinite(losses.total)
    silent = {key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()}
    assert not silent


def test_every_ablation_names_existing_settings_of_any_preset() -> None:
    for row in ROWS[1:]:
        assert override(PRESETS["coco_panoptic_resnet50"](), row.without) != Experiment()


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_that_read_semantic_segments_only_resize_class_maps(name: str) -> None:
    """As the originals do; per-pixel classifiers resize their logits, in every case."""
    expected = (
        "semantic" in name or name.startswith(("eomt_large_512", "eomt_large_1024"))
    ) and not name.startswith("per_pixel")
    assert PRESETS[name]().postprocess.resize_classes == expected
