"""Which image files are done already: the ledger says what each result was made with."""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from unimask.checkpoints.images import model_file_text
from unimask.config.tasks import Task
from unimask.errors import DataError
from unimask.files import json_text
from unimask.inference.segmenter import Segmenter
from unimask.processes import Team, gather
from unimask.remote import Location, Url, at_once, read_part, size_of
from unimask.results.ledger import Ledger, foreign_files, ledger_of

Named = tuple[Path, str]
"""An image, and the name of its results."""

Asked = tuple[Location, str]
"""The same, of an image that may be in an object store."""

_END = 1 << 14  # bytes at the start and at the end of a file that tell it from others of its size
_FIRST = 64  # files that are checked in a store before the work
_ENDINGS = {"overlay": ".overlay.png", "png": ".segments.png", "json": ".json"}


def settings_digest(segmenter: Segmenter, task: Task, **more: object) -> str:
    """Return a digest of all that decides what is found in an image and what is written of it.

    The model is identified by its `config.json` and by every number of its weights. The device and the sizes
    of batches are left out.
    """
    about = {
        "model": model_file_text(segmenter.model_file),
        "weights": segmenter.weights or _digest_of_tensors(segmenter.model),
        "view": repr(segmenter.view),
        "tta": repr(segmenter.tta),
        "precision": segmenter.precision,
        "task": task,
        **more,
    }
    return _digest(json_text(about).encode())


def _digest_of_tensors(model: nn.Module) -> str:
    """Return a digest of the weights of a model that was loaded from no file."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        plain = tensor.to_dense() if tensor.is_mkldnn else tensor
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(plain.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def made_with(settings: str, image: Location) -> str:
    """Return a digest of the settings and of an image: its name, its size, and both ends of its file.

    It is empty where the file cannot be read; the error is reported when it is segmented.
    """
    try:
        size, ends = _remote_ends(image) if isinstance(image, Url) else _ends(image)
    except (OSError, DataError):
        return ""
    return _digest(f"{settings} {size} {image.name}\0".encode(errors="surrogateescape") + ends)


def _ends(image: Path) -> tuple[int, bytes]:
    """Return the size of a file, and its first and last bytes."""
    if not image.is_file():  # a pipe gives nothing for ever
        raise DataError(image, "is no regular file")
    size = image.stat().st_size
    with image.open("rb") as file:
        ends = file.read(_END)
        file.seek(max(len(ends), size - _END))
        return size, ends + file.read(_END)


def _remote_ends(image: Url) -> tuple[int, bytes]:
    size = size_of(image)
    if size is None:
        raise DataError(str(image), "no such file")
    ends = read_part(image, 0, min(_END, size))
    return size, ends + (read_part(image, max(_END, size - _END), size) if size > _END else b"")


def made_with_all(settings: str, asked: Sequence[Asked]) -> str:
    """Return a digest of the settings and all images, for what is one file for all of them."""
    digests = at_once(partial(made_with, settings), [file for file, _ in asked])
    return _digest(" ".join([settings, *digests]).encode())


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def left_of(asked: Sequence[Asked], ledger: Ledger, settings: str) -> list[Asked]:
    """Return the images whose results are not all in the folder, made with these settings."""

    def is_complete(one: Asked) -> bool:
        return ledger.is_complete(made_with(settings, one[0]))

    complete = at_once(is_complete, asked)
    return [one for one, done in zip(asked, complete, strict=True) if not done]


def shared_again(team: Team, named: Sequence[Asked], left: Sequence[Asked]) -> list[Asked]:
    """Return this process's share of all that is left, given what is left of its share of all images.

    Where the processes cannot communicate, each keeps its own share. All that can must call this.
    """
    if not team.meets:
        return list(left)
    names = {name for one in gather(list(left)) for _, name in one}
    return team.share([one for one in named if one[1] in names])


def refuse_foreign(folder: Location, names: Sequence[str], formats: Sequence[str]) -> None:
    """Check before the work that it will replace nothing but results.

    Only sizes are compared, and files of the formats that images are usually written in, of a store those of
    the first images. Where files get their names, every file is looked at again, and its content.

    Raises:
        DataError: it would replace another file.
    """
    files = [f"{name}{_ENDINGS[one]}" for name in names for one in formats if one in _ENDINGS]
    if isinstance(folder, Url):
        sizes = at_once(size_of, [folder.inside(file) for file in files[:_FIRST]])
        there = [file for file, size in zip(files, sizes, strict=False) if size is not None]
    else:
        there = [file for file in files if (folder / file).exists()]
    ledger = ledger_of(folder) if there else None
    if ledger is not None and (foreign := [file for file in there if not ledger.knows(file)]):
        raise foreign_files(folder, foreign)
