"""Images from untrusted bytes."""

import io
from dataclasses import dataclass

from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from unimask.data.reading import PLAIN, Reading
from unimask.errors import DataError
from unimask.inference.given import as_given, read_given
from unimask.serve.limits import Limits, Refusal

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")  # decoders start no program
LONGEST_NAME = 80


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """An image, and sentences about how it was read."""

    pixels: UInt8[Tensor, "3 height width"]
    notes: tuple[str, ...]


def decode(content: bytes, limits: Limits, reading: Reading = PLAIN) -> Decoded:
    """Return the image in the bytes of a file, as a model with this `reading` reads it.

    Its size is read from the file's head and checked before a pixel is decoded.

    Raises:
        Refusal: it is empty, no image, damaged, or larger than the limits.
    """
    if not content:
        raise Refusal(400, "The file is empty (0 bytes). Choose another one.")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > limits.pixels:
                raise _too_large(f"{image.width:,} x {image.height:,} pixels", limits)
        notes: list[str] = []
        ((_, found),) = read_given(as_given(content), reading, "rgb", lambda name, said: notes.append(said))
        return Decoded(pixels=found.pixels, notes=tuple(notes))
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise Refusal(415, f"This is not an image in a format that is read here ({known}).") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large("far too many pixels", limits) from None
    except DataError as error:
        raise Refusal(422, f"The image cannot be used: it {_as_said(error.reason)}.") from None
    except MemoryError:
        raise Refusal(413, "The image does not fit into memory. Send a smaller one.") from None
    except Refusal:
        raise
    except Exception as error:  # decoders raise all kinds of errors on damaged files
        reason = str(error) or type(error).__name__
        raise Refusal(422, f"The image is damaged or cut off ({reason}). Copy or save it again.") from None


def _as_said(reason: str) -> str:
    return reason.removeprefix("the image ").rstrip(".")


def _too_large(what: str, limits: Limits) -> Refusal:
    return Refusal(
        413, f"The image has {what}, and at most {limits.pixels:,} are taken. Send it smaller or in parts."
    )


def display_name(name: str) -> str:
    """Return the name of a client's image in answers: the stem of its file's name, of harmless letters.

    It is never used as a path.
    """
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    stem = last.rsplit(".", 1)[0] if "." in last.lstrip(".") else last
    clean = "".join(letter if letter.isalnum() or letter in " ._-()" else "_" for letter in stem)
    return clean.strip(" .")[:LONGEST_NAME] or "image"


def encode(image: UInt8[Tensor, "3 height width"]) -> bytes:
    """Return a PNG of the pixels, compressed for speed."""
    return png(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()))


def png(picture: Image.Image) -> bytes:
    """Return the bytes of a PNG file."""
    stream = io.BytesIO()
    picture.save(stream, format="PNG", compress_level=1)
    return stream.getvalue()
