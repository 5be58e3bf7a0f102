"""Models by their id of the Hugging Face hub: a hub of local files, and no network."""

import socket
import time
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

import unimask
from unimask.checkpoints.images import ModelFile, load_model, save_model
from unimask.config.images import Experiment
from unimask.config.models import ModelConfig
from unimask.config.overrides import override
from unimask.conversion import hub
from unimask.conversion.hub import cache_folder, find_model
from unimask.conversion.hugging_face_files import answers
from unimask.conversion.run import convert
from unimask.data.category_tables import load_categories
from unimask.errors import WeightsError
from unimask.models.build import build_model

OWNER, NAME, REVISION = "somebody", "small-cityscapes", "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def local_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with one model of transformers, as its client lays it out; the network is off."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv(hub.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def publish(local_hub: Path, folder: Path) -> Path:
    """Put a folder of transformers into the hub."""
    repository = local_hub / f"models--{OWNER}--{NAME}"
    snapshot = repository / "snapshots" / REVISION
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    return snapshot


@pytest.fixture
def published(local_hub: Path, tmp_path: Path) -> Path:
    experiment = override(
        Experiment(),
        {
            "model.query_decoder.layers": 1,
            "model.query_decoder.queries": 7,
            "model.pixel_decoder.layers": 1,
            "model.backbone.name": "swin_tiny",
        },
    )
    assert isinstance(experiment.model, ModelConfig)
    torch.manual_seed(0)
    about = ModelFile(
        experiment=experiment,
        task="panoptic",
        categories=load_categories("cityscapes"),
        licence="none",
        provenance="random",
    )
    save_model(tmp_path / "ours", build_model(experiment.model, 19), about)
    convert(tmp_path / "ours", tmp_path / "theirs", to="transformers")
    return publish(local_hub, tmp_path / "theirs")


def test_an_id_is_converted_once_and_then_served_from_the_cache(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = unimask.load(f"{OWNER}/{NAME}", device="cpu")
    assert len(segmenter.categories) == 19
    folder = find_model(f"{OWNER}/{NAME}")
    assert folder.is_relative_to(cache_folder())
    assert f"{OWNER}/{NAME} (Hugging Face hub)" in load_model(folder)[1].provenance

    def fail(*arguments: object) -> None:
        raise AssertionError("it is converted once")

    monkeypatch.setattr(hub, "convert", fail)
    for file in published.iterdir():
        file.unlink()  # the hub is not asked again
    assert find_model(f"{OWNER}/{NAME}") == folder


def test_without_network_it_is_one_sentence(local_hub: Path) -> None:
    with pytest.raises(WeightsError, match=f"^{OWNER}/{NAME}: .* could not be had from the Hugging Face hub"):
        find_model(f"{OWNER}/{NAME}")
    assert not list(cache_folder().rglob("*.json"))  # nothing half


def test_a_hub_that_is_silent_is_left_after_a_moment(
    local_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections are taken and never answered, as behind some firewalls."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(
            huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}"
        )
        started = time.monotonic()
        with pytest.raises(WeightsError, match=r"from the Hugging Face hub \(no answer within 2 seconds\)"):
            find_model(f"{OWNER}/{NAME}")
        assert time.monotonic() - started < 3
        assert not answers(huggingface_hub.constants.ENDPOINT, 0.1)
    assert answers(huggingface_hub.constants.ENDPOINT, 5.0)  # refused at once: its client says so


def test_a_path_is_no_id(local_hub: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises(WeightsError, match=r"^runs/first: no such folder, and no model of this name"):
        find_model("runs/first")
    assert find_model("nuclei").name == "nuclei"


def test_the_cache_is_where_it_is_asked_to_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(hub.CACHE_VARIABLE, str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv(hub.CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "unimask"
