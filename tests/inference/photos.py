"""A folder of small images, and files among them that are none."""

from collections.abc import Sequence
from pathlib import Path

from cli.command_line import picture


def write_photos(folder: Path, names: Sequence[str], broken: Sequence[str]) -> Path:
    """Write images of five sizes, and broken files; return the folder."""
    for number, name in enumerate(names):
        picture(17 + number % 5, 23, seed=number).save(folder / name)
    for name in broken:
        (folder / name).write_bytes(b"no image")
    return folder
