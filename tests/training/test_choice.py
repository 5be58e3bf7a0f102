"""What is chosen for own data: a pure function, whose rules docs/guide/choice.md explains."""

from dataclasses import replace

import pytest

from unimask.config.data import Scale, ShortSide, Tiles
from unimask.config.overrides import override
from unimask.presets import PRESETS
from unimask.training.choice import Base, Choice, Here, Seen, choose

GIB = 1 << 30
CPU = Here(gpu=False, memory=16 * GIB, no_imagenet="")
SEEN = Seen(
    task="instance",
    images=400,
    size=(480, 640),
    things=("cat", "dog"),
    side=60.0,
    large_side=200.0,
    most_objects=9,
)


def chosen(asked: dict[str, object] | None = None, here: Here = CPU, **seen: object) -> Choice:
    return choose(replace(SEEN, **seen), here, asked or {})


def test_a_usual_data_set() -> None:
    found = chosen()
    experiment, training = found.experiment, found.experiment.training
    assert found.initial == "imagenet"
    assert experiment.model == PRESETS["small"]().model
    assert experiment.data.resize == ShortSide(size=480, longest=960)
    assert experiment.data.crop == (480, 480)
    assert (training.steps, training.warmup_steps) == (3000, 150)  # 60 times 400 images, 8 in a step
    assert (training.batch_size, training.accumulate) == (8, 1)


@pytest.mark.parametrize(
    ("size", "side", "gpu", "expected"),
    [
        ((480, 640), 60.0, False, 480),
        ((100, 120), 60.0, False, 256),  # never smaller than what the backbone was made for
        ((3000, 4000), 600.0, False, 512),
        ((3000, 4000), 600.0, True, 768),
        ((1000, 1400), 20.0, False, 800),  # so that half of the objects have 16 pixels
        ((3000, 4000), 20.0, False, 1024),  # but at most twice what else would do
        ((250, 300), 10.0, False, 384),
    ],
)
def test_images_are_as_large_as_the_objects_need(
    size: tuple[int, int], side: float, gpu: bool, expected: int
) -> None:
    found = chosen(here=replace(CPU, gpu=gpu), size=size, side=side)
    assert found.experiment.data.crop == (expected, expected)


def test_crowded_images_get_more_queries_and_then_tiles() -> None:
    assert chosen(most_objects=80).experiment.model.query_decoder.queries == 100
    many = chosen(most_objects=130).experiment
    assert (many.model.query_decoder.queries, many.postprocess.max_instances) == (200, 200)
    crowded = chosen(most_objects=900, size=(1024, 1024), side=12.0, large_side=20.0).experiment
    assert crowded.model.query_decoder.queries == 100
    assert crowded.data.view == Tiles(size=256, overlap=32)
    assert crowded.data.resize == Scale(factor=1.33)
    assert crowded.data.crop == (352, 352)
    assert crowded.data.jitter.relative_to == "file"
    assert chosen(most_objects=900, task="semantic").experiment.data.view.kind == "whole"
    boxes = chosen(most_objects=900, task="detection").experiment  # boxes of tiles are not joined
    assert (boxes.data.view.kind, boxes.model.queries) == ("whole", 1150)


def test_steps_follow_the_images() -> None:
    assert chosen(images=20).experiment.training.steps == 1500
    assert chosen(images=100_000).experiment.training.steps == 8000
    assert chosen(images=100_000, here=replace(CPU, gpu=True)).experiment.training.steps == 20_000
    assert chosen(images=400, task="detection").experiment.training.steps == 9000
    epochs = choose(SEEN, CPU, {}, epochs=10)
    assert epochs.experiment.training.steps == 500
    assert "training.steps=500" not in " ".join(epochs.lines[2].flags)  # the command says it already


def test_memory_decides_how_many_images_go_together() -> None:
    accumulated = [
        chosen(here=replace(CPU, memory=free * GIB)).experiment.training.accumulate for free in (16, 8, 4, 1)
    ]
    assert accumulated == [1, 2, 4, 8]
    assert (
        chosen(here=replace(CPU, memory=GIB)).experiment.training.batch_size == 8
    )  # the training is the same


def test_nuclei_go_on_from_the_shipped_model() -> None:
    found = chosen(things=("nucleus",), side=17.0, most_objects=150)
    assert found.initial == "nuclei"
    assert found.experiment.data == PRESETS["nuclei"]().data
    assert chosen(things=("nucleus",), side=170.0).initial == "imagenet"  # not of that size
    assert chosen(things=("nucleus", "cell"), side=17.0).initial == "imagenet"


def test_without_imagenet_weights_are_random_and_it_is_said() -> None:
    found = chosen(here=replace(CPU, no_imagenet="there is no network"))
    assert found.initial == "none"
    assert "there is no network" in found.lines[-1].because


@pytest.mark.parametrize(
    "asked",
    [
        {"training.steps": 777},
        {"training.batch_size": 6, "training.accumulate": 3},
        {"data.crop": [256, 320], "data.resize.size": 256, "training.evaluate_every": 5},
        {"data.resize": {"kind": "scale", "factor": 2.0}, "training.learning_rate": 0.001},
        {"model.query_decoder.queries": 30, "postprocess.max_instances": 7},
    ],
)
def test_what_is_set_is_never_chosen(asked: dict[str, object]) -> None:
    found = chosen(asked, most_objects=130)
    assert override(found.experiment, asked) == found.experiment
    flags = " ".join(word for line in found.lines for word in line.flags)
    assert not [path for path in asked if f"{path}=" in flags]


def test_what_depends_on_a_setting_follows_it() -> None:
    assert chosen({"training.steps": 400}).experiment.training.warmup_steps == 20
    assert chosen({"training.batch_size": 32}).experiment.training.accumulate == 4
    assert chosen({"training.batch_size": 4}).experiment.training.steps == 6000
    cropped = chosen(
        {"data.crop": [256, 320]}
    ).experiment.data  # what is predicted is as large as what was learned
    assert (cropped.crop, cropped.resize) == ((256, 320), ShortSide(size=256, longest=512))
    resized = chosen({"data.resize.size": 320}).experiment.data
    assert (resized.crop, resized.resize.size) == ((320, 320), 320)
    crowded = chosen({"data.crop": [256, 256]}, most_objects=900).experiment.data
    assert crowded.view.kind == "whole"  # half of what tiles need is no choice


def test_a_model_keeps_how_it_sees_images() -> None:
    experiment = PRESETS["coco_instance_resnet50"]()
    given = Base(
        experiment=experiment, flags=(), initial="models/coco", because="", keep_data=True, weights=""
    )
    found = choose(SEEN, CPU, {}, given=given)
    assert (found.experiment.model, found.experiment.data) == (experiment.model, experiment.data)
    assert (found.experiment.training.steps, found.experiment.training.batch_size) == (1500, 8)
    assert found.experiment.training.accumulate == 8  # of 1024 x 1024 pixels one fits
    assert found.initial == "models/coco"
    assert found.experiment.training.learning_rate == 2e-5  # a fifth: what it knows is not to be lost
    assert "training.learning_rate=2e-05" in found.lines[2].flags
    asked = choose(SEEN, CPU, {"training.learning_rate": 0.003}, given=given)
    assert asked.experiment.training.learning_rate == 0.003
