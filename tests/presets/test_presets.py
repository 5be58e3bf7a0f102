import json

import pytest
import torch

from unimask.config.data import ShortSide, Square
from unimask.config.images import Experiment, experiment_from_dict, experiment_to_dict
from unimask.config.models import DetrConfig, EomtConfig
from unimask.config.overrides import override
from unimask.errors import ConfigError
from unimask.losses.build import build_criterion
from unimask.models.build import build_model
from unimask.presets import PRESETS, description
from unimask.presets.ablation import ROWS, Row, row_experiment, rows_of
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


def test_the_rows_of_an_eomt_differ_in_their_attention_only() -> None:
    base = PRESETS["eomt_tiny"]()
    assert [row.name for row in rows_of(base.model)] == ["open", "masked", "annealed"]
    for row in rows_of(base.model):
        assert row_experiment(base, row.name) == override(base, {"model.attention": row.name})
    with pytest.raises(ConfigError, match="the last row is an annealed EoMT"):
        rows_of(override(base, {"model.attention": "open"}).model)
    with pytest.raises(ConfigError, match="take 'masks' or 'eomt'"):
        rows_of(PRESETS["detr_small"]().model)


def test_presets_of_eomt_have_the_settings_of_the_release() -> None:
    large, small = PRESETS["eomt_large_640"](), PRESETS["eomt_small_640"]()
    assert large.training.steps == 88_715  # 12 epochs
    assert small.training.steps == 177_430  # 24
    assert (large.model.query_blocks, small.model.query_blocks) == (4, 3)
    assert large.training.layer_decay == 0.8
    assert large.training.query_blocks_decay
    assert large.data.resize == Square(size=640)
    dinov3 = PRESETS["eomt_large_1280_dinov3"]()
    assert not dinov3.training.query_blocks_decay
    assert (dinov3.training.learning_rate, dinov3.training.warmup_steps) == (2e-4, 2000)
    assert dinov3.data.crop == (1280, 1280)
    ade20k = PRESETS["eomt_large_512_ade20k_dinov3"]()
    assert (ade20k.training.layer_decay, ade20k.training.backbone_multiplier) == (1.0, 0.1)
    assert ade20k.model.queries == 100


def test_sizes_that_do_not_fit_an_eomt_are_named() -> None:
    base = PRESETS["eomt_own_data"]()
    for changes, message in (
        ({"data.crop": (512, 640)}, r"data\.crop: .* squares of 512 .* got \(512, 640\), take \(512, 512\)"),
        ({"data.resize": {"kind": "short_side"}}, r"data\.resize: .* take {'kind': 'square', 'size': 512}"),
        ({"model.backbone.kind": "dinov3", "data.crop": (512, 500)}, r"data\.crop: must be a multiple of 16"),
        ({"data.divisor": 24}, r"data\.divisor: must be a multiple of 16"),
    ):
        with pytest.raises(ConfigError, match=message):
            override(base, changes)
    rotary = {"model.backbone.kind": "dinov3", "data.crop": (512, 1024), "data.resize": {"kind": "scale"}}
    assert override(base, rotary).data.crop == (512, 1024)
    for changes, message in (
        (
            {"model.backbone.size": 500},
            r"model\.backbone\.size: must be a multiple of the patch, 16; got 500",
        ),
        ({"model.backbone.patch": 12}, r"model\.backbone\.patch: must be 4, 8, 16 or 32, not 12"),
        ({"model.query_blocks": 13}, r"model\.query_blocks: 13 of 12 blocks"),
    ):
        model = {"model.backbone.kind": "dinov3", "model.backbone.size": 480, "data.crop": (480, 480)}
        data = {"data.resize": {"kind": "scale"}, "data.divisor": 96}
        changed = override(base, {**model, **data, **changes})
        with pytest.raises(ConfigError, match=message), torch.device("meta"):
            build_model(changed.model, CLASSES)
