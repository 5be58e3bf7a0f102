"""The first of the two stages of a prediction: images go through the model, in batches of tiles."""

import dataclasses
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from unimask.config.images import Experiment
from unimask.data.placing import batch_images
from unimask.errors import NotFiniteError
from unimask.inference.batches import batches
from unimask.inference.predictions import TilePrediction, final_of
from unimask.inference.tiles import Tile, framed, tile_placement, tiling_of
from unimask.inference.tta import PLAIN, Augmentation, augment, augmented_placement, combine
from unimask.structures import ImageBatch, MaskPrediction, Placement, Prediction

Image = UInt8[Tensor, "3 _height _width"]
AUTOCAST = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""The type that a model computes in, by the name of the precision."""


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A model on its device, with all that is needed to preprocess images as in its training."""

    model: nn.Module
    experiment: Experiment
    device: torch.device
    precision: str
    tta: tuple[Augmentation, ...]

    def see(self, images: Iterable[Image], batch_size: int) -> Iterator[TilePrediction]:
        """Yield what the model predicts for each tile of each image, as `Segmenter.see` says.

        Raises:
            NotFiniteError: the prediction for an image holds NaN or infinity.
        """
        for batch in batches(self._tiles(images), batch_size):
            prediction = self._predict([pixels for *_, pixels in batch])
            for (image, *_), finite in zip(batch, prediction.finite().tolist(), strict=True):
                if not finite:
                    raise NotFiniteError(image)
            for position, (image, frame, tile, pixels) in enumerate(batch):
                yield TilePrediction(
                    image=image,
                    frame=frame,
                    tile=tile,
                    placement=self._placement(pixels),
                    prediction=final_of(prediction, position),
                )

    def _tiles(
        self, images: Iterable[Image]
    ) -> Iterator[tuple[int, Hashable, tuple[int, Placement, Tile, Image]]]:
        """Yield all tiles: index of the image, what batches share, and image, its frame, tile and pixels."""
        for index, image in enumerate(images):
            tiling = tiling_of((image.shape[1], image.shape[2]), self.experiment.data)
            frame = framed(image, tiling.frame)
            for tile in tiling.tiles:
                pixels = frame[:, *tile.window]
                placement = self._placement(pixels)
                # versions of another scale fit one canvas only if the plain ones have one size
                key = placement.canvas if self.tta == (PLAIN,) else placement.resized
                yield index, key, (index, tiling.frame, tile, pixels)

    def _placement(self, image: Image, augmentation: Augmentation = PLAIN) -> Placement:
        config = self.experiment.data
        placement = tile_placement((image.shape[1], image.shape[2]), config)
        return augmented_placement(placement, augmentation, config.divisor)

    @torch.inference_mode()
    def _predict(self, images: Sequence[Image]) -> Prediction:
        """Return one prediction for images of one canvas, from all versions of them."""
        batches_of_versions = [self.preprocess(images, augmentation) for augmentation in self.tta]
        if self.tta == (PLAIN,):
            return self.forward(batches_of_versions[0])
        predictions = []
        for batch in batches_of_versions:
            prediction = self.forward(batch)
            assert isinstance(prediction, MaskPrediction)  # `Segmenter.with_tta` takes no other model
            predictions.append(prediction)
        return combine(predictions, [batch.placements for batch in batches_of_versions], self.tta)

    def preprocess(self, images: Sequence[Image], augmentation: Augmentation = PLAIN) -> ImageBatch:
        """Return images of one canvas as the model takes them: resized, padded, normalised, on the device."""
        placements = [self._placement(image, augmentation) for image in images]
        changed = [augment(image, augmentation) for image in images]
        backbone, padding = self.experiment.model.backbone, self.experiment.data.padding
        batch = batch_images(changed, placements, backbone.image_mean, backbone.image_std, padding)
        return dataclasses.replace(
            batch,
            pixels=batch.pixels.to(self.device, memory_format=torch.channels_last),
            valid=batch.valid.to(self.device),
        )

    @torch.inference_mode()
    def forward(self, images: ImageBatch) -> Prediction:
        """Return what the model predicts for preprocessed images, in the precision that was asked for."""
        with self.autocast():
            prediction: Prediction = self.model(images.pixels, images.valid)
        return prediction

    def autocast(self) -> torch.autocast:
        """Return the context in which to call `model`: its weights may have the type of the precision."""
        dtype = AUTOCAST[self.precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)
