"""Folders of Hugging Face transformers: recognised, downloaded, read and written."""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from unimask.checkpoints.tensors import load_tensors, save_tensors
from unimask.conversion.foreign_files import read_foreign_tensors
from unimask.errors import WeightsError, first_line
from unimask.files import json_text, write_text

PICKLE = "pytorch_model.bin"


def is_hugging_face(folder: Path) -> bool:
    """Return whether a folder holds a configuration of transformers; a broken one counts too."""
    return config_mentions(folder, "model_type")


def config_mentions(folder: Path, word: str) -> bool:
    """Return whether a folder's `config.json` has the word in quotes."""
    path = folder / "config.json"
    return path.is_file() and f'"{word}"' in path.read_text(encoding="utf-8", errors="replace")


def download(name: str) -> Path:
    """Download a model of the Hugging Face hub and return its folder in the local cache.

    Raises:
        WeightsError: it cannot be had, for instance because there is no network or no such model.
    """
    from huggingface_hub import snapshot_download

    patterns = [
        "config.json",
        "preprocessor_config.json",
        "model*.safetensors",
        "model.safetensors.index.json",
    ]
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*patterns[:2], "pytorch_model*"]))
    except Exception as error:  # the hub's client can fail in many ways, all of them mean the same here
        raise WeightsError(
            name,
            "is no file or folder here, and could not be had from the Hugging Face hub "
            f"({first_line(error)})",
        ) from None
    return folder


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a folder: safetensors before pickles, one file or several.

    Raises:
        WeightsError: there are no weights, or a file cannot be read.
    """
    readers: tuple[tuple[str, Callable[[Path], dict[str, Tensor]]], ...] = (
        ("model*.safetensors", load_tensors),
        ("pytorch_model*.bin", read_foreign_tensors),
    )
    for pattern, read in readers:
        paths = sorted(folder.glob(pattern))
        if paths:
            return {key: tensor for path in paths for key, tensor in read(path).items()}
    raise WeightsError(folder, "holds no model.safetensors and no pytorch_model.bin")


def write_folder(folder: Path, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> None:
    """Write weights and other files so that `from_pretrained` reads them; existing files are replaced.

    `texts` are name -> content, written in this order after the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    for name, content in texts.items():
        write_text(folder / name, content)


def as_text(content: Mapping[str, object]) -> str:
    """Return a JSON object as transformers writes it."""
    return json_text(content, 2) + "\n"
