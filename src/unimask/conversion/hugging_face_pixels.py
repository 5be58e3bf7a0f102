"""`preprocessor_config.json` of Hugging Face transformers: how images become pixels, in both directions.

Its settings are taken over to the last pixel, or refused by name.

Source: `image_processing_*.py` of transformers (Mask2Former, MaskFormer, DETR, EoMT).
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeGuard

from unimask.checkpoints.images import ModelFile
from unimask.config.data import Exact, Scale, ShortSide, SlidingWindow, Square, Tiles, Whole
from unimask.config.images import Experiment
from unimask.conversion.architecture import Channels, Stated
from unimask.conversion.hugging_face_values import Json, check_fixed, is_number, read_object
from unimask.errors import WeightsError
from unimask.presets.eomt import LONGEST

_log = logging.getLogger(__name__)

NAME = "preprocessor_config.json"
_KNOWN = (
    r"(Mask2Former|MaskFormer|(Conditional|Deformable)?Detr|Eomt)(ImageProcessor|FeatureExtractor)(Fast|Pil)?"
)
_BILINEAR = 2
_FIT = "unimask_fit"  # how a model of ours fits the divisor, where transformers has no choice
_USUAL_SIZE: Json = {"shortest_edge": 800, "longest_edge": 1333}
_USUAL_DIVISOR = {"Mask2Former": 32, "MaskFormer": 32}  # of others there is none


@dataclass(frozen=True, kw_only=True)
class _Processor:
    """The file: its path, its content, and the kind of model whose image processor reads it."""

    path: Path
    content: Json
    kind: str

    def flag(self, key: str, usual: bool = True) -> bool:
        value = self.content.get(key)
        if value is not None and not isinstance(value, bool):
            raise WeightsError(self.path, f"{key} is {value!r}; it must be true or false")
        return usual if value is None else value

    def refuse(self, key: str, reason: str) -> WeightsError:
        return WeightsError(self.path, f"{key} is {self.content.get(key)!r}; {reason}")


def read_pixels(folder: Path, image_processor: str) -> Stated:
    """Return how images become pixels; nothing is stated where the folder has no such file.

    `image_processor` is the class that reads a file which does not name one.

    Raises:
        WeightsError: the file is broken, or has a setting without counterpart; the message names the key.
    """
    path = folder / NAME
    if not path.is_file():
        return Stated()
    content = read_object(path)
    name = str(
        content.get("image_processor_type") or content.get("feature_extractor_type") or image_processor
    )
    known = re.fullmatch(_KNOWN, name)
    if known is None:
        raise WeightsError(path, f"is of a {name}, which reads images in ways that cannot be converted")
    processor = _Processor(path=path, content=content, kind=known[1])
    stated = {key: value for key, value in content.items() if value is not None}
    check_fixed(path, stated, {"resample": _BILINEAR, "pad_size": None})
    mean, std = _normalisation(processor)
    return Stated(image_mean=mean, image_std=std, data=_data(processor))


def _normalisation(processor: _Processor) -> tuple[Channels, Channels]:
    """Return mean and standard deviation on our scale of 0..255, whatever is rescaled to before."""
    factor = processor.content.get("rescale_factor", 1 / 255)
    if not is_number(factor) or not 1e-9 < factor < 1e9:
        raise processor.refuse("rescale_factor", "it must be a positive number")
    scale = 1 / factor if processor.flag("do_rescale") else 1.0
    if not processor.flag("do_normalize"):
        return (0.0, 0.0, 0.0), _scaled((1.0, 1.0, 1.0), scale)
    usual = Stated()
    mean = _channels(processor, "image_mean", tuple(value / 255 for value in usual.image_mean))
    std = _channels(processor, "image_std", tuple(value / 255 for value in usual.image_std))
    if min(std) <= 0:
        raise processor.refuse("image_std", "it must be positive")
    return _scaled(mean, scale), _scaled(std, scale)


def _channels(processor: _Processor, key: str, usual: Sequence[float]) -> Sequence[float]:
    values = processor.content.get(key)
    if values is None:
        return usual
    if is_number(values):
        values = [values] * 3
    if (
        not isinstance(values, list)
        or len(values) != 3
        or not all(is_number(value) and abs(value) < 1e9 for value in values)
    ):
        raise processor.refuse(key, "it must be a number, or one for red, green and blue")
    return [float(value) for value in values]


def _scaled(values: Sequence[float], scale: float) -> Channels:
    red, green, blue = (float(f"{value * scale:.7g}") for value in values)
    return red, green, blue


def _data(processor: _Processor) -> dict[str, object]:
    """Return the settings of data that say how an image is resized."""
    if processor.kind == "Eomt":
        return _data_of_eomt(processor)
    if not processor.flag("do_resize"):
        return {"resize": Scale(factor=1.0), "divisor": 1}
    divisor = _divisor(processor)
    size = _size(processor)
    keys = {key for key, value in size.items() if value is not None}
    short, longest, height, width = (
        size.get(key) for key in ("shortest_edge", "longest_edge", "height", "width")
    )
    if keys == {"shortest_edge", "longest_edge"} and _is_side(short) and _is_side(longest):
        fit: Literal["pad", "stretch"] = "pad" if processor.content.get(_FIT) == "pad" else "stretch"
        return {"resize": ShortSide(size=short, longest=longest, fit=fit), "divisor": divisor}
    if keys == {"height", "width"} and _is_side(height) and _is_side(width):
        rows, columns = (-(-side // divisor) * divisor for side in (height, width))
        return {"resize": Exact(height=rows, width=columns), "divisor": divisor}
    raise processor.refuse(
        "size", "only shortest_edge with longest_edge, or height with width, can be converted"
    )


def _is_side(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 1


def _divisor(processor: _Processor) -> int:
    usual = _USUAL_DIVISOR.get(processor.kind)
    if usual is None:
        return 1
    key = "size_divisibility" if "size_divisibility" in processor.content else "size_divisor"
    divisor = processor.content.get(key, usual)
    if type(divisor) is not int or divisor < 0:
        raise processor.refuse(key, "it must be a number of pixels")
    return max(1, divisor)


def _size(processor: _Processor) -> Json:
    """Return `size` in today's form; a number is the short side, with `max_size` as the longest."""
    size, longest = processor.content.get("size"), processor.content.get("max_size")
    if isinstance(size, dict):
        return size
    if size is None:
        return {**_USUAL_SIZE, **({} if longest is None else {"longest_edge": longest})}
    if isinstance(size, list):
        return dict(zip(("height", "width"), size, strict=False)) if len(size) == 2 else {}
    if longest is None and processor.kind.endswith("Detr"):
        longest = _USUAL_SIZE["longest_edge"]
    return {"shortest_edge": size, "longest_edge": longest}


def _data_of_eomt(processor: _Processor) -> dict[str, object]:
    if not processor.flag("do_resize"):
        raise processor.refuse("do_resize", "an EoMT takes squares, only true can be converted")
    size = processor.content.get("size", {"shortest_edge": 640, "longest_edge": 640})
    sides = size if isinstance(size, dict) else {"shortest_edge": size}
    short, longest = sides.get("shortest_edge"), sides.get("longest_edge")
    if not _is_side(short):
        raise processor.refuse("size", "only shortest_edge can be converted")
    if longest not in (None, short):
        raise processor.refuse("size", "only squares can be converted")
    if processor.flag("do_split_image", usual=False):
        return {"resize": ShortSide(size=short, longest=LONGEST * short), "view": SlidingWindow(size=short)}
    return {"resize": Square(size=short), "view": Whole()}


def written_processor(image_processor: str, model_file: ModelFile) -> Json:
    """Return the content of `preprocessor_config.json` for a model; the log names what has no place."""
    experiment = model_file.experiment
    lost = _not_written(experiment)
    if lost:
        _log.warning("transformers has no %s: images must be prepared before", " and no ".join(lost))
    size = _written_size(experiment)
    return {
        "image_processor_type": image_processor,
        "do_resize": bool(size),
        **size,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [value / 255 for value in experiment.model.backbone.image_mean],
        "image_std": [value / 255 for value in experiment.model.backbone.image_std],
        "size_divisor": experiment.data.divisor,
        "ignore_index": 255,
        "do_reduce_labels": False,
    }


def _not_written(experiment: Experiment) -> list[str]:
    """Return the settings of images that transformers does not have."""
    resize, view = experiment.data.resize, experiment.data.view
    lost = []
    if isinstance(resize, Scale) and resize.factor != 1:
        lost.append(f"resize by a factor ({resize.factor:g})")
    if isinstance(view, Tiles):
        lost.append(f"tiles ({view.size} pixels that share {view.overlap})")
    return lost


def _written_size(experiment: Experiment) -> Json:
    resize, view = experiment.data.resize, experiment.data.view
    if isinstance(view, SlidingWindow):
        return {"size": {"shortest_edge": view.size}, "do_split_image": True}
    if isinstance(resize, ShortSide):
        size = {"shortest_edge": resize.size, "longest_edge": resize.longest}
        return {"size": size, _FIT: resize.fit} if resize.fit == "pad" else {"size": size}
    if isinstance(resize, Square):
        return {"size": {"shortest_edge": resize.size, "longest_edge": resize.size}, "do_pad": True}
    if isinstance(resize, Exact):
        return {"size": {"height": resize.height, "width": resize.width}}
    return {}
