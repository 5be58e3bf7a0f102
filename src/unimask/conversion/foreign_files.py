"""Read foreign weight files without running code in them."""

import logging
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from unimask.checkpoints.tensors import load_tensors
from unimask.conversion.pickled_arrays import STAND_INS, PickledArray, PickledNamespace, unpickle_arrays
from unimask.errors import WeightsError, first_line, some_of

_log = logging.getLogger(__name__)

_WEIGHTS = ("model", "state_dict", "model_state_dict", "module")
_AVERAGED = ("model_ema", "ema_model", "ema", "ema_state", "ema_state_dict", "state_dict_ema")
_WRAPPERS = ("module.", "model.", "ema_model.")
NO_ARGUMENTS: Mapping[str, object] = {}
_BESIDE = ("criterion.", "loss.", "metric", "n_averaged")  # how keys begin that are no weights of the model


@dataclass(frozen=True, kw_only=True)
class ForeignWeights:
    """The tensors of a file, and the arguments of the training that wrote it; none where it keeps none."""

    tensors: dict[str, Tensor]
    arguments: Mapping[str, object]


def read_foreign_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file under the names in it; see `read_foreign`."""
    return read_foreign(path).tensors


def read_foreign(path: Path) -> ForeignWeights:
    """Return what a `.pkl` (arrays), `.pth`, `.pt`, `.bin` or `.safetensors` file holds, on the CPU.

    Where the file is a training checkpoint, the tensors are what is under `model`, `state_dict` or another
    usual name; averaged weights are taken where there are no others, and a log message says so. Reading never
    runs code of the file: pickles may hold arrays and plain values only.

    Raises:
        WeightsError: the file is missing, cut off, of another format, refused, or holds no tensors.
    """
    if not path.is_file():
        raise WeightsError(path, "there is no such file")
    if path.suffix == ".safetensors":
        return ForeignWeights(tensors=load_tensors(path), arguments=NO_ARGUMENTS)
    read = unpickle_arrays if path.suffix == ".pkl" else _read_torch
    try:
        with path.open("rb") as file:
            content = read(file)
    except Exception as error:  # a broken pickle can fail in any way
        raise WeightsError(
            path,
            "cannot be read, it may be cut off, of another format, or hold more than weights "
            f"({first_line(error)})",
        ) from None
    arguments = content.get("args") if isinstance(content, dict) else None
    return ForeignWeights(
        tensors=_tensors(path, content),
        arguments=arguments.values if isinstance(arguments, PickledNamespace) else NO_ARGUMENTS,
    )


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under the names of the model itself, without the prefixes of wrappers.

    Those are `module.` (several devices, or an average, which also counts `n_averaged`), `model.` (trainers),
    where all weights have it, and `_orig_mod.` of compiled modules anywhere.
    """
    found = {key.replace("_orig_mod.", ""): tensor for key, tensor in tensors.items() if key != "n_averaged"}
    if len(found) < len(tensors.keys() - {"n_averaged"}):  # one tensor with the prefix and one without
        return dict(tensors)
    while True:
        weights = [key for key in found if not key.startswith(_BESIDE)]
        wrapper = next(
            (one for one in _WRAPPERS if weights and all(key.startswith(one) for key in weights)), None
        )
        if wrapper is None:
            return found
        found = {key.removeprefix(wrapper): tensor for key, tensor in found.items()}


def _read_torch(file: BinaryIO) -> object:
    _check_archive(file)
    named: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
        (stand_in, name) for name, stand_in in STAND_INS.items()
    ]
    with torch.serialization.safe_globals([*named, PickledArray]):
        return torch.load(file, map_location="cpu", weights_only=True)


def _check_archive(file: BinaryIO) -> None:
    """Check that a zip archive is stored as torch writes it, and not made to unpack into far more.

    Raises:
        ValueError: a part is compressed, or the parts are larger than the file together.
    """
    if not zipfile.is_zipfile(file):
        file.seek(0)
        return
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
    if packed or sum(part.file_size for part in parts) > length:
        raise ValueError("it is packed, which torch.save never does; unpack it, and save it with torch.save")


def _tensors(path: Path, content: object) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        raise WeightsError(path, f"holds a {type(content).__name__}, not a table of weights")
    tensors = {str(key): _tensor(value) for key, value in _table(path, content).items()}
    odd = [key for key, value in tensors.items() if value is not None and not _is_plain(value)]
    if odd:
        reason = f"holds tensors that are sparse, quantised or without numbers: {some_of(odd)}"
        raise WeightsError(path, f"{reason}; save them dense, in floats")
    found = {key: value for key, value in tensors.items() if value is not None}
    if not found:
        raise WeightsError(path, f"holds no weights, only {some_of(map(repr, content), 5)}")
    return found


def _table(path: Path, content: dict[object, object]) -> dict[object, object]:
    """Return the table of weights in a checkpoint, which may lie in tables of tables."""
    for _ in range(8):  # or a table may hold itself
        tables = {
            key: table
            for key in (*_WEIGHTS, *_AVERAGED)
            if isinstance(table := content.get(key), dict) and table
        }
        if not tables:
            break
        averages = [key for key in tables if key in _AVERAGED]
        taken = next(iter(tables))
        if taken in _AVERAGED:
            _log.warning("%s: the average of the weights (`%s`) is taken; it holds no others", path, taken)
        elif averages:
            _log.warning("%s: `%s` is taken, the average in `%s` is left out", path, taken, averages[0])
        content = tables[taken]
    return content


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta


def _tensor(value: object) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, PickledArray):
        array = value.array
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
    return None
