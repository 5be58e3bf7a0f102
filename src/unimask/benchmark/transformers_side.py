"""Mask2Former and EoMT of Hugging Face transformers, used as documented; imported only where they run."""

import importlib.util
import io
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from unimask.benchmark.sides import FULL, Logits, side_name
from unimask.benchmark.timing import Stopwatch
from unimask.checkpoints.images import ModelFile
from unimask.config.tasks import Task
from unimask.conversion.run import convert
from unimask.errors import ConfigError, WeightsError
from unimask.files import json_text
from unimask.machine import find_device
from unimask.results.formats.panoptic import as_id_image


@dataclass(frozen=True, kw_only=True)
class TransformersSide:
    """A folder of transformers, with the thresholds of ours."""

    folder: Path
    task: Task
    object_threshold: float
    overlap_threshold: float
    instance_threshold: float
    stuff: frozenset[int]  # labels of which an image holds one segment
    precision: str = FULL

    @property
    def name(self) -> str:
        """As tables show it."""
        return side_name("transformers", self.precision)

    def load(self, device: str) -> "TransformersPipeline":
        """Return the model and its image processor."""
        return TransformersPipeline(self, device)


def side_like(model_file: ModelFile, folder: Path, task: Task, precision: str = FULL) -> TransformersSide:
    """Return the side of transformers with the thresholds of a model of ours."""
    thresholds, things = model_file.experiment.postprocess, model_file.categories.is_thing
    return TransformersSide(
        folder=folder,
        task=task,
        object_threshold=thresholds.object_threshold,
        overlap_threshold=thresholds.overlap_threshold,
        instance_threshold=thresholds.instance_threshold,
        stuff=frozenset(label for label, is_thing in enumerate(things) if not is_thing),
        precision=precision,
    )


@contextmanager
def exported(model_folder: Path) -> Iterator[Path]:
    """Yield a temporary folder of transformers with the weights of a model folder of ours.

    Raises:
        ConfigError: transformers is not installed.
        WeightsError: transformers has no such model.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError("compare", "transformers is not installed; pip install transformers")
    with tempfile.TemporaryDirectory(prefix="unimask_bench_") as name:
        folder = Path(name) / "transformers"
        try:
            convert(model_folder, folder, to="transformers")
        except WeightsError as error:
            reason = f"cannot be compared with transformers: {error.reason}; measure it without --compare"
            raise WeightsError(model_folder, reason) from None
        yield folder


_CLASSES: dict[str, tuple[str, str, dict[str, object]]] = {
    "mask2former": ("Mask2FormerForUniversalSegmentation", "Mask2FormerImageProcessor", {"do_resize": False}),
    "eomt": ("EomtForUniversalSegmentation", "EomtImageProcessor", {}),
    "eomt_dinov3": ("EomtDinov3ForUniversalSegmentation", "EomtImageProcessor", {}),
}
"""By `model_type`: the network, its image processor, and settings of that; an EoMT needs its square."""

_INPUTS = ("pixel_values", "pixel_mask")


class TransformersPipeline:
    """Segments images with the model, the image processor and the post-processing of transformers."""

    def __init__(self, side: TransformersSide, device: str) -> None:
        import transformers
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.side = side
        self.device = find_device(device)
        model_type = json.loads((side.folder / "config.json").read_text(encoding="utf-8"))["model_type"]
        self.is_eomt = model_type.startswith("eomt")
        network, processor, settings = _CLASSES[model_type]
        loaded = getattr(transformers, network).from_pretrained(side.folder)
        self._network: Any = loaded.eval().to(self.device)
        self._processor: Any = getattr(transformers, processor).from_pretrained(side.folder, **settings)

    @property
    def model(self) -> nn.Module:
        """The network, to count its weights."""
        network: nn.Module = self._network
        return network

    @torch.inference_mode()
    def run(self, image: UInt8[Tensor, "3 height width"], watch: Stopwatch) -> int:
        """Segment the image in the stages `STAGES`; return the number of segments."""
        with watch.stage("pre"):
            inputs = self._processor(images=image, return_tensors="pt")
            inputs = {key: value.to(self.device) for key, value in inputs.items() if key in _INPUTS}
        with watch.stage("forward"), self._autocast():
            outputs = self._network(**inputs)
        with watch.stage("post"):
            found = self._read(outputs, (image.shape[1], image.shape[2]))
        with watch.stage("encode"):
            json_text(found["segments_info"], None)
            if self.side.task != "instance":
                _write_png(found["segmentation"])
        return len(found["segments_info"])

    @torch.inference_mode()
    def logits(self, pixels: Float[Tensor, "1 3 height width"]) -> Logits:
        """Return what the network predicts for normalised pixels."""
        with self._autocast():
            outputs = self._network(pixel_values=pixels.to(self.device).contiguous())
        return Logits(
            classes=outputs.class_queries_logits[0].float().cpu(),
            masks=outputs.masks_queries_logits[0].float().cpu(),
        )

    def _autocast(self) -> torch.autocast:
        dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.side.precision)
        return torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None)

    def _read(self, outputs: Any, size: tuple[int, int]) -> dict[str, Any]:
        """Segments on the CPU, by the post-processing of transformers (masks are resized to 384 x 384)."""
        side, processor = self.side, self._processor
        if side.task == "semantic":
            (labels,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[size])
            infos = [{"id": label, "label_id": label} for label in labels.unique().tolist()]
            return {"segmentation": labels.cpu(), "segments_info": infos}
        if side.task == "instance":
            (found,) = processor.post_process_instance_segmentation(
                outputs, threshold=side.instance_threshold, target_sizes=[size]
            )
        else:
            stuff = "stuff_classes" if self.is_eomt else "label_ids_to_fuse"
            (found,) = processor.post_process_panoptic_segmentation(
                outputs,
                threshold=side.object_threshold,
                overlap_mask_area_threshold=side.overlap_threshold,
                target_sizes=[size],
                **{stuff: set(side.stuff)},
            )
        return {"segmentation": found["segmentation"].cpu(), "segments_info": found["segments_info"]}


def _write_png(segment_ids: Tensor) -> None:
    """Write the map as a PNG of the COCO panoptic format, in memory, as `Result.to_panoptic_png` does."""
    as_id_image(segment_ids.int().numpy() + 1).save(io.BytesIO(), format="PNG", optimize=True)
