import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import yaml
from conversion.hub_server import HubServer
from conversion.test_detr_conversion import SMALL, save
from local_server import running

from unimask.checkpoints.images import ModelFile, load_model, save_model
from unimask.config.overrides import override
from unimask.conversion.data_sets import made_up_categories
from unimask.conversion.hub import CACHE_VARIABLE, find_model
from unimask.conversion.publish import push
from unimask.data.category_tables import load_categories
from unimask.errors import DataError, WeightsError
from unimask.models.build import build_model
from unimask.presets.eomt import eomt_tiny
from unimask.presets.mask2former import cityscapes

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the hub's client


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with running(HubServer()) as one:
        yield one


@pytest.fixture(autouse=True)
def right_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # Git LFS instead


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    experiment = override(
        cityscapes("resnet50"),
        {
            "model.pixel_decoder.channels": 32,
            "model.pixel_decoder.mask_channels": 32,
            "model.pixel_decoder.layers": 1,
            "model.pixel_decoder.feedforward_channels": 32,
            "model.query_decoder.channels": 32,
            "model.query_decoder.feedforward_channels": 32,
            "model.query_decoder.queries": 5,
            "model.query_decoder.layers": 1,
        },
    )
    categories = load_categories("cityscapes")
    folder = tmp_path_factory.mktemp("tiny")
    model_file = ModelFile(
        experiment=experiment,
        task="panoptic",
        categories=categories,
        licence="ours alone",
        provenance="a test",
    )
    save_model(folder, build_model(experiment.model, len(categories)), model_file)
    return folder


def downloaded(name: str, hub: HubServer, folder: Path) -> Path:
    return Path(huggingface_hub.snapshot_download(name, endpoint=hub.address, cache_dir=folder))


def card_of(hub: HubServer, name: str) -> tuple[dict[str, object], str]:
    text = hub.repositories[name]["README.md"].decode()
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_a_pushed_model_comes_back_bit_by_bit(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = tmp_path / "measured.json"
    measured.write_text(
        json.dumps({"task": "instance", "images": 50, "values": {"AP": 0.6071, "AP_large": None}})
    )
    assert push("nuclei", "me/cells", evaluation=measured, endpoint=hub.address) == f"{hub.address}/me/cells"
    assert set(hub.repositories["me/cells"]) == {"README.md", "config.json", "model.safetensors"}
    about, text = card_of(hub, "me/cells")
    assert (about["license"], about["pipeline_tag"], about["library_name"]) == (
        "mit",
        "image-segmentation",
        "unimask",
    )
    assert "(instance, 50 images):\n\n| measure | value |\n|---|---|\n| AP | 0.6071 |\n" in text
    assert (
        "A model for panoptic segmentation: mask classification (MaskFormer, Mask2Former), backbone" in text
    )
    assert "AP_large" not in text
    assert "**Finds** nucleus, background." in text
    assert "BBBC038" in text  # the data, from the provenance
    assert "unimask predict photo.jpg --weights me/cells" in text
    assert hub.cards[-1] == hub.repositories["me/cells"]["README.md"].decode()  # the hub has checked it

    files = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    model, model_file = load_model(find_model("me/cells"))
    own, own_file = load_model(find_model("nuclei"))
    assert model_file == own_file
    state, other = model.state_dict(), own.state_dict()
    assert all(torch.equal(state[key], other[key]) for key in other)


def of_boxes(folder: Path) -> Path:
    save(folder, SMALL, 3)
    return folder


def of_boxes_and_masks(folder: Path) -> Path:
    save(folder, replace(SMALL, channels=128, mask_head=True), 3)
    return folder


def of_eomt(folder: Path) -> Path:
    experiment = eomt_tiny()
    categories = made_up_categories(3, ())
    about = ModelFile(
        experiment=experiment, task="panoptic", categories=categories, licence="", provenance="a test"
    )
    save_model(folder, build_model(experiment.model, len(categories)), about)
    return folder


CLASSES: dict[str, tuple[Callable[[Path], Path] | None, str]] = {
    "Mask2FormerForUniversalSegmentation": (None, "image-segmentation"),
    "DetrForObjectDetection": (of_boxes, "object-detection"),
    "DetrForSegmentation": (of_boxes_and_masks, "image-segmentation"),
    "EomtDinov3ForUniversalSegmentation": (of_eomt, "image-segmentation"),
}


@pytest.mark.parametrize("model_class", CLASSES)
def test_transformers_loads_what_is_pushed_for_it(
    hub: HubServer, tmp_path: Path, tiny_folder: Path, model_class: str
) -> None:
    """By the lines of the card, with the class that they name."""
    transformers = pytest.importorskip("transformers")
    made, purpose = CLASSES[model_class]
    push(
        made(tmp_path / "model") if made else tiny_folder,
        "me/theirs",
        to="transformers",
        endpoint=hub.address,
    )
    about, text = card_of(hub, "me/theirs")
    assert (about["library_name"], about["pipeline_tag"]) == ("transformers", purpose)
    folder = downloaded("me/theirs", hub, tmp_path / "cache")
    lines = text.split("```python\n")[1].split("```")[0]
    found: dict[str, object] = {}
    exec(lines.replace('"me/theirs"', repr(str(folder))), found)
    assert type(found["model"]).__name__ == model_class
    assert found["processor"]
    _, info = getattr(transformers, model_class).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_a_push_again_is_one_more_commit(hub: HubServer, tiny_folder: Path) -> None:
    before = hub.commits
    for _ in range(2):
        push(tiny_folder, "me/again", endpoint=hub.address)
    assert hub.commits == before + 2


def test_a_licence_that_the_hub_does_not_know_keeps_its_text(hub: HubServer, tiny_folder: Path) -> None:
    push(tiny_folder, "me/mine", endpoint=hub.address)
    about, text = card_of(hub, "me/mine")
    assert (about["license"], about["license_name"]) == ("other", "see-below")
    assert "**Licence of the weights:** ours alone" in text
    assert "No measures are given." in text


def test_what_cannot_be_pushed_is_one_sentence(
    hub: HubServer, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WeightsError, match="translates text"):
        push("en-de", "me/words", endpoint=hub.address)
    with pytest.raises(WeightsError, match="not in original files"):
        push(tiny_folder, "me/a", to="original", endpoint=hub.address)
    with pytest.raises(WeightsError, match="nowhere"):
        push(tmp_path / "nowhere", "me/a", endpoint=hub.address)
    (tmp_path / "no.json").write_text("[]")
    with pytest.raises(DataError, match="evaluate --output"):
        push(tiny_folder, "me/a", evaluation=tmp_path / "no.json", endpoint=hub.address)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(WeightsError, match=r"me/a: could not be put onto the hub .*401.*hf auth login"):
        push(tiny_folder, "me/a", endpoint=hub.address)
    with pytest.raises(WeightsError, match="could not be put onto the hub"):
        push(tiny_folder, "me/a", endpoint="http://127.0.0.1:9")
    assert "me/a" not in hub.repositories
