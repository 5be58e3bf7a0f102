"""Folders and files that are broken, odd or in the way: one sentence, and nothing is lost or half-written."""

import json
import logging
import os
import shutil
import struct
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conversion.test_foreign_checkpoints import DETR
from torch import Tensor

from unimask.checkpoints import tensors as tensors_file
from unimask.checkpoints.images import ModelFile, load_model_file, save_model
from unimask.checkpoints.tensors import load_tensors, save_tensors
from unimask.conversion import convert, hugging_face
from unimask.conversion.architecture import Stated
from unimask.conversion.data_sets import made_up_categories
from unimask.conversion.foreign_files import read_foreign, unwrapped
from unimask.conversion.hugging_face_files import read_tensors
from unimask.errors import ConfigError, WeightsError
from unimask.models.build import build_model
from unimask.presets.detr import detr

MODEL = replace(DETR, backbone=replace(DETR.backbone, image_mean=(1.0, 2.0, 3.0)))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of ours and the same of transformers."""
    folder = tmp_path_factory.mktemp("odd")
    about = ModelFile(
        experiment=replace(detr("resnet26"), model=MODEL),
        task="detection",
        categories=made_up_categories(3),
        licence="MIT",
        provenance="random",
    )
    save_model(folder / "ours", build_model(MODEL, 3), about)
    convert(folder / "ours", folder / "theirs", to="transformers")
    return folder


@pytest.fixture
def folder(both: Path, tmp_path: Path) -> Path:
    """A folder of transformers; its weights may be replaced, not written into."""
    return Path(shutil.copytree(both / "theirs", tmp_path / "theirs", copy_function=os.link))


def edit(path: Path, **values: object) -> None:
    """Change some values of a JSON file."""
    content = json.loads(path.read_text()) | values
    path.unlink()
    path.write_text(json.dumps(content))


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config", {"model_type": ["detr"]}, r"config\.json: is of a \['detr'\] model; only"),
        ("config", {"id2label": ["cat", "dog"]}, r"id2label is \['cat', 'dog'\]; it must be a JSON object"),
        ("config", {"id2label": {"0": "a", "1": None, "2": "c"}}, "label None; names must be text"),
        ("config", {"backbone_config": "resnet50"}, "backbone_config is 'resnet50'; it must be a JSON obj"),
        ("config", {"dropout": True}, "dropout is True; it must be from 0 to below 1"),
        (
            "preprocessor_config",
            {"image_mean": [0.5]},
            r"image_mean is \[0\.5\]; it must be a number, or one",
        ),
        ("preprocessor_config", {"image_mean": [0.5] * 4}, "or one for red, green and blue"),
        ("preprocessor_config", {"image_std": 0}, "image_std is 0; it must be positive"),
        ("preprocessor_config", {"image_std": "0.5"}, "image_std is '0.5'; it must be a number"),
        ("preprocessor_config", {"image_std": [True] * 3}, r"image_std is \[True, True, True\]; it must be"),
        ("preprocessor_config", {"rescale_factor": True}, "rescale_factor is True; it must be a positive"),
        ("preprocessor_config", {"rescale_factor": 1e-320}, "it must be a positive number"),
        ("preprocessor_config", {"rescale_factor": 10**400}, "it must be a positive number"),
        ("preprocessor_config", {"size": "800"}, "size is '800'; only shortest_edge with longest_edge"),
        (
            "preprocessor_config",
            {"size": {"shortest_edge": 10**9, "longest_edge": 10**9}},
            r"states what no model here can have: data\.resize\.\w+: must be at most 100000",
        ),
    ],
    ids=str,
)
def test_odd_values_are_refused(
    file: str, values: dict[str, object], message: str, folder: Path, tmp_path: Path
) -> None:
    edit(folder / f"{file}.json", **values)
    with pytest.raises(WeightsError, match=message):
        convert(folder, tmp_path / "found")
    assert not (tmp_path / "found").exists()


def test_a_name_of_several_labels_is_said(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit(folder / "config.json", id2label={"0": "cat", "1": "dog", "2": "cat"})
    convert(folder, tmp_path / "found")
    assert "id2label gives one name to several labels: cat" in caplog.text
    assert load_model_file(tmp_path / "found").categories.names == ("cat", "dog", "cat")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "null", '"model_type"'], ids=range(5))
def test_a_configuration_that_is_none(text: str, folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(text)
    with pytest.raises((WeightsError, ConfigError), match=r"config\.json: .*JSON"):
        convert(folder, tmp_path / "found")


LEVELS = "model.pixel_level_module.decoder.level_embed"


@pytest.mark.parametrize("shape", [(3,), (), (0, 8, 2)])
def test_shapes_that_no_model_has(shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="its tensors have shapes that no Mask2Former has"):
        hugging_face.MASK2FORMER.read({LEVELS: torch.zeros(shape)}, Stated(), tmp_path)


# files of weights


def test_a_tensor_in_two_parts_is_refused(folder: Path) -> None:
    weights = load_tensors(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    key = next(iter(weights))
    save_tensors(folder / "model-00001-of-00002.safetensors", weights)
    save_tensors(folder / "model-00002-of-00002.safetensors", {key: weights[key] + 1})
    with pytest.raises(WeightsError, match=f"00002-of-00002.*are in another part too: {key}"):
        read_tensors(folder)


def test_names_that_are_no_numbers_of_parts(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-aaaaa-of-bbbbb.safetensors")
    with pytest.raises(WeightsError, match=r"it holds model-aaaaa-of-bbbbb\.safetensors: rename the file"):
        read_tensors(folder)


def header(content: bytes) -> bytes:
    """A file of safetensors with this head, and 8 bytes of numbers."""
    return struct.pack("<Q", len(content)) + content + bytes(8)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        header(b"{"),
        header(b'{"a": {"dtype": "F99", "shape": [16], "data_offsets": [0, 8]}}'),
        header(b'{"a": {"dtype": "F8_E8M0", "shape": [8], "data_offsets": [0, 8]}, "b": 3}'),
        header(b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}'),
        header(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}'),
        struct.pack("<Q", 2**62),
    ],
    ids=range(8),
)
def test_broken_safetensors(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=r"a\.safetensors: (cannot be read|holds no weights)"):
        read_foreign(tmp_path / "a.safetensors")


def test_an_archive_that_unpacks_into_more_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**7))
    with pytest.raises(WeightsError, match=r"it is packed, which torch\.save never does"):
        read_foreign(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(WeightsError, match=r"a\.bin: cannot be read, it may be cut off"):
        read_foreign(path)


@pytest.mark.parametrize(
    "odd", [torch.eye(3).to_sparse(), torch.empty(3, device="meta")], ids=["sparse", "meta"]
)
def test_tensors_without_plain_numbers(odd: Tensor, tmp_path: Path) -> None:
    torch.save({"model": {"a": odd, "b": torch.ones(3)}}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"sparse, quantised or without numbers: a; save them dense"):
        read_foreign(tmp_path / "a.pth")


def test_a_file_without_tensors(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(WeightsError, match=r"a\.safetensors: .*(holds no weights|no name in it)"):
        convert(tmp_path / "a.safetensors", tmp_path / "found")


def test_two_tensors_that_would_get_one_name_keep_theirs() -> None:
    given = {"_orig_mod.a": torch.zeros(1), "a": torch.ones(1)}
    assert unwrapped(given).keys() == given.keys()


# targets


def test_a_conversion_never_replaces_its_source(folder: Path) -> None:
    before = files_in(folder)
    for source in (folder, folder / "model.safetensors"):
        with pytest.raises(WeightsError, match=r"theirs: would replace .*, which is being read"):
            convert(source, folder)
    with pytest.raises(WeightsError, match="would replace"):
        convert(folder / "model.safetensors", folder / "model.safetensors", to="original")
    assert files_in(folder) == before


def test_a_model_of_another_kind_is_not_replaced(both: Path, folder: Path, tmp_path: Path) -> None:
    before = files_in(folder)
    with pytest.raises(
        WeightsError, match=r"holds a config\.json that is not of a model in the format unimask"
    ):
        convert(both / "ours", folder)
    assert files_in(folder) == before
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "config.json").write_text('{"port": 80}')
    with pytest.raises(WeightsError, match="in the format transformers, and is not overwritten"):
        convert(both / "ours", tmp_path / "app", to="transformers")
    assert [path.name for path in (tmp_path / "app").iterdir()] == ["config.json"]
    convert(both / "ours", folder, to="transformers")  # the same format: replaced


@pytest.mark.parametrize("to", ["unimask", "transformers"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=repr)
def test_a_conversion_that_ends_half_way_leaves_nothing(
    error: BaseException, to: Any, both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, content: str) -> None:
        path.write_text(content[:9])
        raise error

    monkeypatch.setattr(tensors_file, "put_text", fail)  # after the weights
    kind = WeightsError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(
        kind, match="cannot be written .*; make room for it" if kind is WeightsError else None
    ):
        convert(both / "ours", tmp_path / "new" / "found", to=to)
    assert list(tmp_path.iterdir()) == []


def test_pixels_that_the_original_cannot_be_told_are_said(
    both: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        convert(both / "ours", tmp_path / "a.pth", to="original")
    assert "no place for the mean (1.0, 2.0, 3.0) and standard deviation" in caplog.text


def test_a_run_without_a_model_says_so(tmp_path: Path) -> None:
    (tmp_path / "experiment.json").write_text("{}")
    with pytest.raises(WeightsError, match="is a run that has saved no model yet; go on with it"):
        load_model_file(tmp_path)
