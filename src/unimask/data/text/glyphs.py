"""A generated second modality: sequences of vectors to be read as characters.

Each sequence is a rendered line of characters, a few columns of pixels at a time.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from unimask.data.seeds import seeded_generator
from unimask.data.text.casing import AS_WRITTEN, Casing
from unimask.data.text.loader import SequencePair
from unimask.data.text.vocabulary import SPECIAL, Vocabulary, learn_vocabulary

HEIGHT = 16  # of the image, in pixels
COLUMNS = 4  # of pixels in each vector, as frames of speech are put together in groups
FEATURES = HEIGHT * COLUMNS  # numbers in each vector
CHARACTERS = "0123456789"
_SIZE = 13  # of the font, in pixels
_TRAIN, _VAL = 0, 1


@dataclass(frozen=True, kw_only=True)
class GlyphData:
    """Rendered characters to train and to evaluate on; `truth` holds characters with blanks between them."""

    name: str
    vocabulary: Vocabulary
    casing: Casing  # digits have none
    training: tuple[SequencePair, ...]
    validation: tuple[Float[Tensor, "_places features"], ...]
    truth: tuple[str, ...]


def glyph_data(count: int, validation: int, *, longest: int = 7, seed: int = 0) -> GlyphData:
    """Render `count` lines of 1 to `longest` characters to train on, and `validation` others."""
    vocabulary = learn_vocabulary(
        [" ".join(CHARACTERS)] * 2, 4 + 2 * len(CHARACTERS), lowercase=False, split=False
    )
    pairs = []
    for index in range(count):
        text = draw_text(longest, seed, _TRAIN, index)
        pairs.append((text, render(text, seed, _TRAIN, index)))
    texts = [draw_text(longest, seed, _VAL, index) for index in range(validation)]
    return GlyphData(
        name="glyphs",
        vocabulary=vocabulary,
        casing=AS_WRITTEN,
        training=tuple(
            SequencePair(source=columns, target=_target(text, vocabulary), name=f"line {index}")
            for index, (text, columns) in enumerate(pairs)
        ),
        validation=tuple(render(text, seed, _VAL, index) for index, text in enumerate(texts)),
        truth=tuple(" ".join(text) for text in texts),
    )


def with_vocabulary(data: GlyphData, vocabulary: Vocabulary) -> GlyphData:
    """Encode the same lines with another vocabulary: learned ones differ from run to run."""
    words = [data.vocabulary.words(pair.target.tolist()[:-1]) for pair in data.training]
    training = tuple(
        replace(pair, target=_target(text.replace(" ", ""), vocabulary))
        for pair, text in zip(data.training, words, strict=True)
    )
    return replace(data, vocabulary=vocabulary, training=training)


def _target(text: str, vocabulary: Vocabulary) -> Int64[Tensor, " tokens"]:
    return torch.tensor([*vocabulary.encode(" ".join(text), "none"), SPECIAL.end])


def draw_text(longest: int, *key: int) -> str:
    """Draw 1 to `longest` random characters."""
    generator = seeded_generator(*key)
    length = int(torch.randint(1, longest + 1, (), generator=generator))
    return "".join(CHARACTERS[i] for i in torch.randint(len(CHARACTERS), (length,), generator=generator))


def render(text: str, *key: int) -> Float[Tensor, "places features"]:
    """Render characters as groups of columns, left to right: about 0 in the background, 1 in strokes.

    Characters stand at irregular distances and heights, and there is noise: `key` says which.
    """
    generator = seeded_generator(7, *key)
    font = ImageFont.load_default(_SIZE)
    canvas = Image.new("L", (12 * len(text) + 4 * COLUMNS, HEIGHT), 0)
    pen = ImageDraw.Draw(canvas)
    x = 1.0
    for character in text:
        gap, rise = torch.rand(2, generator=generator).tolist()
        pen.text((x, rise * 3 - 2), character, fill=255, font=font)
        x += font.getlength(character) + 0.5 + 2.0 * gap
    pixels = torch.frombuffer(bytearray(canvas.tobytes()), dtype=torch.uint8).reshape(HEIGHT, -1)
    places = -(-(int(x) + 2) // COLUMNS)
    vectors = pixels[:, : places * COLUMNS].t().float().reshape(places, FEATURES) / 255
    return vectors + 0.1 * torch.randn(vectors.shape, generator=generator)
