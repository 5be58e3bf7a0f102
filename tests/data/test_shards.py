"""Any data set as shards: the same samples, in the same order, and one sentence for whatever is wrong."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.command_line import unimask
from data.dataset_files import (
    CLASSES,
    class_map,
    save_coco_instances,
    save_json,
    save_labels,
    save_picture,
)
from PIL import Image

from unimask.config.data import DataConfig, ScaleJitter
from unimask.config.tasks import Task
from unimask.data.check import check
from unimask.data.formats.shards import shards_named
from unimask.data.loader import training_loader
from unimask.data.open import open_dataset, open_items
from unimask.data.packing import write_shards
from unimask.errors import DataError
from unimask.presets.own_data import tiny
from unimask.structures import Dataset, Detections, Sample, Segments


def photos(root: Path, count: int = 5) -> Path:
    """A folder of JPEG images with label maps, split into train and val."""
    noise = np.random.default_rng(0)
    for split, images in (("train", count), ("val", 2)):
        for n in range(images):
            path = root / "images" / split / f"{split}.{n}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(0, 255, (13, 11, 3), dtype=np.uint8)).save(path)
            save_labels(root / "labels" / split / f"{split}.{n}.png", class_map())
    save_json(root / "classes.json", CLASSES)
    return root


def assert_same(one: Sample, other: Sample) -> None:
    assert one.image_id == other.image_id
    assert torch.equal(one.image, other.image)
    assert type(one.truth) is type(other.truth)
    for name, tensor in vars(one.truth).items():
        assert torch.equal(tensor, vars(other.truth)[name]), name


def assert_same_sets(one: Dataset, other: Dataset) -> None:
    assert one.categories == other.categories
    assert len(one) == len(other) > 0
    for index in range(len(one)):
        assert_same(one[index], other[index])


def test_photos_are_kept_as_they_are(tmp_path: Path) -> None:
    data = photos(tmp_path / "data")
    written = write_shards(data, tmp_path / "shards", megabytes=1)
    assert written.images == {"train": 5, "val": 2}
    assert written.left_out == ()
    for split in ("train", "val"):
        for task in ("panoptic", "semantic"):
            assert_same_sets(open_dataset(tmp_path / "shards", split, task), open_dataset(data, split, task))
    with tarfile.open(tmp_path / "shards" / "train-0000.tar") as archive:
        names = archive.getnames()
        assert names[:3] == ["000000000.json", "000000000.npz", "000000000.jpg"]
        inside = archive.extractfile("000000000.jpg")
        assert inside is not None
        assert inside.read() == (data / "images" / "train" / "train.0.jpg").read_bytes()
    again = write_shards(data, tmp_path / "again", megabytes=1)
    for name in again.shards["train"]:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "shards" / name).read_bytes()


@pytest.mark.parametrize("task", ["instance", "detection"])
def test_instances_and_their_boxes(tmp_path: Path, task: Task) -> None:
    save_coco_instances(tmp_path / "train.json", tmp_path / "images", 3)
    save_coco_instances(tmp_path / "val.json", tmp_path / "images", 2)
    write_shards(tmp_path, tmp_path / "shards", task)
    found = open_dataset(tmp_path / "shards", "train", task)
    assert_same_sets(found, open_dataset(tmp_path, "train", task))
    assert isinstance(found[0].truth, Detections if task == "detection" else Segments)
    if task == "detection":
        with pytest.raises(DataError, match="hold boxes and no masks"):
            open_dataset(tmp_path / "shards", "train", "instance")


def test_what_was_decided_about_the_images_is_kept(tmp_path: Path) -> None:
    """12-bit images with a few bright pixels, and generated ones, which have no file."""
    data = tmp_path / "data"
    for n, brightest in enumerate((4000, 90)):
        path = save_picture(data / "images" / "train" / f"{n}.png", 13, 11)
        Image.fromarray(np.full((13, 11), brightest, dtype=np.uint16)).save(path)
        save_labels(data / "labels" / "train" / f"{n}.png", class_map())
    save_json(data / "classes.json", CLASSES)
    write_shards(data, tmp_path / "shards", "semantic")
    items = open_items(tmp_path / "shards", "train", "semantic")
    assert items.decided.reading.depth == 12
    assert_same_sets(items, open_items(data, "train", "semantic"))


def test_several_shards_are_read_as_one_set(tmp_path: Path) -> None:
    data = photos(tmp_path / "data")
    shards = tmp_path / "shards"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unimask.data.packing._SplitWriter._write_shard", small(2))
        written = write_shards(data, shards)
    assert written.shards["train"] == ["train-0000.tar", "train-0001.tar", "train-0002.tar"]
    whole = open_dataset(f"{shards}/train-{{0000..0002}}.tar", "all", "panoptic")
    assert_same_sets(whole, open_dataset(data, "train", "panoptic"))
    part = open_dataset(f"{shards}/train-{{0001..0002}}.tar", "all", "panoptic")
    assert [part[index].image_id for index in range(len(part))] == ["train.2", "train.3", "train.4"]
    said = check(shards, "panoptic", tiny())
    assert {name: one.read for name, one in said.splits.items()} == {"train": 5, "val": 2}


def small(most: int) -> object:
    """`_write_shard` that closes a shard after so many samples."""
    from unimask.data import packing

    write = packing._SplitWriter._write_shard

    def limited(self, archive, index, first, samples):  # type: ignore[no-untyped-def]
        taken = [next(samples, None) for _ in range(most)]
        given = [one for one in taken[: most - 1] if one is not None]
        write(self, archive, index, first, iter(given))
        return taken[most - 1]

    return limited


def test_a_stream_of_shards_goes_on_to_the_bit_and_in_shares(tmp_path: Path) -> None:
    """From any step on, for any number of processes: the same images as from the files themselves."""
    data = photos(tmp_path / "data")
    write_shards(data, tmp_path / "shards")
    sets = [open_dataset(place, "train", "panoptic") for place in (data, tmp_path / "shards")]
    config = DataConfig(crop=(16, 16), jitter=ScaleJitter(low=0.7, high=1.4))
    about = {"mean": (123.0, 117.0, 104.0), "std": (58.0, 57.0, 57.0), "seed": 3}

    def batches(dataset: Dataset, size: int, start: int, rank: int, world: int, workers: int) -> list:
        stream = training_loader(
            dataset,
            config,
            batch_size=size,
            start_step=start,
            rank=rank,
            world=world,
            workers=workers,
            **about,
        )
        found = [next(stream) for _ in range(3)]
        stream.close()
        return found

    unbroken = batches(sets[0], 2, 3, 0, 1, 0)
    resumed = batches(sets[1], 2, 3, 0, 1, 1)
    shares = [batches(sets[1], 1, 3, rank, 2, 0) for rank in range(2)]
    for step, (one, other) in enumerate(zip(unbroken, resumed, strict=True)):
        assert one.image_ids == other.image_ids == tuple(share[step].image_ids[0] for share in shares)
        assert torch.equal(one.images.pixels, other.images.pixels)
        for index, share in enumerate(shares):
            assert torch.equal(share[step].images.pixels[0], one.images.pixels[index])
            assert torch.equal(share[step].targets[0].layers, one.targets[index].layers)


def test_images_that_cannot_be_read_are_left_out_and_said(tmp_path: Path) -> None:
    data = photos(tmp_path / "data")
    (data / "images" / "train" / "train.1.jpg").write_bytes(b"no image")
    written = write_shards(data, tmp_path / "shards")
    assert written.images == {"train": 4, "val": 2}
    (said,) = written.left_out
    assert "train.1.jpg" in said
    assert json.loads((tmp_path / "shards" / "shards.json").read_text())["left_out"] == [said]


def test_a_pattern() -> None:
    paths = shards_named("a/{08..11}/x-{1..2}.tar")
    assert [str(path) for path in paths[:3]] == ["a/08/x-1.tar", "a/08/x-2.tar", "a/09/x-1.tar"]
    assert len(paths) == 8
    assert shards_named("a.tar") == (Path("a.tar"),)


def test_damage_is_told_in_a_sentence(tmp_path: Path) -> None:
    data, shards = photos(tmp_path / "data"), tmp_path / "shards"
    write_shards(data, shards)
    with pytest.raises(DataError, match="is not empty"):
        write_shards(data, shards)
    shard, index = shards / "train-0000.tar", shards / "train-0000.json"
    with pytest.raises(DataError, match=r"2 of 3 shards are missing: .*train-0001.tar"):
        open_dataset(f"{shards}/train-{{0000..0002}}.tar", "all", "panoptic")
    content, said = shard.read_bytes(), index.read_text()
    shard.write_bytes(content[:-11000])
    with pytest.raises(DataError, match=r"train-0000.tar \(train.4\): is cut off"):
        open_dataset(shards, "train", "panoptic")[4]
    shard.write_bytes(bytes(len(content)))
    with pytest.raises(DataError, match=r"holds nothing in the place of the sample|is damaged"):
        open_dataset(shards, "train", "panoptic")[0]
    shard.write_bytes(content)
    for broken, message in (
        ("[]", "is no index of a shard"),
        (said.replace('"unimask_shard": 1', '"unimask_shard": 2'), "is of version 2"),
        (said.replace('"kind"', '"sort"'), "is no index of a shard"),
        (said[:-9], "is not valid JSON"),
    ):
        index.write_text(broken)
        with pytest.raises(DataError, match=message):
            open_dataset(shards, "train", "panoptic")
    index.unlink()
    with pytest.raises(DataError, match=r"has no index train-0000.json beside it"):
        open_dataset(shards, "train", "panoptic")
    index.write_text(said)
    (shards / "shards.json").unlink()
    with pytest.raises(DataError, match="are not complete"):
        open_dataset(shards, "train", "panoptic")
    write_shards(data, shards)  # starts again where the writing was broken off
    assert_same_sets(open_dataset(shards, "train", "panoptic"), open_dataset(data, "train", "panoptic"))


def test_the_commands(tmp_path: Path) -> None:
    data, shards = photos(tmp_path / "data"), tmp_path / "shards"
    (data / "images" / "train" / "train.1.jpg").write_bytes(b"no image")
    written = unimask("shards", "--data", data, "--output", shards)
    assert (written.code, written.err.count("left out: ")) == (0, 1)
    assert "train: 4 images in 1 shard\nval: 2 images in 1 shard\n" in written.out
    counts = {"train": 4, "val": 2}
    told = unimask("check", "--data", shards, "--task", "panoptic", "--json").json()
    assert {split: about["images"] for split, about in told["splits"].items()} == counts
    again = unimask("shards", "--data", data, "--output", tmp_path / "again", "--json")
    assert again.json()["images"] == counts
