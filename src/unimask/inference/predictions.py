"""What a model predicts for one tile of an image, as passed from the first stage to the second."""

import dataclasses
from dataclasses import dataclass

from jaxtyping import Bool, UInt8
from torch import Tensor
from torch.nn import functional

from unimask.inference.tiles import Tile, framed, unchanged, whole
from unimask.structures import BoxMaskPrediction, BoxPrediction, MaskPrediction, Placement, Prediction


@dataclass(frozen=True, kw_only=True)
class TilePrediction:
    """The model's final prediction for one tile of an image: a batch of one."""

    image: int  # index among the images that were given
    frame: Placement  # how the image lies in what tiles are cut from
    tile: Tile
    placement: Placement
    prediction: Prediction

    @property
    def is_last(self) -> bool:
        """Whether this is the last tile of its image; tiles come row by row."""
        rows, columns = self.tile.window
        return (rows.stop, columns.stop) == self.frame.resized

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The tile in pixels of the file: left, top, right, bottom."""
        rows, columns = self.tile.window
        down, right = (old / new for old, new in zip(self.frame.original, self.frame.resized))
        return columns.start * right, rows.start * down, columns.stop * right, rows.stop * down

    def pixels(self, image: UInt8[Tensor, "3 _height _width"]) -> UInt8[Tensor, "3 _rows _columns"]:
        """Return the tile's part of its image."""
        return framed(image, self.frame)[:, *self.tile.window]

    def in_frame(self, mask: Bool[Tensor, "_height _width"]) -> Bool[Tensor, "_rows _columns"]:
        """Return a mask of the image at the size of what tiles are cut from."""
        size = self.frame.resized
        return functional.interpolate(mask[None, None].float(), size, mode="nearest-exact")[0, 0] > 0

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the prediction, by the names of its fields."""
        values = vars(self.prediction)
        names = [field.name for field in dataclasses.fields(self.prediction)]
        return {name: values[name] for name in names if isinstance(values[name], Tensor)}

    def copy(self) -> "TilePrediction":
        """Return the same prediction in memory of its own, no longer a part of its batch."""
        tensors = {name: tensor.clone() for name, tensor in self.tensors.items()}
        prediction: Prediction = dataclasses.replace(self.prediction, **tensors)  # type: ignore[arg-type]
        return dataclasses.replace(self, prediction=prediction)


def of_whole_image(prediction: Prediction, placement: Placement) -> TilePrediction:
    """Return the prediction for a batch of one image that is not cut into tiles."""
    (tile,) = whole(placement.original)
    return TilePrediction(
        image=0,
        frame=unchanged(placement.original),
        tile=tile,
        placement=placement,
        prediction=prediction,
    )


def final_of(prediction: Prediction, position: int) -> Prediction:
    """Return the final prediction for one image of a batch, as a batch of one that shares the memory."""
    one = slice(position, position + 1)
    class_logits = prediction.class_logits[-1:, one]
    if isinstance(prediction, MaskPrediction):
        return MaskPrediction(
            class_logits=class_logits,
            mask_embeddings=prediction.mask_embeddings[-1:, one],
            mask_features=prediction.mask_features[-1:, one],
            per_pixel=prediction.per_pixel,
        )
    boxes = prediction.boxes[-1:, one]
    if isinstance(prediction, BoxMaskPrediction):
        mask_logits = prediction.mask_logits[one]
        return BoxMaskPrediction(class_logits=class_logits, boxes=boxes, mask_logits=mask_logits)
    return BoxPrediction(class_logits=class_logits, boxes=boxes)
