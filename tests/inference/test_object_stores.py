"""Images in and results out through object stores: memory, a real server of S3, stand-ins of two others."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import huggingface_hub.constants
import numpy as np
import pytest
from cli.command_line import Outcome, picture, unimask
from conversion.hub_server import HubServer
from data.test_shards import assert_same_sets
from data.test_shards import photos as labelled
from fsspec.registry import _registry
from inference.google_server import GoogleServer
from inference.photos import write_photos
from local_server import running
from PIL import Image
from training.small_runs import small_experiment

from unimask import remote
from unimask.data.open import open_dataset, open_splits
from unimask.data.packing import write_shards
from unimask.errors import DataError, MissingPackageError
from unimask.inference import staging
from unimask.remote import Url, location
from unimask.training.progress import SilentReporter
from unimask.training.run import train

COUNT = 5


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = [f"{number}.png" for number in range(COUNT)]
    folder = write_photos(tmp_path_factory.mktemp("photos"), names, ["2b.png"])
    (folder / "notes.txt").write_text("x")
    return folder


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a bucket on a server of S3 on this machine."""
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    moto = pytest.importorskip("moto.server", reason="moto is not installed")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    remote._store.cache_clear()
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fsspec.filesystem("s3", skip_instance_cache=True).makedirs("bucket", exist_ok=True)  # moto keeps it
    yield "s3://bucket"
    server.stop()
    remote._store.cache_clear()


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a bucket on a stand-in of Google's Cloud Storage."""
    gcsfs = pytest.importorskip("gcsfs.core", reason="gcsfs is not installed")
    # not its class that first asks over gRPC what kind of bucket it is
    monkeypatch.setitem(_registry, "gs", gcsfs.GCSFileSystem)
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    gcsfs.GCSFileSystem.clear_instance_cache()
    remote._store.cache_clear()
    with running(GoogleServer()) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.address)
        yield "gs://bucket"
    remote._store.cache_clear()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a data set on a stand-in of the Hugging Face hub."""
    fsspec.get_filesystem_class("hf").clear_instance_cache()
    remote._store.cache_clear()
    with running(HubServer()) as server:
        server.repositories["datasets/me/photos"] = {}
        files = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield "hf://datasets/me/photos"
    fsspec.get_filesystem_class("hf").clear_instance_cache()
    remote._store.cache_clear()


@pytest.fixture
def memory() -> Iterator[str]:
    yield "memory://bucket"
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]


def predict(*given: object) -> Outcome:
    return unimask("predict", "--device", "cpu", *given)


def fill(store: str, photos: Path) -> Any:
    """Bring the images into a store; return a file system of it, apart from that of the library."""
    files, _ = fsspec.core.url_to_fs(store, use_listings_cache=False, skip_instance_cache=True)
    for path in sorted(photos.iterdir()):
        files.put_file(str(path), f"{store.partition('://')[2]}/photos/{path.name}")
    return files


def check_a_store(store: str, photos: Path, model: Path, folder: Path) -> None:
    """Predict from a store into it, twice, and compare with the plain command."""
    files = fill(store, photos)
    out = f"{store.partition('://')[2]}/out"
    given = ("--weights", model, "--format", "json,csv,overlay")
    first = predict(f"{store}/photos", "--output", f"{store}/out", *given)
    assert first.code == 2
    assert f"results are in {store}/out/" in first.out
    assert f"error {store}/photos/2b.png: is not an image in a known format" in first.err
    assert f"warning {store}/photos: one is no image and left out, the first is notes.txt" in first.err
    plain = predict(*sorted(photos.glob("*.png")), "--output", folder, *given)
    assert plain.code == 2
    for path in folder.glob("[!.]*"):
        assert files.cat_file(f"{out}/{path.name}") == path.read_bytes(), path.name
    assert len(list(folder.glob("[!.]*"))) == 2 * COUNT + 2
    # what is complete is left out; a result that is gone is made again
    files.rm_file(f"{out}/3.json")
    again = predict(f"{store}/photos", "--output", f"{store}/out", *given, "--resume")
    assert f"{COUNT - 1} of {COUNT + 1} images had complete results before" in again.err
    assert files.cat_file(f"{out}/3.json") == (folder / "3.json").read_bytes()
    # what somebody wrote is not replaced, and the others are
    files.pipe_file(f"{out}/1.json", b"{}")
    refused = predict(f"{store}/photos/1.png", "--output", f"{store}/out", "--weights", model)
    assert refused.code == 2
    assert f"error {store}/out/1.json: is there and was not written by unimask" in refused.err
    assert files.cat_file(f"{out}/1.json") == b"{}"
    over = predict(f"{store}/photos/1.png", "--output", f"{store}/out", *given, "--overwrite")
    assert over.code == 0, over.err
    assert files.cat_file(f"{out}/1.json") == (folder / "1.json").read_bytes()


def test_memory(memory: str, photos: Path, model: Path, tmp_path: Path) -> None:
    check_a_store(memory, photos, model, tmp_path)


def test_s3(server: str, photos: Path, model: Path, tmp_path: Path) -> None:
    check_a_store(server, photos, model, tmp_path)


def test_google(google: str, photos: Path, model: Path, tmp_path: Path) -> None:
    check_a_store(google, photos, model, tmp_path)


def test_the_hub(hub: str, photos: Path, model: Path, tmp_path: Path) -> None:
    """Which refuses a commit while another one is on its way, and whose client keeps listings."""
    files, place = fill(hub, photos), Url(f"{hub}/photos")
    assert len(remote.files_in(place) or ()) == COUNT + 2
    files.pipe_file(f"{place.text.removeprefix('hf://')}/more.txt", b"x")
    assert len(remote.files_in(place) or ()) == COUNT + 3
    files.rm_file(f"{place.text.removeprefix('hf://')}/more.txt")
    check_a_store(hub, photos, model, tmp_path)


def test_a_folder_of_this_machine_and_a_store_go_together(
    memory: str, photos: Path, model: Path, tmp_path: Path
) -> None:
    files = fill(memory, photos)
    out = predict(photos / "0.png", f"{memory}/photos/1.png", "--output", tmp_path, "--weights", model)
    assert out.code == 0
    assert {"0.json", "1.json"} <= {path.name for path in tmp_path.iterdir()}
    out = predict(photos / "0.png", "--output", f"{memory}/here", "--weights", model, "--format", "json")
    assert out.code == 0
    assert files.cat_file("/bucket/here/0.json") == (tmp_path / "0.json").read_bytes()


def test_what_is_killed_on_its_way_is_done_again(
    memory: str, photos: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = fill(memory, photos)
    put, count = staging.put, []

    def dying(path: Path, url: Url) -> None:
        count.append(url)
        if len(count) == 3:  # the ledger and a file are there
            raise KeyboardInterrupt
        put(path, url)

    given = (f"{memory}/photos/0.png", "--output", f"{memory}/out", "--weights", model, "--format")
    monkeypatch.setattr(staging, "put", dying)
    monkeypatch.setattr(remote, "CONNECTIONS", 1)
    assert predict(*given, "json,overlay").code == 130
    assert len(files.find("/bucket/out/")) == 2
    monkeypatch.setattr(staging, "put", put)
    outcome = predict(*given, "json,overlay", "--resume")
    assert outcome.code == 0
    assert "had complete results" not in outcome.err
    assert len(files.find("/bucket/out/")) == 4


def test_deep_images_of_a_store_are_decided_together(
    memory: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep").mkdir()
    for number, brightest in enumerate((900, 4000)):
        grey = np.asarray(picture(20, 24, seed=number).convert("L")).astype(np.uint16)
        Image.fromarray(grey * (brightest // 255)).save(tmp_path / "deep" / f"{number}.png")
    fill(memory, tmp_path / "deep")
    there = predict(f"{memory}/photos", "--output", f"{memory}/out", "--weights", model, "--format", "json")
    here = predict(tmp_path / "deep", "--output", tmp_path / "out", "--weights", model, "--format", "json")
    said = [re.findall("are taken as .*-bit", one.err) for one in (there, here)]
    assert said[0] == said[1] != []
    files = fsspec.filesystem("memory")
    assert files.cat_file("/bucket/out/0.json") == (tmp_path / "out" / "0.json").read_bytes()


def test_what_no_store_can_be_asked_is_said(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: str
) -> None:
    given = ("--weights", model, "--output", tmp_path / "out")
    message = predict("nowhere://b/photos", *given).err
    assert "error nowhere://b/photos: there is no store nowhere://; there are s3://" in message
    assert f"error {memory}/a.png: no such file, folder or bucket" in predict(f"{memory}/a.png", *given).err
    files = fsspec.filesystem("memory")
    files.pipe_file("/bucket/texts/a.txt", b"x")
    assert f"error {memory}/texts: no images in this folder" in predict(f"{memory}/texts", *given).err
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "gcsfs", None)
        remote._store.cache_clear()
        with pytest.raises(MissingPackageError, match=re.escape("unimask[remote]")):
            remote.files_in(Url("gs://bucket/photos"))
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # of what other tests said
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    remote._store.cache_clear()
    with pytest.raises(DataError, match="finds no credentials"):
        remote.files_in(Url("s3://bucket/photos"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    remote._store.cache_clear()
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(DataError, match="the store does not answer as it should"):
        remote.files_in(Url("s3://bucket/photos"))
    remote._store.cache_clear()


def test_addresses_and_paths() -> None:
    url = location("s3://bucket/a folder/b.tar.png")
    assert isinstance(url, Url)
    assert (url.name, url.stem, url.suffix, url.folder_name) == ("b.tar.png", "b.tar", ".png", "a folder")
    assert str(Url("s3://bucket/").inside("x")) == "s3://bucket/x"
    assert location("file:///tmp/a%20b.png") == Path("/tmp/a b.png")
    assert location("photos/a.png") == Path("photos/a.png")
    assert location("C:/photos") == Path("C:/photos")


def test_shards_in_a_store_are_data(server: str, tmp_path: Path) -> None:
    """The same samples as of the folder, also in workers; one sentence for what is missing."""
    folder = tmp_path / "shards"
    write_shards(labelled(tmp_path / "data"), folder)
    store = fsspec.filesystem("s3", skip_instance_cache=True)
    with pytest.raises(DataError, match=r"s3://bucket/shards: holds no shards\.json; .*copy the folder"):
        open_dataset(f"{server}/shards", "train", "panoptic")
    store.put(f"{folder}/", f"{server}/shards/", recursive=True)
    for split in ("train", "val"):
        here = open_dataset(folder, split, "panoptic")
        assert_same_sets(open_dataset(f"{server}/shards", split, "panoptic"), here)
    pattern = f"{server}/shards/train-{{0000..0000}}.tar"
    assert_same_sets(open_dataset(pattern, "all", "panoptic"), open_dataset(folder, "train", "panoptic"))
    assert list(open_splits(f"{server}/shards", "panoptic")) == ["train", "val"]
    with pytest.raises(DataError, match=r"1 of 2 shards are missing: s3://bucket/shards/train-0001\.tar"):
        open_dataset(f"{server}/shards/train-{{0000..0001}}.tar", "all", "panoptic")
    for data, name in ((folder / "train-{0000..0000}.tar", "here"), (pattern, "there")):
        experiment = small_experiment(training__steps=2, training__workers=1, training__evaluate_every=0)
        train(experiment, data, tmp_path / name, task="panoptic", reporter=SilentReporter())
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("here", "there")]
    losses = [[json.loads(line).get("loss") for line in log.splitlines()] for log in logs]
    assert losses[0] == losses[1]
