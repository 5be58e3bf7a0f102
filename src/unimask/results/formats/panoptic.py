"""Segment ids as the colours of an image, as COCO's panoptic format has them."""

import numpy as np
from jaxtyping import Integer
from numpy import ndarray
from PIL import Image


def as_id_image(ids: Integer[ndarray, "height width"]) -> Image.Image:
    """Return an image that has the id of each pixel as its colour: R + 256 G, below 65,536; 0 is none."""
    numbers = ids.astype(np.uint16)
    channels = np.stack([numbers & 255, numbers >> 8, np.zeros_like(numbers)], axis=2)
    return Image.fromarray(channels.astype(np.uint8))
