"""Drawings of attention: what attends to what in a sequence, and where queries may attend in an image."""

from collections.abc import Sequence
from contextlib import suppress

import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

CELL = 18  # pixels of a cell of a map
MARGIN = 110  # for words
GAP = 12
_LOW, _HIGH = (255, 255, 255), (12, 70, 140)  # RGB of 0 and 1


def draw_attention(
    shares: Float[Tensor, "heads takers taken"], takers: Sequence[str], taken: Sequence[str]
) -> Image.Image:
    """Draw the maps of all heads side by side: a row per query, a column per key; dark means much attention.

    Words stand beside the rows and above the columns; there must be as many as rows and columns.

    Raises:
        ValueError: there are not.
    """
    heads, rows, columns = shares.shape
    if (rows, columns) != (len(takers), len(taken)):
        raise ValueError(f"{len(takers)} and {len(taken)} words for a map of {rows} x {columns}")
    width = MARGIN + heads * (columns * CELL + GAP)
    sheet = Image.new("RGB", (width, MARGIN + rows * CELL + GAP), "white")
    font, pen = _font(), ImageDraw.Draw(sheet)
    for row, word in enumerate(takers):
        pen.text((MARGIN - 6, MARGIN + (row + 0.5) * CELL), word[:16], fill="black", font=font, anchor="rm")
    above = _words_above(taken, font)
    for head in range(heads):
        left = MARGIN + head * (columns * CELL + GAP)
        sheet.paste(above, (left, 0))
        sheet.paste(_heat(shares[head]), (left, MARGIN))
    return sheet


def draw_attention_layers(
    layers: Sequence[Float[Tensor, "heads takers taken"]], takers: Sequence[str], taken: Sequence[str]
) -> Image.Image:
    """Draw the maps of several layers as `draw_attention` draws them, one below the other from the first on.

    Raises:
        ValueError: there are not as many words as rows and columns.
    """
    drawn = [draw_attention(layer, takers, taken) for layer in layers]
    sheet = Image.new("RGB", (drawn[0].width, sum(one.height for one in drawn)), "white")
    font, pen = _font(), ImageDraw.Draw(sheet)
    for index, one in enumerate(drawn):
        top = sum(other.height for other in drawn[:index])
        sheet.paste(one, (0, top))
        pen.text((6, top + 6), f"layer {index + 1}", fill="black", font=font)
    return sheet


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Return a font with the letters of many languages where the system has one, else Pillow's own."""
    for name in ("DejaVuSans.ttf", "LiberationSans-Regular.ttf", "Arial.ttf", "arial.ttf"):
        with suppress(OSError):
            return ImageFont.truetype(name, 12)
    return ImageFont.load_default(12)


def _heat(shares: Float[Tensor, "takers taken"]) -> Image.Image:
    low, high = torch.tensor(_LOW), torch.tensor(_HIGH)
    colors = low + shares.detach().cpu().clamp(0, 1)[..., None] * (high - low)
    cells = colors.round().to(torch.uint8).numpy()
    size = (shares.shape[1] * CELL, shares.shape[0] * CELL)
    return Image.fromarray(cells).resize(size, Image.Resampling.NEAREST)


def _words_above(words: Sequence[str], font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> Image.Image:
    """Draw words that read upwards, one above each column."""
    lying = Image.new("RGB", (MARGIN, len(words) * CELL), "white")
    pen = ImageDraw.Draw(lying)
    for index, word in enumerate(words):
        pen.text((6, (index + 0.5) * CELL), word[:16], fill="black", font=font, anchor="lm")
    return lying.transpose(Image.Transpose.ROTATE_90)


def draw_attention_masks(
    image: UInt8[Tensor, "3 height width"], masks: Bool[Tensor, "queries rows columns"], columns: int = 8
) -> Image.Image:
    """Draw the image once for each query, dark where the query may not attend, `columns` in a row.

    The masks cover the whole image.
    """
    height, width = image.shape[1:]
    dimmed = (image.float() * 0.2).to(torch.uint8)
    large = functional.interpolate(masks[None].float(), (height, width), mode="nearest")[0] > 0
    rows = -(-len(masks) // columns)
    sheet = Image.new(
        "RGB", (min(columns, len(masks)) * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white"
    )
    for index, mask in enumerate(large.cpu()):
        shown = torch.where(mask, image.cpu(), dimmed.cpu()).permute(1, 2, 0).contiguous().numpy()
        place = (index % columns * (width + GAP), index // columns * (height + GAP))
        sheet.paste(Image.fromarray(shown), place)
    return sheet
