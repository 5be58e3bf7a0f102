"""A segmenter as plain data, for processes without access to the files of its model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from unimask.checkpoints.images import CONFIG_NAME, WEIGHTS_NAME, ModelFile
from unimask.checkpoints.onnx import is_exported
from unimask.conversion.hub import find_model
from unimask.errors import WeightsError
from unimask.files import read_bytes
from unimask.inference.loading import load
from unimask.inference.segmenter import IN_MEMORY, Segmenter
from unimask.inference.tta import Augmentation


@dataclass(frozen=True, kw_only=True)
class PackedSegmenter:
    """The files of a model, and how a segmenter uses it."""

    name: str
    files: Mapping[str, bytes]  # by their names in the model folder; or a single ONNX file
    model_file: ModelFile  # with the settings that were changed since it was loaded
    tta: tuple[Augmentation, ...]
    precision: str


def pack(segmenter: Segmenter) -> PackedSegmenter:
    """Return a segmenter that was loaded as plain data. Its device is left out.

    Raises:
        WeightsError: it was not loaded from files, or they are gone.
    """
    if segmenter.name == IN_MEMORY:
        raise WeightsError(
            "segmenter", "is in the memory of this process alone; save its model into a folder and load that"
        )
    if is_exported(segmenter.name):
        paths = [Path(segmenter.name).expanduser()]
    else:
        folder = find_model(segmenter.name)
        paths = [folder / CONFIG_NAME, folder / WEIGHTS_NAME]
    return PackedSegmenter(
        name=segmenter.name,
        files={path.name: read_bytes(path, WeightsError) for path in paths},
        model_file=segmenter.model_file,
        tta=segmenter.tta,
        precision=segmenter.precision,
    )


def unpack(packed: PackedSegmenter, device: str) -> Segmenter:
    """Return the segmenter again, on a device; its files are on disk only while they are loaded.

    Raises:
        ConfigError: this machine does not have the device.
    """
    with TemporaryDirectory(prefix="unimask-") as folder:
        for name, content in packed.files.items():
            (Path(folder) / name).write_bytes(content)
        exported = CONFIG_NAME not in packed.files
        place = Path(folder) / next(iter(packed.files)) if exported else Path(folder)
        segmenter = load(place, device, packed.precision)
    segmenter.name, segmenter.model_file, segmenter.tta = packed.name, packed.model_file, packed.tta
    return segmenter
