"""A model folder to one file that runs without unimask, with a report on how well it agrees."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch
from torch.export import ExportedProgram

from unimask.checkpoints.images import ModelFile, load_model, model_file_text
from unimask.checkpoints.onnx import ExportedNetwork, Signature, is_exported, load_exported, signature_of
from unimask.conversion.hub import find_model
from unimask.data.formats.shapes import shapes_dataset
from unimask.data.read import AnyImage, read_image
from unimask.errors import ConfigError, DataError, WeightsError, needs_extra
from unimask.exporting.parity import ParityReport, compare
from unimask.exporting.program import save_program, trace
from unimask.exporting.wrappers import CANVAS_STEP, exportable, only_size, smallest_step
from unimask.files import write_json
from unimask.inference.segmenter import Segmenter
from unimask.models.build import Model

Format = Literal["onnx", "onnx-int8", "pt2"]
GENERATED = 4  # images of shapes to compare results on, where none are given


def export(
    weights: str | Path,
    output: str | Path,
    format: Format = "onnx",
    images: Sequence[AnyImage] = (),
) -> ParityReport:
    """Write a model as one file, and beside it OUTPUT.parity.json with the report that comes out.

    `onnx` has standard operators only, `onnx-int8` is the same with matrix products in 8-bit integers, `pt2`
    is for `torch.export.load`. Batch, height and width may differ from call to call. The final maps are
    compared on `images` (files, PIL images, arrays or tensors), or on a few generated images of shapes.
    Both files are complete when they appear.

    Raises:
        WeightsError: the model cannot be loaded.
        MissingPackageError: the packages of the extra `export` are not installed.
        ConfigError: its canvases are no multiples of what its layers need (32 pixels for models of masks).
        DataError: the output cannot be written.
    """
    output = Path(output)
    if is_exported(weights):
        raise WeightsError(weights, "is exported already; name the model folder that it was made from")
    model, about = load_model(find_model(weights))
    step = _check(model, about, weights, output, format)
    compared = [read_image(image) for image in images] or [
        shapes_dataset(size=(192, 256))[index].image for index in range(GENERATED)
    ]
    signature = signature_of(about.experiment.model)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
            made = Path(folder) / f"model{output.suffix}"
            program = trace(exportable(model), signature, step, only_size(model))
            _write(program, signature, made, format, model_file_text(about))
            megabytes = made.stat().st_size / 2**20
            report = compare(
                Segmenter(model, about), _open(made, signature), compared, format=format, megabytes=megabytes
            )
            made.chmod(0o644)
            os.replace(made, output)
        write_json(output.with_name(f"{output.name}.parity.json"), asdict(report))
    except OSError as error:
        raise DataError(output, f"cannot be written ({error.strerror or error})") from None
    return report


def _check(model: Model, about: ModelFile, weights: str | Path, output: Path, format: Format) -> int:
    """Refuse what cannot be exported; return the step of heights and widths that the file takes."""
    suffix = ".pt2" if format == "pt2" else ".onnx"
    if output.suffix.lower() != suffix:
        raise DataError(output, f"a file of format {format} ends in {suffix}; name it so with --output")
    if output.is_dir():
        raise DataError(output, "is a folder; name a file with --output")
    divisor, step = about.experiment.data.divisor, smallest_step(model)
    if divisor % step:
        raise ConfigError(
            f"{weights}: data.divisor",
            f"is {divisor}; exported, this model takes canvases of multiples of {step} pixels only. Write "
            f"{step} into its config.json: images are padded to that, and results change a little",
        )
    if format != "pt2":
        with needs_extra("export", weights):
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
    # where all canvases are multiples of 32, sizes divide without remainder
    return step if divisor % CANVAS_STEP else CANVAS_STEP


def _write(program: ExportedProgram, signature: Signature, path: Path, format: Format, text: str) -> None:
    if format == "pt2":
        save_program(program, path, text)
        return
    from unimask.exporting.onnx_file import quantise, save_onnx

    if format == "onnx":
        save_onnx(program, path, text, signature)
        return
    whole = path.with_name("float.onnx")
    save_onnx(program, whole, text, signature)
    quantise(whole, path)


def _open(path: Path, signature: Signature) -> ExportedNetwork:
    if path.suffix.lower() == ".pt2":
        program = torch.export.load(path).module().forward  # the module itself refuses to be given a mode
        return ExportedNetwork(lambda inputs: program(*inputs), signature)
    network, _ = load_exported(path, "cpu")
    return network
