"""Models that were exported to an ONNX file, run by onnxruntime behind the interface of the model.

The file holds the settings and categories that a model folder has in its `config.json`. What goes in:

- `pixels` (batch, 3, height, width): normalised, padded
- `valid` (batch, height, width), models of boxes only: True where a pixel is no padding

and what comes out, always the final prediction:

- `class_logits` (batch, queries, classes + 1)
- of models of masks `mask_embeddings` (batch, queries, channels) and `mask_features`
  (batch, channels, height / 4, width / 4): masks stay factorised
- of models of boxes `boxes` (batch, queries, 4), and with a mask head also `mask_logits`
  (batch, queries, height / 4, width / 4)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unimask.checkpoints.images import ModelFile, parse_model_file
from unimask.config.models import AnyModelConfig, DetrConfig, ModelConfig
from unimask.errors import ConfigError, WeightsError, needs_extra, some_of
from unimask.structures import BoxMaskPrediction, BoxPrediction, MaskPrediction, Prediction

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

ONNX_SUFFIX = ".onnx"
DESCRIPTION_KEY = "unimask"  # the entry of the file's metadata that holds the text of a `config.json`
JOINING_KEY = "unimask.joining"  # the entry with the numbers by which segments of tiles are joined
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What goes into an exported model and what comes out, by name, and the prediction that it makes up."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    prediction: Callable[..., Prediction]  # of the outputs, in their order


def _masks(
    class_logits: Tensor, mask_embeddings: Tensor, mask_features: Tensor, *, per_pixel: bool = False
) -> MaskPrediction:
    return MaskPrediction(
        class_logits=class_logits[None],
        mask_embeddings=mask_embeddings[None],
        mask_features=mask_features[None],
        per_pixel=per_pixel,
    )


def _boxes(class_logits: Tensor, boxes: Tensor) -> BoxPrediction:
    return BoxPrediction(class_logits=class_logits[None], boxes=boxes[None])


def _boxes_and_masks(class_logits: Tensor, boxes: Tensor, mask_logits: Tensor) -> BoxMaskPrediction:
    return BoxMaskPrediction(class_logits=class_logits[None], boxes=boxes[None], mask_logits=mask_logits)


MASKS = Signature(
    inputs=("pixels",), outputs=("class_logits", "mask_embeddings", "mask_features"), prediction=_masks
)
PIXELS = replace(MASKS, prediction=partial(_masks, per_pixel=True))
BOXES = Signature(inputs=("pixels", "valid"), outputs=("class_logits", "boxes"), prediction=_boxes)
BOXES_AND_MASKS = Signature(
    inputs=("pixels", "valid"),
    outputs=("class_logits", "boxes", "mask_logits"),
    prediction=_boxes_and_masks,
)


def signature_of(config: AnyModelConfig) -> Signature:
    """Return the inputs and outputs of an exported model of this kind."""
    if isinstance(config, DetrConfig):
        return BOXES_AND_MASKS if config.mask_head else BOXES
    if isinstance(config, ModelConfig) and config.classification == "pixels":
        return PIXELS
    return MASKS


def final_tensors(prediction: Prediction) -> tuple[Tensor, ...]:
    """Return the final prediction as plain tensors, in the order of the outputs of its `Signature`."""
    if isinstance(prediction, MaskPrediction):
        return prediction.class_logits[-1], prediction.mask_embeddings[-1], prediction.features()
    if isinstance(prediction, BoxPrediction):
        return prediction.class_logits[-1], prediction.boxes[-1]
    return prediction.class_logits[-1], prediction.boxes[-1], prediction.mask_logits


class ExportedNetwork(nn.Module):
    """An exported model. It has no parameters: moving it to a device does nothing.

    `run` takes the inputs that `signature` names and gives its outputs, all in their order and on the CPU.
    """

    def __init__(self, run: Callable[[Sequence[Tensor]], Sequence[Tensor]], signature: Signature) -> None:
        super().__init__()
        self.run = run
        self.signature = signature

    def forward(
        self,
        pixels: Float[Tensor, "batch 3 height width"],
        valid: Bool[Tensor, "batch height width"] | None = None,
    ) -> Prediction:
        """Return the final prediction, on the CPU. `valid` None: all pixels are valid."""
        if valid is None:
            valid = torch.ones((pixels.shape[0], *pixels.shape[2:]), dtype=torch.bool)
        given = {"pixels": pixels.float(), "valid": valid}
        return self.signature.prediction(
            *self.run([given[name].cpu().contiguous() for name in self.signature.inputs])
        )


def is_exported(name_or_path: str | Path) -> bool:
    """Return whether the name means an ONNX file rather than a model folder."""
    path = Path(name_or_path)
    return path.suffix.lower() == ONNX_SUFFIX and not path.is_dir()


def load_exported(path: Path, device: str = "auto") -> tuple[ExportedNetwork, ModelFile]:
    """Return the model in an ONNX file, and what the file says about it.

    `device` is `auto` (CUDA if this onnxruntime can, else the CPU), `cpu`, `cuda` or `cuda:1`. It uses as
    many threads as torch does.

    Raises:
        MissingPackageError: onnxruntime is not installed.
        WeightsError: the file is missing, broken or not exported by unimask.
        ConfigError: this onnxruntime does not know the device.
    """
    with needs_extra("export", path):
        import onnxruntime
    if not path.is_file():
        raise WeightsError(path, "there is no such file")
    chosen = _find_device(device, onnxruntime.get_available_providers())
    _check_numbers(path)
    changed = path.stat().st_mtime_ns
    try:
        session = _open_session(str(path), chosen)
    except Exception as error:  # onnxruntime has an error class for each status code, all under Exception
        raise WeightsError(
            path, f"cannot be read, it may be cut off or no ONNX file ({_first_line(error)}); export it again"
        ) from None
    about = _description(session, path)
    signature = signature_of(about.experiment.model)
    _check_signature(session, signature, path)
    runner = _Runner(session, _File(path=path.absolute(), changed=changed), chosen, signature)
    return ExportedNetwork(runner, signature), about


def _open_session(source: str | bytes, device: torch.device) -> "InferenceSession":
    """Return a session of an ONNX file, or of its content."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    settings = {"device_id": str(device.index or 0)} if device.type == "cuda" else {}
    return onnxruntime.InferenceSession(source, options, providers=[(PROVIDERS[device.type], settings)])


@dataclass(frozen=True, kw_only=True)
class _File:
    """The file that a session was opened from, and when it was last changed."""

    path: Path
    changed: int  # nanoseconds

    def content(self) -> bytes:
        """Read the file.

        Raises:
            WeightsError: it is no longer there, or is another one by now.
        """
        if not self.path.is_file() or self.path.stat().st_mtime_ns != self.changed:
            raise WeightsError(self.path, "is gone or was changed since it was loaded; load it again")
        return self.path.read_bytes()


class _Runner:
    """Runs a session on tensors. When it is pickled, the content of the file goes along."""

    def __init__(
        self, session: "InferenceSession", source: _File | bytes, device: torch.device, signature: Signature
    ) -> None:
        self._session, self._source, self._device, self._signature = session, source, device, signature

    def __call__(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the outputs of the signature, given its inputs."""
        named = {name: values.numpy() for name, values in zip(self._signature.inputs, inputs, strict=True)}
        outputs = self._session.run(list(self._signature.outputs), named)
        return [torch.from_numpy(values) for values in outputs]

    def __reduce__(self) -> tuple[Callable[..., "_Runner"], tuple[bytes, torch.device, Signature]]:
        content = self._source if isinstance(self._source, bytes) else self._source.content()
        return _runner_of, (content, self._device, self._signature)


def _runner_of(content: bytes, device: torch.device, signature: Signature) -> _Runner:
    return _Runner(_open_session(content, device), content, device, signature)


def _description(session: "InferenceSession", path: Path) -> ModelFile:
    text = session.get_modelmeta().custom_metadata_map.get(DESCRIPTION_KEY)
    if text is None:
        raise WeightsError(
            path, "does not say what its model is; only files that `unimask export` wrote can be loaded"
        )
    return parse_model_file(text, path)


def _check_signature(session: "InferenceSession", signature: Signature, path: Path) -> None:
    given = [one.name for one in session.get_outputs()]
    taken = [one.name for one in session.get_inputs()]
    if not set(given) >= set(signature.outputs) or set(taken) != set(signature.inputs):
        raise WeightsError(
            path,
            f"gives {given} from {taken}, but its model gives {list(signature.outputs)} "
            f"from {list(signature.inputs)}",
        )


def _check_numbers(path: Path) -> None:
    """Check that the weights in the file are finite, where the package onnx is here to read them.

    Minus infinity is left alone: exported programs mask with it.

    Raises:
        WeightsError: a tensor holds NaN or infinity.
    """
    try:
        import onnx
    except ModuleNotFoundError:
        return
    try:
        weights = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}
    except Exception:  # as onnxruntime, which names what is wrong with the file
        return
    broken = [
        name
        for name, values in weights.items()
        if values.dtype.kind == "f" and not (values < numpy.inf).all()
    ]
    if broken:
        reason = f"holds numbers that are not finite (NaN or infinity), in {some_of(broken)}"
        raise WeightsError(path, f"{reason}; export it again")


def _find_device(name: str, providers: list[str]) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if PROVIDERS["cuda"] in providers else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError("device", f"{name!r} does not exist; try auto or cpu") from None
    if PROVIDERS.get(device.type) not in providers:
        raise ConfigError("device", f"this onnxruntime cannot use {name!r} (it has {', '.join(providers)})")
    return device


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
