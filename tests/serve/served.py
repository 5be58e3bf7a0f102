"""A server with a network that is fast and whose results can be told from the picture."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from fastapi.testclient import TestClient
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from unimask.checkpoints.images import ModelFile
from unimask.config.data import Scale, Tiles, Whole
from unimask.config.overrides import override
from unimask.inference.segmenter import Segmenter
from unimask.models.build import build_model
from unimask.ops.boxes import xyxy_to_cxcywh
from unimask.presets.detr import detr_tiny
from unimask.presets.own_data import tiny
from unimask.serve.app import create_app
from unimask.serve.label_studio import LabelStudio
from unimask.serve.limits import Limits
from unimask.serve.middleware import Access
from unimask.structures import BoxPrediction, Categories, MaskPrediction

CATEGORIES = Categories(
    names=("red", "green", "ground"),
    is_thing=(True, True, False),
    file_ids=(3, 5, 8),
    colors=((220, 60, 50), (60, 170, 80), (90, 90, 90)),
)
USUAL = Limits()
ANYBODY = Access(token="", names=frozenset())


class ColorNetwork(nn.Module):
    """One query for what is red, one for what is green, one for the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.passes: list[int] = []  # the size of every batch

    def forward(self, pixels: Tensor, valid: Tensor) -> MaskPrediction:
        """Certain of everything."""
        self.passes.append(len(pixels))
        small = functional.avg_pool2d(pixels.float(), 4)
        red, green, _ = (20 * (small - small.mean(dim=1, keepdim=True))).unbind(1)
        features = torch.stack((red - 1, green - 1, 1 - red.clamp(min=0) - green.clamp(min=0)), dim=1)
        classes = 8 * torch.eye(3, 4)
        queries = torch.eye(3)
        return MaskPrediction(
            class_logits=classes.expand(1, len(pixels), 3, 4),
            mask_embeddings=queries.expand(1, len(pixels), 3, 3),
            mask_features=features[None],
        )


class ColorBoxes(nn.Module):
    """A box around what is red, one around what is green, and, less sure, one around both."""

    def forward(self, pixels: Tensor, valid: Tensor) -> BoxPrediction:
        """Boxes as shares of the valid part."""
        bright = pixels - pixels.mean(dim=1, keepdim=True) > 0.5
        found = []
        for seen, inside in zip(bright, valid):
            whole = torch.stack((inside.any(0).sum(), inside.any(1).sum())).repeat(2)  # width, height
            red, green = seen[0] & inside, seen[1] & inside
            corners = [_corners(one) for one in (red, green, red | green)]
            found.append(torch.stack(corners) / whole)
        boxes = xyxy_to_cxcywh(torch.stack(found))[None]
        classes = torch.tensor([[4.0, 0, 0, 0], [0, 3, 0, 0], [0, 0, 2, 0]])
        return BoxPrediction(class_logits=classes.expand(1, len(pixels), 3, 4), boxes=boxes)


def _corners(mask: Tensor) -> Tensor:
    rows, columns = mask.nonzero().unbind(1)
    return torch.stack((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)).float()


def model_file(view: Whole | Tiles = Whole()) -> ModelFile:  # noqa: B008
    experiment = tiny()
    data = replace(experiment.data, view=view, resize=Scale(factor=1.0), divisor=32)
    postprocess = replace(experiment.postprocess, object_threshold=0.5, overlap_threshold=0.1)
    experiment = replace(experiment, data=data, postprocess=postprocess)
    return ModelFile(
        experiment=experiment, task="panoptic", categories=CATEGORIES, licence="CC0-1.0", provenance="by hand"
    )


def color_segmenter(view: Whole | Tiles = Whole()) -> Segmenter:  # noqa: B008
    return Segmenter(ColorNetwork(), model_file(view))


def random_segmenter() -> Segmenter:
    """A real model, untrained; its queries differ enough to find something."""
    about = model_file()
    torch.manual_seed(3)
    model = build_model(about.experiment.model, len(CATEGORIES))
    decoder = model.query_decoder
    for parameter in (decoder.query_features.weight, *decoder.heads.parameters()):
        parameter.data *= 3
    low = replace(
        about.experiment.postprocess, object_threshold=0.05, overlap_threshold=0.0, instance_threshold=0.01
    )
    return Segmenter(model, replace(about, experiment=replace(about.experiment, postprocess=low)))


def box_file() -> ModelFile:
    small = {"model.encoder_layers": 1, "model.decoder_layers": 1, "postprocess.instance_threshold": 0.0}
    return replace(model_file(), experiment=override(detr_tiny(), small), task="detection")


def random_box_segmenter() -> Segmenter:
    """A small DETR, untrained."""
    torch.manual_seed(3)
    return Segmenter(build_model(box_file().experiment.model, len(CATEGORIES)), box_file())


def box_segmenter() -> Segmenter:
    """A model of boxes whose results can be told from the picture."""
    return Segmenter(ColorBoxes(), box_file())


def unmasked_segmenter() -> Segmenter:
    """As `random_segmenter`, but its queries may attend everywhere, as MaskFormer's."""
    about = model_file()
    experiment = override(about.experiment, {"model.query_decoder.visibility": "full"})
    torch.manual_seed(3)
    return Segmenter(build_model(experiment.model, len(CATEGORIES)), replace(about, experiment=experiment))


def scene(seed: int, height: int = 61, width: int = 83) -> np.ndarray:
    """A grey picture with a red and a green box, elsewhere for every seed."""
    numbers = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 120, dtype=np.uint8)
    for channel in (0, 1):
        top, left = int(numbers.integers(0, height - 24)), int(numbers.integers(0, width // 2 - 24))
        left += channel * (width // 2)
        picture[top : top + 20, left : left + 20] = 0
        picture[top : top + 20, left : left + 20, channel] = 255
    return picture


def as_file(picture: np.ndarray, format: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format=format)
    return stream.getvalue()


@contextmanager
def served(
    *segmenters: Segmenter,
    limits: Limits = USUAL,
    access: Access = ANYBODY,
    batch_size: int = 4,
    label_studio: LabelStudio | None = None,
) -> Iterator[TestClient]:
    """A client of a server with these models: first, second, ..."""
    names = ("first", "second", "third")
    models = dict(zip(names, segmenters or (color_segmenter(),)))
    app = create_app(models, limits, access, batch_size=batch_size, label_studio=label_studio)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client
