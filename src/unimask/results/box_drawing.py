"""Boxes drawn on their image, named where there is room."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from unimask.results.drawing import (
    Box,
    draw_label,
    font_size,
    label_size,
    segment_colors,
    short_name,
)
from unimask.results.fonts import drawable, label_font
from unimask.structures import Categories, Detections


def overlay_boxes(
    image: UInt8[Tensor, "3 height width"], detections: Detections, categories: Categories
) -> Image.Image:
    """Return the image, at its own size, with its boxes in the colours of their categories.

    Each box has its category and score at its upper left corner, inside the image, unless the name of a
    box with a higher score is there. Boxes are drawn by rising score.
    """
    picture = Image.fromarray(np.ascontiguousarray(image.cpu().permute(1, 2, 0).numpy()))
    labels, scores = detections.labels.tolist(), detections.scores.tolist()
    colors = segment_colors(labels, categories).tolist()
    corners = detections.boxes.cpu().round().int().tolist()
    thickness = max(1, round((picture.width * picture.height) ** 0.5 / 220))
    order = sorted(range(len(labels)), key=lambda index: scores[index])
    draw = ImageDraw.Draw(picture)
    for index in order:
        left, top, right, bottom = corners[index]
        if right > left and bottom > top:
            color = (colors[index][0], colors[index][1], colors[index][2])
            draw.rectangle((left, top, right - 1, bottom - 1), outline=color, width=thickness)
    taken: list[Box] = []
    for index in reversed(order):
        name = drawable(short_name(categories.names[labels[index]]), labels[index])
        text = f"{name} {scores[index]:.0%}"
        _name(picture, corners[index], text, tuple(colors[index]), taken)
    return picture


def _name(
    picture: Image.Image, corners: list[int], text: str, color: tuple[int, ...], taken: list[Box]
) -> None:
    size = font_size((picture.height, picture.width))
    if size < 8:
        return
    font = label_font(size, text)
    width, height = label_size(text, font)
    left = min(max(0, corners[0]), picture.width - width)
    top = min(max(0, corners[1]), picture.height - height)
    place = (left, top, left + width, top + height)
    free = all(
        place[2] <= other[0] or other[2] <= place[0] or place[3] <= other[1] or other[3] <= place[1]
        for other in taken
    )
    if left >= 0 and top >= 0 and free:
        draw_label(picture, place, text, font, (color[0], color[1], color[2]))
        taken.append(place)
