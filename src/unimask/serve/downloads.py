"""A result as a file to download: in any format of `unimask predict --format`."""

import io
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from unimask.config.tasks import Task
from unimask.errors import ConfigError
from unimask.results.found import Record
from unimask.results.result import Result
from unimask.results.writing import FORMATS, Place, check_formats, files_of


def formats_of(task: Task) -> list[Record]:
    """Return the formats that results of a task can be written in, by name, each with its description.

    The overlay is left out: the page draws its own.
    """
    return [{"name": name, "help": one.help} for name, one in FORMATS.items() if _fits(name, task)]


def _fits(name: str, task: Task) -> bool:
    try:
        check_formats([name], task)
    except ConfigError:
        return False
    return name != "overlay"


def download(result: Result, name: str) -> tuple[str, bytes]:
    """Return the name and the content of a file: that of the format, or a ZIP where it has several.

    Raises:
        ConfigError: there is no such format, or it has no room for results of the task.
    """
    with TemporaryDirectory(prefix="unimask_") as folder:
        place = Place(folder=Path(folder), name=result.name, image="", pixel_size=None)
        files = files_of(result, [name], place)
        contents = {}
        for path, write in files.items():
            file = Path(folder) / path
            file.parent.mkdir(parents=True, exist_ok=True)
            write(file)
            contents[path] = file.read_bytes()
    if len(contents) == 1:
        ((path, content),) = contents.items()
        return Path(path).name, content
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in contents.items():
            archive.writestr(path, content)
    return f"{result.name}.{name}.zip", stream.getvalue()
