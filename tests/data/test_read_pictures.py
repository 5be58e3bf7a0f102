import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unimask.data.read import image_files, read_image, read_labels, read_panoptic_ids
from unimask.data.reading import Reading
from unimask.errors import DataError


def test_rgb_picture_keeps_its_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.dtype == torch.uint8
    assert image.is_contiguous()
    assert np.array_equal(image.numpy(), pixels.transpose(2, 0, 1))
    assert torch.equal(read_image(str(tmp_path / "a.png")), image)
    assert torch.equal(read_image(Image.open(tmp_path / "a.png")), image)
    assert torch.equal(read_image(pixels), image)
    assert torch.equal(read_image(image), image)
    assert torch.equal(read_image(image[:1])[2], image[0])
    assert torch.equal(read_image(image[0]), image[:1].expand(3, -1, -1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    stored = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    image = read_image(tmp_path / "a.png")[0].numpy()
    a = np.arange(6).reshape(2, 3) * 40
    upright = [a, a[:, ::-1], a[::-1, ::-1], a[::-1], a.T, np.rot90(a, -1), a[::-1, ::-1].T, np.rot90(a)]
    assert np.array_equal(image, upright[orientation - 1])
    assert np.array_equal(read_image(tmp_path / "a.png", Reading(orientation="stored"))[0].numpy(), a)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 100, 255], [0, 100, 255]),  # 8 bits in a 16-bit file
        ([0, 2048, 4095], [0, 128, 255]),  # a 12-bit camera
        ([0, 300, 1000], [0, 19, 62]),  # the same camera, a dark picture
        ([0, 32768, 65535], [0, 128, 255]),
        ([0, 5000, 6000], [0, 19, 23]),
    ],
)
def test_sixteen_bit_grey_is_scaled_by_the_depth_of_the_camera(
    tmp_path: Path, values: list[int], expected: list[int]
) -> None:
    for name in ("a.png", "a.tif"):
        Image.fromarray(np.array([values], dtype=np.uint16)).save(tmp_path / name)
        assert read_image(tmp_path / name).tolist() == [[expected]] * 3
    assert read_image(np.array([values], dtype=np.uint16))[0].tolist() == [expected]
    assert read_image(torch.tensor([values], dtype=torch.int32))[0].tolist() == [expected]


def test_modes_become_rgb(tmp_path: Path) -> None:
    grey = Image.fromarray(np.array([[10, 200]], dtype=np.uint8))
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode=None).convert("P")
    palette.putpalette([255, 0, 0, 0, 0, 255] + [0] * 750)
    palette.putdata([0, 1])
    alpha = Image.fromarray(np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], dtype=np.uint8))
    half = Image.fromarray(np.array([[[100, 0, 200, 128], [0, 0, 0, 255]]], dtype=np.uint8))
    grey_alpha = Image.merge("LA", (grey, Image.new("L", (2, 1), 0)))
    cases = {
        "grey": (grey, [[10, 10, 10], [200, 200, 200]]),
        "palette": (palette, [[255, 0, 0], [0, 0, 255]]),
        "alpha": (alpha, [[10, 20, 30], [255, 255, 255]]),
        "half": (half, [[177, 127, 227], [0, 0, 0]]),
        "grey_alpha": (grey_alpha, [[255] * 3] * 2),
        "one_bit": (grey.point(lambda v: v > 99 and 255).convert("1"), [[0] * 3, [255] * 3]),
    }
    for name, (picture, expected) in cases.items():
        picture.save(tmp_path / f"{name}.png")
        assert read_image(tmp_path / f"{name}.png")[:, 0].T.tolist() == expected, name
    Image.new("CMYK", (2, 1), (0, 255, 255, 0)).save(tmp_path / "cmyk.tif")
    assert read_image(tmp_path / "cmyk.tif")[:, 0, 0].tolist() == [255, 0, 0]


def test_transparent_palette_is_laid_on_white(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putdata([0, 1])
    picture.save(tmp_path / "a.png", transparency=1)
    assert read_image(tmp_path / "a.png")[:, 0].T.tolist() == [[255, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("size", [(1, 1), (20_000, 30), (30, 20_000)])
def test_extreme_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("L", size, 7).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.shape == (3, size[1], size[0])
    assert bool((image == 7).all())


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")


def test_unusable_files_name_the_file_and_the_way_out(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole)
    files = {
        "missing.png": None,
        "empty.png": b"",
        "text.png": b"this is no picture",
        "cut.jpg": whole.read_bytes()[:900],
        "bomb.png": _png_header(60_000, 60_000),
        "large.png": _png_header(13_350, 13_350),
        "zero.png": _png_header(0, 4),
    }
    reasons = {
        "missing.png": "no such file",
        "empty.png": "empty",
        "text.png": "known format",
        "cut.jpg": "cut off",
        "bomb.png": "tiles",
        "large.png": "tiles",
        "zero.png": "zero.png",
    }
    for name, content in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=reasons[name]) as caught:
            read_image(tmp_path / name)
        assert caught.value.path == str(tmp_path / name)
    with pytest.raises(DataError, match="folder"):
        read_image(tmp_path)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA", "I;16"])
def test_a_png_whose_head_promises_more_rows_than_there_are_is_refused(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    black = Image.new("I;16" if mode == "I;16" else "L", (64, 48), 0)
    (black if mode == "I;16" else black.convert(mode)).save(path)
    read_image(path)  # black, and whole
    content = bytearray(path.read_bytes())
    content[20:24] = struct.pack(">I", 400)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    path.write_bytes(content)
    with pytest.raises(DataError, match="rows are missing"):
        read_image(path)


def test_truncated_png_is_an_error(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 90), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    for share in (0.02, 0.3, 0.9):
        (tmp_path / "a.png").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(DataError, match=r"a\.png"):
            read_image(tmp_path / "a.png")


def test_unusable_arrays() -> None:
    with pytest.raises(DataError, match="shape"):
        read_image(np.zeros((4, 5, 2), dtype=np.uint8))
    with pytest.raises(DataError, match="no pixels"):
        read_image(np.zeros((0, 5, 3), dtype=np.uint8))
    with pytest.raises(DataError, match="float32"):
        read_image(np.zeros((4, 5, 3), dtype=np.float32))
    with pytest.raises(DataError, match="-1"):
        read_image(np.full((4, 5), -1))
    with pytest.raises(DataError, match="floating"):
        read_image(Image.new("F", (3, 3)))


def test_label_pictures(tmp_path: Path) -> None:
    sixteen = np.array([[0, 300, 65535]], dtype=np.uint16)
    Image.fromarray(sixteen).save(tmp_path / "sixteen.png")
    assert read_labels(tmp_path / "sixteen.png").tolist() == [[0, 300, 65535]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 9, 9, 0, 0, 255])
    palette.putdata([1, 0])
    palette.save(tmp_path / "palette.png")
    assert read_labels(tmp_path / "palette.png").tolist() == [[1, 0]]
    Image.new("RGB", (2, 1)).save(tmp_path / "rgb.png")
    with pytest.raises(DataError, match="one number per pixel"):
        read_labels(tmp_path / "rgb.png")
    Image.fromarray(np.array([[[1, 2, 3]]], dtype=np.uint8)).save(tmp_path / "ids.png")
    assert read_panoptic_ids(tmp_path / "ids.png").tolist() == [[1 + 2 * 256 + 3 * 65536]]
    with pytest.raises(DataError, match="R \\+ 256 G"):
        read_panoptic_ids(tmp_path / "palette.png")


def test_image_files_expands_folders_in_order(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", ".hidden.png", "notes.txt", "sub/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    other = tmp_path / "not_there.png"
    assert image_files([other, tmp_path]) == [other, tmp_path / "a.JPG", tmp_path / "b.png"]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no images in this folder"):
        image_files([tmp_path / "none"])
    with pytest.raises(DataError, match="none given"):
        image_files([])
