"""Videos in, videos and a record per frame out; also of videos that are cut off."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cli.command_line import refused, save_tiny_model, unimask
from PIL import Image
from pycocotools import mask as coco_mask

from unimask.data.video import Frame, open_video
from unimask.errors import DataError
from unimask.inference import video as video_module
from unimask.inference.loading import load
from unimask.inference.segmenter import Segmenter
from unimask.inference.video import segment_video

av = pytest.importorskip("av", reason="PyAV is not installed")
COUNT, RATE = 24, 10


def frame_of(index: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """A green bar on top and a white square that moves to the right."""
    picture = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    picture[:6, :, 1] = 200
    picture[16:32, index : index + 16] = 255
    return picture


def write_video(path: Path, count: int = COUNT, kind: str = "mp4", size: tuple[int, int] = (64, 48)) -> Path:
    options = {"movflags": "faststart"} if kind == "mp4" else {}  # the head first, as cameras stream it
    with av.open(str(path), "w", format=kind, options=options) as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.gop_size = 6
        for index in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_of(index, size), format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    return load(save_tiny_model(tmp_path_factory.mktemp("tiny") / "model"), device="cpu")


def read(path: Path, every: int = 1) -> tuple[list[Frame], DataError | None]:
    with open_video(path) as video:
        return list(video.frames(every)), video.damage


@pytest.mark.parametrize("kind", ["mp4", "matroska", "avi"])
def test_frames_come_in_order_with_their_times(tmp_path: Path, kind: str) -> None:
    path = write_video(tmp_path / "clip", kind=kind)
    frames, damage = read(path)
    assert damage is None
    assert [frame.index for frame in frames] == list(range(COUNT))
    assert [frame.time for frame in frames] == pytest.approx(
        [index / RATE for index in range(COUNT)], abs=2e-3
    )
    for frame in frames:
        shown = frame.image.permute(1, 2, 0).numpy().astype(int)
        assert np.abs(shown - frame_of(frame.index)).mean() < 8  # the codec loses a little
    fewer, _ = read(path, every=5)
    assert [frame.index for frame in fewer] == [0, 5, 10, 15, 20]
    assert (fewer[1].image == frames[5].image).all()


def test_a_video_of_a_phone_stands_upright(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", count=2)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44  # of the track's head: how its pictures are turned
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 48 << 16, 0, 1 << 30)
    path.write_bytes(data)
    (first, _), damage = read(path)
    assert damage is None
    turned = np.rot90(frame_of(0), -1).astype(int)  # the bar from the top to the right
    assert first.image.shape == (3, 64, 48)
    assert np.abs(first.image.permute(1, 2, 0).numpy() - turned).mean() < 8


@pytest.mark.parametrize("kind", ["mp4", "matroska"])
def test_what_comes_before_the_damage_is_read(tmp_path: Path, kind: str) -> None:
    path = write_video(tmp_path / "clip", kind=kind)
    whole, _ = read(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.7)])
    frames, damage = read(path)
    assert 2 < len(frames) < COUNT
    assert all((one.image == other.image).all() for one, other in zip(frames, whole, strict=False))
    assert damage is not None
    assert f"clip: is damaged or cut off after {len(frames)} frames (a part is missing); copy it" in str(
        damage
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"no video" * 99, "cannot be opened as a video (Invalid data"),
        (None, "no such"),
    ],
)
def test_what_is_no_video(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as raised, open_video(path):
        raise AssertionError("it is opened")
    assert message in str(raised.value)
    assert str(raised.value).count("\n") == 0


def shown_in(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools
def test_a_video_becomes_a_video_and_a_record_per_frame(segmenter: Segmenter, tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", count=9)
    found = []
    result, damage = segment_video(
        segmenter,
        path,
        "instance",
        tmp_path / "out",
        "clip",
        formats=("overlay", "json"),
        every=2,
        write=found.append,
    )
    assert damage is None
    assert {one.name for one in (tmp_path / "out").glob("[!.]*")} == {"clip.overlay.mp4", "clip.json"}
    content = json.loads((tmp_path / "out" / "clip.json").read_text(encoding="utf-8"))
    assert list(content) == ["task", "height", "width", "categories", "frames"]
    assert [frame["frame"] for frame in content["frames"]] == [0, 2, 4, 6, 8]
    assert [frame["time"] for frame in content["frames"]] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    frames, _ = read(path, every=2)
    alone = segmenter.predict([frame.image for frame in frames], "instance")
    shown = shown_in(tmp_path / "out" / "clip.overlay.mp4")
    assert len(shown) == len(found) == len(alone) == 5
    for record, one, picture, mine in zip(content["frames"], alone, shown, found, strict=True):
        assert [segment["bbox"] for segment in record["segments"]] == [[*segment.bbox] for segment in one]
        for segment, mask in zip(record["segments"], one.masks, strict=True):
            assert (coco_mask.decode(segment["segmentation"]) == mask).all()
        assert np.abs(picture.astype(int) - np.asarray(one.plot())).mean() < 15
        assert mine.name == f"clip.frame_{record['frame']:06}"
    with av.open(str(tmp_path / "out" / "clip.overlay.mp4")) as container:
        assert float(container.duration / 1e6) == pytest.approx(1.0, abs=0.11)  # as long as the original
    assert len(result.frames) == 5
    assert sum(total.segments for total in result.totals.values()) == sum(map(len, alone))


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_masks_of_every_task_are_in_the_records(segmenter: Segmenter, tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", count=2)
    segment_video(segmenter, path, "semantic", tmp_path, "clip", formats=("json",))
    for frame in json.loads((tmp_path / "clip.json").read_text(encoding="utf-8"))["frames"]:
        covered = sum(coco_mask.decode(one["segmentation"]).astype(int) for one in frame["segments"])
        assert covered.max() == 1
        assert covered.sum() == sum(one["area"] for one in frame["segments"])


def test_sizes_that_the_codec_does_not_know_are_filled_up(segmenter: Segmenter, tmp_path: Path) -> None:
    path = tmp_path / "clip.avi"
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("ffv1", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 61, 47, "bgr0"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_of(0, (61, 47)), format="rgb24")))
        container.mux(stream.encode())
    segment_video(segmenter, path, "semantic", tmp_path, "x", formats=("overlay",))
    (shown,) = shown_in(tmp_path / "x.overlay.mp4")
    assert shown.shape == (48, 62, 3)


def test_the_command_takes_videos_beside_images(segmenter: Segmenter, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    write_video(tmp_path / "a.mp4", count=6)
    cut = write_video(tmp_path / "b.mp4")
    cut.write_bytes(cut.read_bytes()[: int(cut.stat().st_size * 0.7)])
    (tmp_path / "c.mp4").write_bytes(b"no video")
    Image.fromarray(frame_of(3)).save(tmp_path / "d.png")
    files = [tmp_path / name for name in ("a.mp4", "b.mp4", "c.mp4", "d.png")]
    out = tmp_path / "out"
    given = ("predict", *files, "--weights", model, "--task", "instance", "--output", out, "--every", 3)
    outcome = unimask(*given)
    assert outcome.code == 2
    assert {one.name for one in out.glob("[!.]*")} == {
        "a.overlay.mp4", "a.json", "b.overlay.mp4", "b.json", "d.overlay.png", "d.json"
    }  # fmt: skip
    assert "64 x 48, 2 frames" in outcome.out
    assert outcome.err.count("b.mp4: is damaged or cut off after") == 1
    assert outcome.err.count("c.mp4: cannot be opened as a video") == 1
    assert "2 of 4 images could not be segmented" in outcome.err
    frames = json.loads((out / "b.json").read_text())["frames"]
    assert len(frames) == len(shown_in(out / "b.overlay.mp4")) >= 2

    again = unimask(*given, "--resume")  # what is damaged is not complete, and is said again
    assert again.code == 2
    assert "2 of 4 images had complete results before" in again.err
    assert again.err.count("b.mp4: is damaged or cut off after") == 1
    write_video(cut)  # copied again
    assert "b.mp4" not in unimask(*given, "--resume").err
    assert len(json.loads((out / "b.json").read_text())["frames"]) == COUNT // 3

    tables = tmp_path / "tables"
    outcome = unimask(*given[:-4], "--output", tables, "--format", "csv,geojson", "--json")
    names = [f"a.frame_{index:06}" for index in range(6)]
    assert {f"{name}.geojson" for name in [*names, "d"]} <= {one.name for one in tables.iterdir()}
    images = [line.split(",")[0] for line in (tables / "images.csv").read_text().splitlines()[1:]]
    assert [name for name in dict.fromkeys(images) if name.startswith("a")] == names
    assert images[-1] == "d"
    about = {one["name"]: one for one in outcome.json()}
    assert about["a"]["frames"] == 6


def test_a_video_of_nothing_is_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"")
    model = save_tiny_model(tmp_path / "model")
    given = ("predict", tmp_path / "clip.mp4", "--weights", model, "--output", tmp_path / "out")
    assert "clip.mp4: the file is empty (0 bytes); copy it again" in refused(*given)


def test_a_few_frames_are_in_memory(
    segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames are read as they are needed: never more ahead of what is written than a few batches."""
    path = write_video(tmp_path / "clip.mp4", count=40)
    written, most = [], 0
    frames = video_module.Video.frames

    def counted(self: video_module.Video, every: int = 1) -> Iterator[Frame]:
        nonlocal most
        for number, frame in enumerate(frames(self, every), start=1):
            most = max(most, number - len(written))
            yield frame

    monkeypatch.setattr(video_module.Video, "frames", counted)
    segment_video(segmenter, path, "semantic", tmp_path, "x", formats=(), batch_size=2, write=written.append)
    assert len(written) == 40
    assert most <= 4
