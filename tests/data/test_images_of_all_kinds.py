"""Everything that can be read as an image, and TIFF files: a window equals the same part of the whole."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from data.deep_png import png16
from numpy import ndarray
from PIL import Image

from unimask.data.read import image_name, read, read_image, read_labels
from unimask.data.reading import Reading
from unimask.data.windows import open_large
from unimask.errors import DataError

RNG = np.random.default_rng(0)


def grey(*shape: int, top: int = 256, kind: type = np.uint8) -> ndarray:
    return RNG.integers(0, top, shape).astype(kind)


SMOOTH = (np.add.outer(np.arange(64) * 3, np.arange(96)) % 256).astype(np.uint8)[..., None].repeat(3, 2)
RGB, CHANNELS = {"photometric": "rgb"}, {"photometric": "minisblack", "planarconfig": "contig"}
WHITE, COLORS = {"photometric": "miniswhite"}, grey(3, 256, top=65536, kind=np.uint16)
TIFFS: dict[str, tuple[ndarray, dict[str, object]]] = {
    "grey": (grey(40, 48), {}),
    "white is zero": (grey(40, 48), {"photometric": "miniswhite"}),
    "white is zero, 16 bits": (
        grey(40, 48, top=4096, kind=np.uint16) + np.uint16(61440),
        {"photometric": "miniswhite"},
    ),
    "bilevel": (grey(40, 48) > 99, {}),
    "palette": (
        grey(40, 48),
        {"photometric": "palette", "colormap": grey(3, 256, top=65536, kind=np.uint16)},
    ),
    "cmyk": (grey(40, 48, 4), {"photometric": "separated"}),
    "rgb": (grey(40, 48, 3), RGB),
    "rgb in tiles": (grey(40, 48, 3), {**RGB, "tile": (16, 16), "compression": "zlib"}),
    "rgb in planes": (grey(3, 40, 48), {**RGB, "planarconfig": "separate"}),
    "rgb, big endian": (grey(40, 48, 3, top=4096, kind=np.uint16), {**RGB, "byteorder": ">"}),
    "rgb, 16 bits": (grey(40, 48, 3, top=4096, kind=np.uint16), RGB),
    "alpha": (grey(40, 48, 4), {**RGB, "extrasamples": ["unassalpha"]}),
    "alpha, 16 bits": (grey(40, 48, 4, top=4096, kind=np.uint16), {**RGB, "extrasamples": ["unassalpha"]}),
    "premultiplied": (grey(40, 48, 4), {**RGB, "extrasamples": ["assocalpha"]}),
    "grey and alpha": (grey(40, 48, 2), {**CHANNELS, "extrasamples": ["unassalpha"]}),
    "rgb and infrared": (grey(40, 48, 4), {**RGB, "extrasamples": ["unspecified"]}),
    "two channels": (grey(40, 48, 2), {**CHANNELS, "extrasamples": ["unspecified"]}),
    "five channels": (grey(40, 48, 5), CHANNELS),
    "five planes": (grey(5, 40, 48), {"photometric": "minisblack", "planarconfig": "separate"}),
    "stack": (grey(5, 40, 48), {"photometric": "minisblack"}),
    "imagej": (grey(4, 3, 40, 48), {"imagej": True, "metadata": {"axes": "ZCYX"}}),
    "12 of 16 bits": (grey(40, 48, top=4096, kind=np.uint16), {"compression": "zlib", "predictor": True}),
    "signed": (grey(40, 48, top=4096, kind=np.int16), {}),
    "jpeg": (SMOOTH, {"photometric": "ycbcr", "compression": "jpeg", "tile": (32, 32)}),
    **{f"turned {tag}": (grey(40, 48), {"extratags": [(274, "H", 1, tag, True)]}) for tag in range(2, 9)},
}


@pytest.mark.parametrize("kind", TIFFS)
def test_a_window_of_a_tiff_is_that_part_of_the_whole(tmp_path: Path, kind: str) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    pytest.importorskip("zarr", reason="zarr is not installed")
    values, options = TIFFS[kind]
    tifffile.imwrite(tmp_path / "a.tif", values, **options)
    for reading in (Reading(depth=12), Reading(depth=12, orientation="stored", page="max", channel="max")):
        whole = read_image(tmp_path / "a.tif", reading)
        height, width = whole.shape[1:]
        with open_large(tmp_path / "a.tif", reading) as image:
            assert image.size == (height, width)
            for rows, columns in (((0, height), (0, width)), ((3, 17), (5, 30)), ((39, 40), (0, 1))):
                window = image.read(slice(*rows), slice(*columns))
                assert torch.equal(window, whole[:, slice(*rows), slice(*columns)])


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_tiff_is_turned(tmp_path: Path, orientation: int) -> None:
    """Also one that is not compressed, whose rows Pillow would map with the sides of the turned image."""
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    a = grey(20, 30)
    tifffile.imwrite(tmp_path / "a.tif", a, extratags=[(274, "H", 1, orientation, True)])
    upright = [a[:, ::-1], a[::-1, ::-1], a[::-1], a.T, np.rot90(a, -1), a[::-1, ::-1].T, np.rot90(a)]
    assert np.array_equal(read_image(tmp_path / "a.tif")[0].numpy(), upright[orientation - 2])
    assert np.array_equal(read_image(tmp_path / "a.tif", Reading(orientation="stored"))[0].numpy(), a)
    assert np.array_equal(read_labels(tmp_path / "a.tif"), a)


def test_channels_and_pages_are_chosen_and_what_is_left_out_is_said(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    values, options = TIFFS["imagej"]
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, **options)
    first = read(path)
    assert np.array_equal(first.pixels[0].numpy(), values[0, 0])
    assert [note.split(";")[0] for note in first.notes] == ["page 1 of 4 is read", "channel 1 of 3 read"]
    chosen = read(path, Reading(page=3, channel=2))
    assert np.array_equal(chosen.pixels[0].numpy(), values[2, 1])
    assert chosen.notes == ()
    most = read_image(path, Reading(page="max", channel="max"))
    assert np.array_equal(most[0].numpy(), values.max((0, 1)))
    with pytest.raises(DataError, match="has 4 pages; there is no page 5"):
        read(path, Reading(page=5))
    with pytest.raises(DataError, match="there is no channel 4"):
        read(path, Reading(channel=4))
    (note,) = read(_saved(tmp_path, "rgb and infrared")).notes
    assert note.startswith("channels 1 to 3 of 4 read")


def _saved(folder: Path, kind: str) -> Path:
    import tifffile

    values, options = TIFFS[kind]
    tifffile.imwrite(folder / "b.tif", values, **options)
    return folder / "b.tif"


def test_frames_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((8, 9), value, np.uint8)) for value in (10, 200, 90)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read(tmp_path / "a.gif").notes[0].startswith("page 1 of 3 is read")
    assert int(read_image(tmp_path / "a.gif", Reading(page=2)).max()) == 200
    assert int(read_image(tmp_path / "a.gif", Reading(page="max")).min()) == 200


@pytest.mark.parametrize(("color_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_colours_of_16_bits_keep_their_low_byte(tmp_path: Path, color_type: int, channels: int) -> None:
    """Pillow cuts them to the high byte: of a 12-bit camera 16 levels were left."""
    values = grey(20, 30, channels, top=4096, kind=np.uint16)
    if channels in (2, 4):
        values[..., -1] = 65535
    colors = values[..., : 3 if channels > 2 else 1]
    expected = np.broadcast_to((colors * (255 / 4095)).round(), (20, 30, 3))
    (tmp_path / "a.png").write_bytes(png16(values, color_type))
    for image in (tmp_path / "a.png", (tmp_path / "a.png").read_bytes()):
        found = read(image)
        assert np.abs(found.pixels.permute(1, 2, 0).numpy() - expected).max() <= 1
        assert found.notes[0].startswith("taken as 12-bit by its brightest value")


def test_streams_bytes_and_arrays_of_other_libraries(tmp_path: Path) -> None:
    pixels = grey(5, 7, 3)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    content, expected = path.read_bytes(), pixels.transpose(2, 0, 1)

    class Other:
        def __array__(self, dtype: object = None, copy: object = None) -> ndarray:
            return pixels

    with path.open("rb") as stream:
        assert (image_name(stream, 3), image_name(content, 3), image_name(path, 3)) == ("a", "image_3", "a")
        for image in (stream, content, bytearray(content), memoryview(content), io.BytesIO(content), Other()):
            assert np.array_equal(read_image(image).numpy(), expected)
    for turned in (pixels[..., ::-1], torch.from_numpy(expected[::-1].copy())):
        assert np.array_equal(read_image(turned, channels="bgr").numpy(), expected)


def test_what_is_no_image_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("text")

    def generator() -> Iterator[int]:
        yield 1

    used = io.BytesIO(b"x")
    used.read()
    cases = {
        "is None, as cv2.imread returns it": None,
        "is of type int": 3,
        "is of type dict": {},
        "is of type list": [],
        "is of type generator": generator(),
        "holds nothing": used,
        "binary mode": (tmp_path / "a.png").open(),
        "known format": b"nothing",
        "float32": np.zeros((3, 4), np.float32),
        "complex64": torch.zeros((3, 4), dtype=torch.complex64),
        "expected integers": np.array([["a", "b"]]),
        "expected an image": np.zeros((2, 3, 4, 5), np.uint8),
    }
    for reason, image in cases.items():
        with pytest.raises(DataError, match=reason):
            read(image)
    cases["binary mode"].close()  # type: ignore[attr-defined]


def test_label_maps_of_several_pages_are_refused(tmp_path: Path) -> None:
    pages = [Image.new("L", (4, 4), value) for value in (0, 1)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match="is a label map of 2 pages"):
        read_labels(tmp_path / "a.tif")
