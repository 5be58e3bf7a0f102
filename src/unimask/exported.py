"""Models that were exported to an ONNX file, run by onnxruntime behind the face of the model.

The file holds the settings and categories that a model folder has in its `config.json`. What goes in and out:

- `pixels` (batch, 3, height, width): normalised, padded to multiples of 32
- `class_logits` (batch, queries, classes + 1), `mask_embeddings` (batch, queries, channels) and
  `mask_features` (batch, channels, height / 4, width / 4): the final prediction; masks stay factorised
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unimask.checkpoint import ModelFile, parse_model_file
from unimask.errors import ConfigError, WeightsError
from unimask.structures import MaskPrediction

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

ONNX_SUFFIX = ".onnx"
DESCRIPTION_KEY = "unimask"  # the entry of the file's metadata that holds the text of a `config.json`
INPUT = "pixels"
MASK_OUTPUTS = ("class_logits", "mask_embeddings", "mask_features")
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxNetwork(nn.Module):
    """An exported mask classification model. It has no parameters: moving it to a device does nothing."""

    def __init__(self, session: "InferenceSession") -> None:
        super().__init__()
        self.session = session

    def forward(
        self,
        pixels: Float[Tensor, "batch 3 height width"],
        valid: Bool[Tensor, "batch height width"] | None = None,
    ) -> MaskPrediction:
        """The final prediction, on the CPU; no other layer's is in the file. `valid` plays no part."""
        inputs = {INPUT: pixels.float().cpu().contiguous().numpy()}
        outputs = [torch.from_numpy(values) for values in self.session.run(list(MASK_OUTPUTS), inputs)]
        class_logits, mask_embeddings, mask_features = outputs
        return MaskPrediction(
            class_logits=class_logits[None],
            mask_embeddings=mask_embeddings[None],
            mask_features=mask_features,
        )


def is_exported(name_or_path: str | Path) -> bool:
    """Whether the name means an ONNX file rather than a model folder."""
    path = Path(name_or_path)
    return path.suffix.lower() == ONNX_SUFFIX and not path.is_dir()


def load_exported(path: Path, device: str = "auto") -> tuple[OnnxNetwork, ModelFile]:
    """The model in an ONNX file, and what the file says about it.

    `device` is `auto` (CUDA if this onnxruntime can, else the CPU), `cpu`, `cuda` or `cuda:1`. It uses as
    many threads as torch does.

    Raises:
        WeightsError: onnxruntime is not installed, or the file is missing, broken or not exported by unimask.
        ConfigError: this onnxruntime does not know the device.
    """
    try:
        import onnxruntime
    except ImportError:
        raise WeightsError(
            path, "needs onnxruntime, which is not installed; pip install 'unimask[export]'"
        ) from None
    if not path.is_file():
        raise WeightsError(path, "there is no such file")
    chosen = _find_device(device, onnxruntime.get_available_providers())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    settings = {"device_id": str(chosen.index or 0)} if chosen.type == "cuda" else {}
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=[(PROVIDERS[chosen.type], settings)]
        )
    except Exception as error:  # onnxruntime has an error class for each status code, all under Exception
        raise WeightsError(
            path, f"cannot be read, it may be cut off or no ONNX file ({_first_line(error)}); export it again"
        ) from None
    return OnnxNetwork(session), _description(session, path)


def _description(session: "InferenceSession", path: Path) -> ModelFile:
    text = session.get_modelmeta().custom_metadata_map.get(DESCRIPTION_KEY)
    if text is None:
        raise WeightsError(
            path, "does not say what its model is; only files that `unimask export` wrote can be loaded"
        )
    given = {one.name for one in session.get_outputs()}
    if not given >= set(MASK_OUTPUTS) or {one.name for one in session.get_inputs()} != {INPUT}:
        raise WeightsError(path, f"gives {sorted(given)}; expected {list(MASK_OUTPUTS)} from {INPUT!r}")
    return parse_model_file(text, path)


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
