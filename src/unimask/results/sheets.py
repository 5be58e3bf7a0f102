"""Several images on one sheet, each with a caption: samples, or ground truth beside prediction."""

from collections.abc import Sequence

from jaxtyping import UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from unimask.results.box_drawing import overlay_boxes
from unimask.results.drawing import overlay
from unimask.results.fonts import Font, label_font
from unimask.structures import Categories, Detections, Sample, Segments

_PAPER, _INK, _FRAME = (250, 250, 250), (30, 30, 34), (214, 214, 218)
_GAP, _TEXT = 12, 15  # pixels


def draw_truth(
    image: UInt8[Tensor, "3 height width"], truth: Segments | Detections, categories: Categories
) -> Image.Image:
    """Return the image with its segments or boxes, whichever there are."""
    if isinstance(truth, Detections):
        return overlay_boxes(image, truth, categories)
    return overlay(image, truth, categories)


def draw_sheet(cells: Sequence[tuple[str, Image.Image]], *, columns: int, width: int = 380) -> Image.Image:
    """Return a sheet with the cells row by row; each is a caption and an image, made to fit into `width`.

    An image keeps its proportions, is at most as high as wide, and is not enlarged more than fourfold. Of a
    caption that is too long the end is shown.
    """
    pictures = [_fitted(picture, width) for _, picture in cells]
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    heights = [max(picture.height for picture in row) for row in rows]
    line = round(1.6 * _TEXT)
    columns = min(columns, len(cells))
    size = (columns * (width + _GAP) + _GAP, sum(height + line + _GAP for height in heights) + _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _GAP
    for row, height in enumerate(heights):
        for column, picture in enumerate(rows[row]):
            left = _GAP + column * (width + _GAP)
            caption = cells[row * (len(rows[0])) + column][0]
            font = label_font(_TEXT, caption)
            draw.text((left, top), _cut(caption, width, font), font=font, fill=_INK)
            place = (left + (width - picture.width) // 2, top + line + (height - picture.height) // 2)
            sheet.paste(picture, place)
            corner = (place[0] + picture.width, place[1] + picture.height)
            draw.rectangle((place[0] - 1, place[1] - 1, *corner), outline=_FRAME)
        top += height + line + _GAP
    return sheet


def sample_sheet(samples: Sequence[Sample], categories: Categories, columns: int = 4) -> Image.Image:
    """Return a sheet of images with their ground truth drawn."""
    cells = [(one.image_id, draw_truth(one.image, one.truth, categories)) for one in samples]
    return draw_sheet(cells, columns=columns)


def comparison_sheet(
    samples: Sequence[Sample],
    found: Sequence[Segments | Detections],
    categories: Categories,
    pairs: int = 2,
    notes: Sequence[str] = (),
) -> Image.Image:
    """Return a sheet of images, each with its ground truth on the left and what a model found on the right.

    `pairs` stand beside each other. `notes` are what is written above what was found, one for each image.
    """
    cells = []
    for sample, prediction, note in zip(samples, found, notes or ["prediction"] * len(samples), strict=True):
        cells.append((f"{sample.image_id} (truth)", draw_truth(sample.image, sample.truth, categories)))
        cells.append((note, draw_truth(sample.image, prediction, categories)))
    return draw_sheet(cells, columns=2 * pairs, width=320)


def _fitted(picture: Image.Image, width: int) -> Image.Image:
    scale = min(width / picture.width, width / picture.height, 4.0)
    size = (max(1, round(scale * picture.width)), max(1, round(scale * picture.height)))
    return picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)


def _cut(text: str, width: int, font: Font) -> str:
    """Return the text, or as much of its end as fits into the width: ends are where names differ."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"...{text}") > width:
        text = text[1:]
    return f"...{text}"
