import json
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unimask.checkpoints.images import ModelFile, load_model, save_model
from unimask.checkpoints.tensors import load_tensors, save_tensors
from unimask.config.data import ShortSide
from unimask.config.images import Experiment
from unimask.config.models import PixelDecoderConfig, QueryDecoderConfig
from unimask.config.overrides import override
from unimask.conversion import convert, hugging_face, hugging_face_files, original
from unimask.conversion.checkpoint_format import CheckpointFormat, relative_position_index
from unimask.conversion.data_sets import settings_for
from unimask.conversion.run import import_original
from unimask.data.category_tables import load_categories
from unimask.errors import UnimaskError, WeightsError
from unimask.models.build import build_model
from unimask.models.mask_classifier import MaskClassifier
from unimask.presets.mask2former import cityscapes, published_model
from unimask.presets.own_data import tiny

CITYSCAPES = cityscapes("resnet50")
EXPERIMENT = replace(
    CITYSCAPES,
    model=replace(
        CITYSCAPES.model,
        pixel_decoder=PixelDecoderConfig(channels=64, mask_channels=32, layers=1, feedforward_channels=96),
        query_decoder=QueryDecoderConfig(channels=64, queries=11, layers=2, feedforward_channels=128),
    ),
)
MODEL_FILE = ModelFile(
    experiment=EXPERIMENT,
    task="panoptic",
    categories=load_categories("cityscapes"),
    licence="MIT",
    provenance="a test",
)


@pytest.fixture(scope="module")
def model() -> MaskClassifier:
    torch.manual_seed(2)
    return build_model(EXPERIMENT.model, 19).eval()


@pytest.fixture(scope="module")
def theirs(model: MaskClassifier) -> dict[str, Tensor]:
    """As a trainer of the original saves it: today's names, with constants."""
    return original.MASK2FORMER.write(model, MODEL_FILE)


@pytest.fixture(scope="module")
def ours(model: MaskClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ours")
    save_model(folder, model, MODEL_FILE)
    return folder


def assert_equal_weights(found: MaskClassifier, expected: MaskClassifier) -> None:
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def without_pixel_decoder(key: str) -> str:
    return key.replace("sem_seg_head.pixel_decoder.", "sem_seg_head.")


def old_queries(key: str) -> str:
    return key.replace(".query_feat.", ".static_query.")


FORMS: dict[str, Callable[[str], str]] = {
    "new names": lambda key: key,
    "old names": lambda key: old_queries(without_pixel_decoder(key)),
    "old head": without_pixel_decoder,
    "old queries": old_queries,
    "several devices": lambda key: f"module.{key}",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_original_is_understood(
    model: MaskClassifier, theirs: dict[str, Tensor], form: str
) -> None:
    tensors = {FORMS[form](key): tensor for key, tensor in theirs.items()}
    found, model_file = import_original(tensors, Path("model_final.pkl"), "MIT")
    assert_equal_weights(found, model)
    assert not found.training
    assert model_file.experiment.model == EXPERIMENT.model
    assert model_file.experiment.data == EXPERIMENT.data
    assert model_file.categories == MODEL_FILE.categories
    assert "model_final.pkl" in model_file.provenance


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_original_files_there_and_back(
    model: MaskClassifier, ours: Path, tmp_path: Path, suffix: str
) -> None:
    file = tmp_path / "deep" / f"model.{suffix}"
    assert convert(ours, file, to="original") == MODEL_FILE
    found = convert(file, tmp_path / "back", licence="MIT")
    back, model_file = load_model(tmp_path / "back")
    assert_equal_weights(back, model)
    assert model_file == found
    assert model_file.experiment == replace(EXPERIMENT, model=model_file.experiment.model)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_exported_files_are_what_the_original_renames_correctly(ours: Path, tmp_path: Path) -> None:
    """Without versions it inserts `pixel_decoder.` always, with versions it leaves names alone."""
    convert(ours, tmp_path / "model.pkl", to="original")
    names = pickle.loads((tmp_path / "model.pkl").read_bytes())["model"].keys()
    assert not any("pixel_decoder" in name or "query_feat" in name for name in names)
    assert "sem_seg_head.adapter_1.weight" in names
    convert(ours, tmp_path / "model.pth", to="original")
    state = torch.load(tmp_path / "model.pth", weights_only=True)["model"]
    assert isinstance(state, OrderedDict)
    assert state._metadata["sem_seg_head"] == {"version": 2}  # type: ignore[attr-defined]
    assert state._metadata["sem_seg_head.predictor"] == {"version": 2}  # type: ignore[attr-defined]
    assert "sem_seg_head.pixel_decoder.adapter_1.weight" in state
    assert state["criterion.empty_weight"].tolist() == pytest.approx([1.0] * 19 + [0.1])


def test_folders_of_transformers_there_and_back(model: MaskClassifier, ours: Path, tmp_path: Path) -> None:
    assert convert(ours, tmp_path / "theirs", to="transformers") == MODEL_FILE
    processor = json.loads((tmp_path / "theirs/preprocessor_config.json").read_text())
    assert processor["image_mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert processor["size"] == {"shortest_edge": 1024, "longest_edge": 2048}
    convert(tmp_path / "theirs", tmp_path / "back", licence="MIT")
    back, model_file = load_model(tmp_path / "back")
    assert_equal_weights(back, model)
    assert model_file.experiment == EXPERIMENT
    assert model_file.categories == MODEL_FILE.categories


@pytest.fixture
def hugging(ours: Path, tmp_path: Path) -> Path:
    convert(ours, tmp_path / "hugging", to="transformers")
    return tmp_path / "hugging"


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_own_names_pixels_and_sizes_of_transformers_are_kept(hugging: Path, tmp_path: Path) -> None:
    change_json(hugging / "config.json", id2label={str(index): f"kind {index}" for index in range(19)})
    change_json(
        hugging / "preprocessor_config.json",
        image_mean=[0.5, 0.25, 0.125],
        image_std=[1, 1, 1],
        size=512,
        max_size=700,
    )
    found = convert(hugging, tmp_path / "found")
    assert found.categories.names == tuple(f"kind {index}" for index in range(19))
    assert all(found.categories.is_thing)
    assert len(set(found.categories.colors)) == 19
    assert found.experiment.model.backbone.image_mean == (127.5, 63.75, 31.875)
    assert found.experiment.data.resize == ShortSide(size=512, longest=700)


def test_several_files_of_either_kind_are_read(model: MaskClassifier, hugging: Path, tmp_path: Path) -> None:
    tensors = load_tensors(hugging / "model.safetensors")
    (hugging / "model.safetensors").unlink()
    keys = list(tensors)
    for number, part in enumerate((keys[:300], keys[300:])):
        torch.save(
            {key: tensors[key] for key in part}, hugging / f"pytorch_model-0000{number + 1}-of-00002.bin"
        )
    convert(hugging, tmp_path / "found")
    assert_equal_weights(load_model(tmp_path / "found")[0], model)


def test_a_model_of_the_hub(
    model: MaskClassifier, hugging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked = []

    monkeypatch.setattr(hugging_face_files, "answers", lambda address: True)

    def have(name: str, allow_patterns: list[str]) -> str:
        asked.append(name)
        return str(hugging)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", have)
    found = convert("someone/mask2former", tmp_path / "found")
    assert asked == ["someone/mask2former"]
    assert "someone/mask2former" in found.provenance
    assert_equal_weights(load_model(tmp_path / "found")[0], model)

    def fail(name: str, allow_patterns: list[str]) -> str:
        raise ConnectionError("no way out\nmore on that")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(WeightsError, match=r"someone/else: .*could not be had.*\(no way out\)"):
        convert("someone/else", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"model_type": "oneformer"}, "only 'mask2former'"),
        ("config.json", {"pre_norm": True}, "pre_norm is True"),
        ("config.json", {"num_attention_heads": 2}, "8 attention heads, config.json says 2"),
        ("config.json", {"backbone_config": {"model_type": "focalnet"}}, "backbone is focalnet"),
        ("config.json", {"backbone_config": None}, "backbone is not described"),
        (
            "config.json",
            {"backbone_config": {"model_type": "resnet", "downsample_in_bottleneck": True}},
            "downsample_in_bottleneck is True",
        ),
    ],
)
def test_what_cannot_be_converted_is_said(
    hugging: Path, tmp_path: Path, file: str, changes: dict[str, object], message: str
) -> None:
    change_json(hugging / file, **changes)
    with pytest.raises(WeightsError, match=message):
        convert(hugging, tmp_path / "found")
    assert not (tmp_path / "found").exists()


def test_a_broken_configuration_of_transformers_is_named(hugging: Path, tmp_path: Path) -> None:
    (hugging / "config.json").write_text('{"model_type": "mask2former",')
    with pytest.raises(WeightsError, match="is not valid JSON") as caught:
        convert(hugging, tmp_path / "found")
    assert "config.json" in str(caught.value)
    (hugging / "config.json").write_text(
        '{"model_type": "mask2former", "backbone_config": {"model_type": "swin"}}'
    )
    (hugging / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"holds no model\.safetensors"):
        convert(hugging, tmp_path / "found")


def test_missing_unexpected_and_mismatched_keys_have_the_names_of_the_file(theirs: dict[str, Tensor]) -> None:
    tensors = dict(theirs)
    del tensors["sem_seg_head.predictor.decoder_norm.bias"]
    tensors["sem_seg_head.predictor.more"] = torch.ones(2)
    tensors["sem_seg_head.predictor.decoder_norm.weight"] = torch.ones(2)
    with pytest.raises(WeightsError, match="Mask2Former with resnet50") as caught:
        import_original(tensors, Path("model.pth"), "MIT")
    assert caught.value.missing == ("sem_seg_head.predictor.decoder_norm.bias",)
    assert caught.value.unexpected == ("sem_seg_head.predictor.more",)
    assert caught.value.mismatched == ("sem_seg_head.predictor.decoder_norm.weight (2,) instead of (64,)",)


def test_other_models_are_recognised_as_such(theirs: dict[str, Tensor]) -> None:
    with pytest.raises(WeightsError, match="no name in it is one of a Mask2Former"):
        import_original({"head.fc.weight": torch.ones(3)}, Path("model.pth"), "MIT")
    only_backbone = {key: tensor for key, tensor in theirs.items() if key.startswith("backbone.")}
    with pytest.raises(WeightsError, match="not the weights of a Mask2Former"):
        import_original(only_backbone, Path("model.pth"), "MIT")
    shorter = {key: tensor for key, tensor in theirs.items() if ".res5.2." not in key}
    with pytest.raises(WeightsError, match=r"\(3, 4, 6, 2\) blocks; known are resnet50"):
        import_original(shorter, Path("model.pth"), "MIT")
    twice = {**theirs, "sem_seg_head.adapter_1.weight": torch.ones(2)}
    with pytest.raises(WeightsError, match="holds a tensor twice"):
        import_original(twice, Path("model.pth"), "MIT")


def test_a_number_of_classes_of_no_data_set_gives_numbered_categories(theirs: dict[str, Tensor]) -> None:
    tensors = dict(theirs)
    for name in ("weight", "bias"):
        tensors[f"sem_seg_head.predictor.class_embed.{name}"] = theirs[
            f"sem_seg_head.predictor.class_embed.{name}"
        ][:4]
    _, model_file = import_original(tensors, Path("model.pth"), "MIT")
    assert model_file.categories.names == ("category 1", "category 2", "category 3")
    assert model_file.experiment.data == Experiment().data


@pytest.mark.parametrize("source", ["nowhere", "no/where/at/all", "folder", "folder/notes.txt"])
def test_sources_that_are_nothing_are_named(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/notes.txt").write_text("nothing")
    with pytest.raises(WeightsError, match="give a file of the original release") as caught:
        convert(source, tmp_path / "found")
    assert str(caught.value).startswith(source)


@pytest.mark.parametrize(
    ("name", "to"), [("model", "original"), ("model.pth", "unimask"), ("a.pkl", "transformers")]
)
def test_targets_of_the_wrong_kind_are_refused(ours: Path, tmp_path: Path, name: str, to: str) -> None:
    with pytest.raises(WeightsError, match="must be a f"):
        convert(ours, tmp_path / name, to=to)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.query_decoder.visibility": "full"}, "query_decoder.visibility is 'full'"),
        ({"model.query_decoder.memory_strides": (8,)}, "query_decoder.memory_strides"),
        ({"model.pixel_decoder.points": 2}, "pixel_decoder.points is 2"),
        ({"model.query_decoder.heads": 4}, "differ in heads"),
    ],
)
@pytest.mark.parametrize(
    "checkpoint_format", [original.MASK2FORMER, hugging_face.MASK2FORMER], ids=["original", "transformers"]
)
def test_models_that_others_do_not_have_are_not_exported(
    model: MaskClassifier, changes: dict[str, object], message: str, checkpoint_format: CheckpointFormat
) -> None:
    changed = replace(MODEL_FILE, experiment=override(EXPERIMENT, changes))
    with pytest.raises(WeightsError, match=message):
        checkpoint_format.write(model, changed)


def test_other_backbones_are_not_exported() -> None:
    experiment = override(tiny(), {"model.query_decoder.heads": 4})
    with pytest.raises(WeightsError, match="only of ResNet and Swin") as caught:
        hugging_face.MASK2FORMER.write(
            build_model(experiment.model, 19), replace(MODEL_FILE, experiment=experiment)
        )
    assert caught.value.unexpected


def test_a_resnet_of_basic_blocks_is_refused_by_name(tmp_path: Path) -> None:
    experiment = override(EXPERIMENT, {"model.backbone.name": "resnet18"})
    save_model(
        tmp_path / "ours", build_model(experiment.model, 19), replace(MODEL_FILE, experiment=experiment)
    )
    with pytest.raises(WeightsError, match="resnet18: is made of basic blocks"):
        convert(tmp_path / "ours", tmp_path / "theirs", "transformers")
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize("kind", [OSError, RuntimeError])  # torch's writer has errors of its own
def test_a_failed_export_leaves_nothing(
    kind: type[Exception], ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(content: object, file: object) -> None:
        raise kind("no space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(WeightsError, match=r"model\.pth: cannot be written \(no space .*; make room for it"):
        convert(ours, tmp_path / "model.pth", to="original")
    assert not list(tmp_path.iterdir())


def test_safetensors_in_the_original_names_are_understood(
    model: MaskClassifier, theirs: dict[str, Tensor], tmp_path: Path
) -> None:
    save_tensors(tmp_path / "model.safetensors", theirs)
    convert(tmp_path / "model.safetensors", tmp_path / "found")
    assert_equal_weights(load_model(tmp_path / "found")[0], model)


def test_recognising_a_folder_of_transformers(ours: Path, hugging: Path, tmp_path: Path) -> None:
    assert hugging_face_files.is_hugging_face(hugging)
    assert not hugging_face_files.is_hugging_face(ours)
    assert not hugging_face_files.is_hugging_face(tmp_path)


def test_relative_positions_of_a_window_of_two() -> None:
    expected = [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    assert relative_position_index(9).tolist() == expected


def test_all_errors_are_of_the_library() -> None:
    assert issubclass(WeightsError, UnimaskError)


@pytest.mark.parametrize(("classes", "resized"), [(150, True), (133, False), (19, False), (7, False)])
def test_weights_for_ade20k_are_read_as_semantic_ones(classes: int, resized: bool) -> None:
    assert settings_for(published_model("resnet50"), classes).postprocess.resize_classes == resized
