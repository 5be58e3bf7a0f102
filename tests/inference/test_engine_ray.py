"""Images shared by actors of a real Ray: the files of the plain command, whatever is killed meanwhile."""

import csv
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from campaigns.processes import descendants
from cli.command_line import picture, refused, unimask
from inference.deadly_actor import Deadly
from inference.photos import write_photos
from test_documentation import ROOT, blocks

import unimask as public
from unimask.data.reading import PLAIN
from unimask.errors import ConfigError, DataError, WeightsError
from unimask.inference import ray_actors
from unimask.inference.engine_ray import predict_with_ray
from unimask.inference.job import Options, PredictionJob
from unimask.inference.loading import load
from unimask.inference.ray_actors import Actor, ActorSettings
from unimask.inference.rows import ROWS_NAME
from unimask.inference.run import predict
from unimask.inference.segmenter import Segmenter
from unimask.inference.shipping import pack, unpack

ray = pytest.importorskip("ray", reason="ray is not installed")
parquet = pytest.importorskip("pyarrow.parquet", reason="ray is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

COUNT = 40
BROKEN = ("011b.png", "030b.png")
# Ray shares GPUs that it is told of; an actor that sees none computes on the processor
WITH_GPUS = "cpu" if torch.cuda.is_available() else "auto"


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    tests = str(Path(__file__).parents[1])
    path = os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "PYTHONPATH": path}
    ray.init(
        "local",
        num_cpus=2,
        num_gpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 << 20,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = [f"{number:03}.png" for number in range(COUNT)]
    return write_photos(tmp_path_factory.mktemp("photos"), names, BROKEN)


@pytest.fixture(scope="module")
def plain(model: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the plain function."""
    folder = tmp_path_factory.mktemp("plain")
    predict(load(model, "cpu"), [photos], folder, formats=["json"])
    return files_in(folder)


def files_in(folder: Path) -> dict[str, bytes]:
    """The results in a folder."""
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*") if path.name != ROWS_NAME}


def assert_alike(found: dict[str, bytes], plain: dict[str, bytes]) -> None:
    """Check that JSON files are equal, scores up to rounding, which depends on the number of threads."""
    assert found.keys() == plain.keys()
    for name, content in found.items():
        ours, theirs = json.loads(content), json.loads(plain[name])
        scores, expected = ([one.pop("score") for one in each["segments"]] for each in (ours, theirs))
        assert scores == pytest.approx(expected, abs=2e-6)  # files have six digits
        assert ours == theirs


def rows_in(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of images, by the names of their files."""
    rows = parquet.read_table(folder / ROWS_NAME).to_pylist()
    found = {Path(row["path"]).name: row for row in rows}
    assert len(found) == len(rows)  # each image once
    return found


def kill_an_actor(when: Path, killed: list[int]) -> None:
    """Kill an actor as soon as there are a few results."""
    while len(list(when.glob("*.json"))) < COUNT // 4:
        time.sleep(0.02)
    killed.append(descendants(os.getpid(), "MapWorker")[0])
    os.kill(killed[0], signal.SIGKILL)


def test_two_actors_of_which_one_is_killed_make_the_files_of_the_plain_function(
    cluster: None, model: Path, photos: Path, plain: dict[str, bytes], tmp_path: Path
) -> None:
    killed: list[int] = []
    killer = threading.Thread(target=kill_an_actor, args=(tmp_path, killed), daemon=True)
    killer.start()
    told: list[tuple[int, int]] = []
    done = predict_with_ray(
        load(model, "cpu"),
        [photos],
        tmp_path,
        Options(formats=("json",)),
        progress=lambda *now: told.append(now),
        actors=2,
        device="cpu",
    )
    killer.join(1)
    assert killed
    assert_alike(files_in(tmp_path), plain)
    assert len(plain) == COUNT
    assert (done.images, done.complete, len(done.failed)) == (COUNT + 2, 0, 2)
    rows = rows_in(tmp_path)
    assert {name: row["status"] for name, row in rows.items()} == {
        **{f"{number:03}.png": "segmented" for number in range(COUNT)},
        **dict.fromkeys(BROKEN, "failed"),
    }
    assert rows["000.png"]["segments"] > 0
    assert rows["000.png"]["seconds"] > 0
    assert "is not an image in a known format" in rows[BROKEN[0]]["error"]
    assert (told[0], told[-1]) == ((0, COUNT + 2), (COUNT + 2, COUNT + 2))

    # what is complete is left out, and one file for all images has all of them
    (tmp_path / "005.json").unlink()
    again = predict_with_ray(
        load(model, "cpu"),
        [photos],
        tmp_path,
        Options(formats=("json",)),
        actors=1,
        device="cpu",
        resume=True,
    )
    assert (again.complete, len(again.failed)) == (COUNT - 1, 2)
    assert_alike(files_in(tmp_path), plain)
    assert rows_in(tmp_path)["005.png"]["status"] == "segmented"
    assert rows_in(tmp_path)["006.png"]["status"] == "complete before"


def test_a_data_set_of_ray_gets_columns(cluster: None, model: Path, photos: Path, tmp_path: Path) -> None:
    paths = [str(photos / name) for name in ("000.png", "001.png", BROKEN[0])]
    dataset = ray.data.from_items([{"path": path, "id": number} for number, path in enumerate(paths)])
    segmenter = load(model, "cpu").with_tta(["flip"])
    found = public.predict_dataset(
        dataset, segmenter, tmp_path, formats=["json"], actors=1, device="cpu"
    ).to_pandas()
    found = found.sort_values("id").to_dict("records")
    assert [row["status"] for row in found] == ["segmented", "segmented", "failed"]
    assert [row["path"] for row in found] == paths
    written = files_in(tmp_path)
    assert sorted(name[:4] for name in written) == ["000_", "001_"]
    predict(segmenter, paths[:1], tmp_path / "plain", formats=["json"])
    [first] = [content for name, content in written.items() if name.startswith("000_")]
    assert_alike({"000.json": first}, files_in(tmp_path / "plain"))
    with pytest.raises(ConfigError, match="csv is one file for all images"):
        public.predict_dataset(dataset, segmenter, tmp_path, formats=["csv"])


def test_the_example_of_a_pipeline_runs(
    cluster: None,
    model: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """That of the guide, with other images and a smaller model."""
    (example,) = blocks((ROOT / "docs" / "guide" / "many-images.md").read_text("utf-8"), "python")
    for name, ours in (("photos/a.png", photos / "000.png"), ("photos/b.png", photos / BROKEN[0])):
        example = example.replace(f'"{name}"', repr(str(ours)))
    monkeypatch.chdir(tmp_path)
    exec(example.replace('"nuclei"', repr(str(model))), {})
    rows = [line.split()[1:3] for line in capfd.readouterr().out.splitlines()[-2:]]
    assert sorted(rows) == [["7", "segmented"], ["8", "failed"]]
    assert len(list((tmp_path / "found").glob("000_*.json"))) == 1


def test_what_kills_its_actor_each_time_is_lost_alone(
    cluster: None, model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_actors, "Actor", Deadly)
    monkeypatch.setattr(ray_actors, "_attempts", lambda: {"max_task_retries": 0})
    named = [photos / f"{number:03}.png" for number in range(3)]
    done = predict_with_ray(
        load(model, "cpu"),
        named,
        tmp_path,
        Options(batch_size=3, formats=("json",)),  # Ray hands all of them out together, and gives them up
        actors=1,
        device="cpu",
    )
    assert [row["status"] for _, row in sorted(rows_in(tmp_path).items())] == [
        "segmented",
        "lost",
        "segmented",
    ]
    assert len(done.failed) == 1
    assert "001.png: the process that was to segment it died each time" in done.failed[0]


def test_a_machine_that_does_not_see_the_output_folder_says_so(model: Path, tmp_path: Path) -> None:
    job = PredictionJob(options=Options(), task="panoptic", reading=PLAIN, settings="")
    settings = ActorSettings(job=job, output=tmp_path / "gone", threads=1, device="cpu")
    with pytest.raises(DataError, match=r"gone: is not the same folder on .*; name one that all machines"):
        Actor(settings, None)  # type: ignore[arg-type]


def test_a_segmenter_is_packed_with_its_settings(model: Path) -> None:
    segmenter = load(model, "cpu").with_tta(["flip"]).with_reading(depth=12)
    again = unpack(pack(segmenter), "cpu")
    assert (again.tta, again.model_file, again.name) == (segmenter.tta, segmenter.model_file, segmenter.name)
    ours, theirs = segmenter.predict(picture(), "instance"), again.predict(picture(), "instance")
    assert ours.to_json() == theirs.to_json()
    in_memory = Segmenter(segmenter.model, segmenter.model_file)
    with pytest.raises(WeightsError, match="save its model into a folder"):
        pack(in_memory)


def test_options_that_do_not_fit_are_refused(model: Path, photos: Path, tmp_path: Path) -> None:
    given = ("predict", photos, "--weights", model, "--output", tmp_path)
    assert "is for --engine ray, which is not named" in refused(*given, "--actors", 2)
    assert "--engine ray writes a row per image" in refused(*given, "--engine", "ray", "--json")
    if not ray.is_initialized():
        message = refused(*given, "--engine", "ray", "--address", "127.0.0.1:1", "--device", "cpu")
        assert "address: no cluster of Ray answers at 127.0.0.1:1" in message


def test_the_command(
    cluster: None, model: Path, photos: Path, plain: dict[str, bytes], tmp_path: Path
) -> None:
    given = ("predict", *sorted(photos.glob("00*.png")), "--weights", model, "--format", "json,csv")
    outcome = unimask(*given, "--device", WITH_GPUS, "--output", tmp_path, "--engine", "ray", "--actors", 1)
    assert outcome.code == 0, outcome.err
    assert "images.parquet there has a row per image" in outcome.out
    assert_alike({"003.json": (tmp_path / "003.json").read_bytes()}, {"003.json": plain["003.json"]})
    there = tmp_path / "plain"
    unimask(*given, "--device", "cpu", "--output", there)
    ours, theirs = (list(csv.DictReader((folder / "segments.csv").open())) for folder in (tmp_path, there))
    assert len(ours) == len(theirs) > 0
    for row, other in zip(ours, theirs, strict=True):
        assert float(row.pop("score")) == pytest.approx(float(other.pop("score")), abs=2e-6)
        assert row == other
