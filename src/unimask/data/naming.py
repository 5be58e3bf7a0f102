"""Find the one file that a name in an annotation file means."""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from unimask.data.read import IMAGE_SUFFIXES
from unimask.errors import DataError, some_of


class Folders:
    """Finds named files in folders; each folder is listed once.

    A name without a file of this spelling means the only one that differs from it in letter case or
    in the form of its accents (NFC, NFD).
    """

    def __init__(self) -> None:
        self._listed: dict[Path, dict[str, bool]] = {}
        self._alike: dict[Path, dict[str, list[str]]] = {}
        self._images: dict[Path, dict[str, list[str]]] = {}

    def file(self, folder: Path, name: str) -> Path | None:
        """Return the file of a name, which may have sub-folders or be absolute; None where there is none.

        Raises:
            DataError: several files differ from the name in letter case or accents only.
        """
        if os.path.isabs(name):
            return _existing(Path(name))
        *above, last = name.split("/")
        for part in above:
            if part == "..":
                folder = Path(os.path.normpath(folder / part))
            elif part not in ("", "."):
                found = self._entry(folder, part)
                if found is None:
                    return None
                folder /= found
        found = self._entry(folder, last)
        return folder / found if found is not None and self._listed[folder][found] else None

    def images(self, folder: Path, stem: str) -> list[Path]:
        """Return the images of a folder that have a name, whatever their suffix."""
        if folder not in self._images:
            stems: dict[str, list[str]] = {}
            for name, is_file in sorted(self._list(folder).items()):
                if is_file and not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                    stems.setdefault(unicodedata.normalize("NFC", Path(name).stem), []).append(name)
            self._images[folder] = stems
        found = self._images[folder].get(unicodedata.normalize("NFC", stem), [])
        return [folder / name for name in found]

    def _entry(self, folder: Path, name: str) -> str | None:
        listed = self._list(folder)
        if name in listed:
            return name
        if folder not in self._alike:
            alike: dict[str, list[str]] = {}
            for entry in listed:
                alike.setdefault(_plain(entry), []).append(entry)
            self._alike[folder] = alike
        found = self._alike[folder].get(_plain(name), [])
        if len(found) > 1:
            raise DataError(folder, f"{name!r} can be any of {some_of(sorted(found))}; rename them")
        return found[0] if found else None

    def _list(self, folder: Path) -> dict[str, bool]:
        if folder not in self._listed:
            try:
                with os.scandir(folder) as entries:
                    self._listed[folder] = {entry.name: entry.is_file() for entry in entries}
            except (OSError, ValueError):  # no such folder, or an impossible name
                self._listed[folder] = {}
        return self._listed[folder]


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _existing(path: Path) -> Path | None:
    try:
        return path if path.is_file() else None
    except (OSError, ValueError):
        return None


def spellings(name: str) -> list[str]:
    """Return the name as written, with slashes for back-slashes, then without its first folders one by one.

    So `C:\\sets\\video1\\1.jpg` is searched in `video1/` before its last part alone.
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    inner = [part for part in parts if part != ".."]
    tails = ["/".join(inner[start:]) for start in range(len(inner))]
    return list(dict.fromkeys([name, name.replace("\\", "/"), *tails]))


def find_image(source: Path, names: Sequence[str], folders: Sequence[Path], files: Folders) -> Path:
    """Find the image of the first of some names (also paths or addresses) that is in one of the folders.

    A name without the suffix of an image means the image with any.

    Raises:
        DataError: it is in none of them, or several could be meant.
    """
    for name in names:
        found = _named_image(source, name, folders, files)
        if found is not None:
            return found
    raise DataError(source, f"its image {names[0]!r} is not found; looked in {some_of(folders, 20)}")


def find_own_image(source: Path, stated: str, folders: Sequence[Path], files: Folders) -> Path:
    """Find the image of an annotation file: the one that it states, else the one of its own name.

    Raises:
        DataError: it is not found, several could be meant, or both are there and are not the same.
    """
    found = _named_image(source, stated, folders, files) if stated else None
    own = next((images for folder in folders if (images := files.images(folder, source.stem))), [])
    if found is None:
        return find_image(source, (source.stem,) if own else (stated or source.stem,), folders, files)
    if own and not any(found.samefile(image) for image in own):
        raise DataError(
            source,
            f"says that it is for {found.name!r}, but {own[0].name!r} has its own name, and both are there; "
            "correct the name that it states, or rename the file",
        )
    return found


def _named_image(source: Path, name: str, folders: Sequence[Path], files: Folders) -> Path | None:
    for spelling in spellings(name):
        if Path(spelling).suffix.lower() in IMAGE_SUFFIXES:
            for folder in folders:
                found = files.file(folder, spelling)
                if found is not None:
                    return found
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    for folder in folders:
        images = files.images(folder, last)
        if len(images) > 1:
            raise DataError(
                source, f"its image can be any of {some_of(i.name for i in images)}; move the others out"
            )
        if images:
            return images[0]
    return None


def files_below(folder: Path) -> list[Path]:
    """List the files in a folder and its sub-folders, sorted, without hidden ones."""
    found = []
    for place, below, names in os.walk(folder, followlinks=True):
        below[:] = [name for name in below if not name.startswith(".") and not _is_loop(place, name)]
        found += [Path(place) / name for name in names if not name.startswith(".") and name != "Thumbs.db"]
    return sorted(path for path in found if path.is_file())


def images_below(folder: Path) -> list[Path]:
    """List the images in a folder and its sub-folders, sorted, without hidden ones."""
    return [path for path in files_below(folder) if path.suffix.lower() in IMAGE_SUFFIXES]


def _is_loop(place: str, name: str) -> bool:
    """Return whether a sub-folder is a link to one that it lies in."""
    path = os.path.join(place, name)
    return os.path.islink(path) and (os.path.realpath(place) + os.sep).startswith(
        os.path.realpath(path) + os.sep
    )
