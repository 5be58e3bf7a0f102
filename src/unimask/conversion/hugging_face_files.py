"""Folders of Hugging Face transformers: recognised, downloaded, read and written."""

import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from unimask.checkpoints.tensors import load_tensors, save_folder
from unimask.conversion.foreign_files import read_foreign_tensors
from unimask.errors import WeightsError, first_line, some_of
from unimask.files import is_file, json_text, read_json

_log = logging.getLogger(__name__)

PATIENCE = 2.0  # seconds
PICKLE = "pytorch_model.bin"
OWN_NAMES = r"model\.(pixel_level_module|backbone\.conv_encoder|query_position_embeddings)\.|upscale_block\."
"""How names begin that only files of transformers hold (a regular expression)."""


def is_hugging_face(folder: Path) -> bool:
    """Return whether a folder holds a configuration of transformers; a broken one counts too."""
    return config_mentions(folder, "model_type")


def config_mentions(folder: Path, word: str) -> bool:
    """Return whether a folder's `config.json` has the word in quotes."""
    path = folder / "config.json"
    return path.is_file() and f'"{word}"' in path.read_text(encoding="utf-8", errors="replace")


def download(name: str) -> Path:
    """Download a model of the Hugging Face hub and return its folder in the local cache.

    Where the hub does not answer at all, the copy in the cache is taken.

    Raises:
        WeightsError: it cannot be downloaded, for instance because there is no network or no such model.
    """
    from huggingface_hub import snapshot_download

    patterns = [
        "config.json",
        "preprocessor_config.json",
        "model*.safetensors",
        "model.safetensors.index.json",
    ]
    with patient() as silence:
        try:
            folder = Path(snapshot_download(name, allow_patterns=patterns))
            if not any(folder.glob("*.safetensors")):
                folder = Path(snapshot_download(name, allow_patterns=[*patterns[:2], "pytorch_model*"]))
        except Exception as error:  # the hub's client can fail in many ways, all of them mean the same here
            raise WeightsError(
                name,
                "is no file or folder here, and could not be had from the Hugging Face hub "
                f"({silence or first_line(error)})",
            ) from None
    return folder


@contextmanager
def patient() -> Iterator[str]:
    """Let the hub's client use only its cache where the hub does not answer, and log that.

    Otherwise it repeats its requests for minutes.
    """
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    silence = "" if offline or answers(constants.ENDPOINT) else f"no answer within {PATIENCE:g} seconds"
    constants.HF_HUB_OFFLINE = bool(offline or silence)
    try:
        yield silence
    finally:
        constants.HF_HUB_OFFLINE = offline


def answers(address: str, patience: float = PATIENCE) -> bool:
    """Return whether an address answers, if only with an error, within some seconds."""
    heard = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=patience).close()
        except TimeoutError:
            return
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                return
        except Exception:  # any other error is an answer
            pass
        heard.set()

    threading.Thread(target=ask, daemon=True).start()  # looking up a name may hang longer than its time-out
    return heard.wait(patience)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a folder: of its standard file, or of the parts that an index lists.

    Safetensors come before pickles. A log message names files of weights that are left out.

    Raises:
        WeightsError: there are no weights under a standard name, a part is missing, or a file cannot be read.
    """
    readers: tuple[tuple[str, str, Callable[[Path], dict[str, Tensor]]], ...] = (
        ("model", ".safetensors", load_tensors),
        ("pytorch_model", ".bin", read_foreign_tensors),
    )
    for stem, suffix, read in readers:
        names = _parts_of(folder, stem, suffix)
        if names:
            left_out = sorted({path.name for path in folder.glob(f"{stem}*{suffix}")} - set(names))
            if left_out:
                _log.warning("%s: %s taken, %s left out", folder, some_of(names), some_of(left_out))
            return _joined({name: read(folder / name) for name in names}, folder)
    others = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pth"))
    hint = f"; it holds {some_of(others)}: rename the file that is meant" if others else ""
    raise WeightsError(folder, f"holds no model.safetensors and no pytorch_model.bin{hint}")


def _joined(parts: Mapping[str, Mapping[str, Tensor]], folder: Path) -> dict[str, Tensor]:
    """Return the tensors of all parts together.

    Raises:
        WeightsError: two parts hold a tensor of one name.
    """
    found: dict[str, Tensor] = {}
    for name, tensors in parts.items():
        twice = sorted(found.keys() & tensors.keys())
        if twice:
            reason = f"holds tensors that are in another part too: {some_of(twice)}; download the model again"
            raise WeightsError(folder / name, reason)
        found |= tensors
    return found


def _parts_of(folder: Path, stem: str, suffix: str) -> list[str]:
    """Return the names of the files with the weights of a kind; none where there are none."""
    standard, index = f"{stem}{suffix}", folder / f"{stem}{suffix}.index.json"
    if (folder / standard).is_file():
        return [standard]
    if index.is_file():
        content = read_json(index, WeightsError)
        listed = content.get("weight_map") if isinstance(content, dict) else None
        names = sorted(set(map(str, listed.values()))) if isinstance(listed, dict) else []
        if not names or any(Path(name).name != name for name in names):
            raise WeightsError(index, "lists no files of weights in this folder under weight_map")
        missing = [name for name in names if not is_file(folder / name)]
        reason = f"lists {some_of(missing)}, and there is no such file; download the model again"
        if missing:
            raise WeightsError(index, reason)
        return names
    digits = 5 * "[0-9]"
    names = sorted(path.name for path in folder.glob(f"{stem}-{digits}-of-{digits}{suffix}"))
    if names and len(names) != int(names[0].removesuffix(suffix)[-5:]):
        raise WeightsError(folder, f"holds only {some_of(names)}; download the other parts too")
    return names


def write_folder(folder: Path, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> None:
    """Write weights and text files (name -> content) so that `from_pretrained` reads them."""
    save_folder(folder, tensors, texts, {"format": "pt"})


def as_text(content: Mapping[str, object]) -> str:
    """Return a JSON object as transformers writes it."""
    return json_text(content, 2) + "\n"
