"""MaskFormer: full-size key tables of the release, and models there and back."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unimask.checkpoints.images import ModelFile, load_model, save_model
from unimask.config.overrides import override
from unimask.conversion import convert, hugging_face, hugging_face_config, original
from unimask.conversion.architecture import Stated
from unimask.conversion.rules import to_ours, to_theirs
from unimask.conversion.run import import_original
from unimask.data.category_tables import load_categories
from unimask.errors import WeightsError
from unimask.models.build import build_model
from unimask.presets.maskformer import maskformer_ade20k_semantic, maskformer_coco

MANIFESTS = {
    "maskformer_R50_ade20k_semantic": ("resnet50", 0, 150),
    "maskformer_R50_coco_panoptic": ("resnet50", 6, 133),
    "maskformer_R101c_ade20k_semantic": ("resnet101_deeplab", 0, 150),
    "maskformer_SwinT_ade20k_semantic": ("swin_tiny", 0, 150),
}
NOT_LEARNED = ("relative_position_index", "criterion.empty_weight")


def small(layers: int = 1, backbone: str = "resnet50") -> ModelFile:
    experiment = override(
        maskformer_ade20k_semantic(backbone),
        {
            "model.pixel_decoder.layers": layers,
            "model.pixel_decoder.channels": 64,
            "model.pixel_decoder.mask_channels": 32,
            "model.pixel_decoder.feedforward_channels": 48,
            "model.query_decoder.channels": 64,
            "model.query_decoder.queries": 11,
            "model.query_decoder.layers": 2,
            "model.query_decoder.feedforward_channels": 96,
        },
    )
    return ModelFile(
        experiment=experiment,
        task="semantic",
        categories=load_categories("ade20k"),
        licence="MIT",
        provenance="a test",
    )


def assert_equal_tensors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_tensor_of_the_full_size_release_has_its_place(golden: Path, name: str) -> None:
    backbone, encoder_layers, classes = MANIFESTS[name]
    shapes = json.loads((golden / f"key_manifests/{name}.json").read_text())["shapes"]
    settings = maskformer_coco if encoder_layers else maskformer_ade20k_semantic
    config = settings(backbone).model
    checkpoint_format = original.format_for(config)
    rules = checkpoint_format.rules
    with torch.device("meta"):
        ours = build_model(config, classes).state_dict()
        theirs = {key: torch.zeros(shape) for key, shape in shapes.items() if not key.endswith(NOT_LEARNED)}
    renamed = to_ours(theirs, rules)
    assert not renamed.unknown
    assert {k: v.shape for k, v in renamed.tensors.items()} == {k: v.shape for k, v in ours.items()}
    back = to_theirs(ours, rules)
    assert not back.unknown
    assert {k: v.shape for k, v in back.tensors.items()} == {k: v.shape for k, v in theirs.items()}
    assert checkpoint_format.infer(renamed.tensors, Stated(), Path(name)) == (config, classes)


@pytest.mark.parametrize(
    ("layers", "backbone"), [(1, "resnet50"), (0, "swin_tiny"), (2, "resnet50_deeplab")], ids=str
)
@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_files_of_the_release_there_and_back(tmp_path: Path, layers: int, backbone: str, suffix: str) -> None:
    model_file = small(layers, backbone)
    torch.manual_seed(2)
    model = build_model(model_file.experiment.model, 150)
    save_model(tmp_path / "ours", model, model_file)
    file = tmp_path / f"model.{suffix}"
    convert(tmp_path / "ours", file, to="original")
    found = convert(file, tmp_path / "back", licence="MIT")
    back, about = load_model(tmp_path / "back")
    assert_equal_tensors(back.state_dict(), model.state_dict())
    assert about.experiment.postprocess.resize_classes == (layers == 0)  # ADE20K semantic, else panoptic
    expected = model_file.experiment.model
    if layers == 0:  # nothing tells the width of what is not there
        width = found.experiment.model.pixel_decoder.feedforward_channels
        expected = replace(
            expected, pixel_decoder=replace(expected.pixel_decoder, feedforward_channels=width)
        )
    assert found.experiment.model == expected
    assert found.experiment.losses == model_file.experiment.losses
    assert found.categories == model_file.categories
    if suffix == "pkl":  # the release inserts `pixel_decoder.` into names of files without versions
        names = pickle.loads(file.read_bytes())["model"]
        assert not any("pixel_decoder" in name for name in names)


def test_old_names_and_wrapped_models_are_understood() -> None:
    model_file = small()
    model = build_model(model_file.experiment.model, 150)
    theirs = original.format_for(model_file.experiment.model).write(model, model_file)
    for rename in (
        lambda key: key.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."),
        lambda key: f"module.{key}",
    ):
        found, described = import_original(
            {rename(key): v for key, v in theirs.items()}, Path("a.pkl"), "MIT"
        )
        assert_equal_tensors(found.state_dict(), model.state_dict())
        assert described.experiment.model == model_file.experiment.model
    del theirs["sem_seg_head.predictor.query_embed.weight"]
    with pytest.raises(WeightsError, match="not the weights of a MaskFormer"):
        import_original(theirs, Path("a.pkl"), "MIT")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"pixel_decoder\.layers is 1"),
        (
            {"model.pixel_decoder.layers": 0, "model.query_decoder.visibility": "masked"},
            "visibility is 'masked'",
        ),
    ],
)
def test_models_that_transformers_does_not_have_are_not_exported(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    model_file = small()
    model_file = replace(model_file, experiment=override(model_file.experiment, changes))
    model = build_model(model_file.experiment.model, 150)
    with pytest.raises(WeightsError, match=message):
        hugging_face.MASKFORMER.write(model, model_file)


def test_a_folder_of_another_decoder_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "maskformer", "backbone_config": {"model_type": "resnet"}}
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "decoder_config": {"model_type": "detr", "activation_function": "gelu"}})
    )
    with pytest.raises(WeightsError, match=r"decoder_config\.activation_function is 'gelu'"):
        convert(tmp_path, tmp_path / "found")
    assert hugging_face_config.format_for(small().experiment.model).names is hugging_face.MASKFORMER
