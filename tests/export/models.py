"""Small models of every kind that is exported, each exported once for all tests, also in two processes."""

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from cli.command_line import CATEGORIES, picture, unimask
from filelock import FileLock
from shape_checks import no_shape_checks
from torch.export import ExportedProgram

from unimask.checkpoints.images import ModelFile, save_model
from unimask.config.images import Experiment
from unimask.config.overrides import override
from unimask.exporting import parity, program, run
from unimask.models.build import build_model
from unimask.presets.detr import detr_tiny
from unimask.presets.own_data import tiny


def mask2former() -> Experiment:
    return override(_reading(), {"model.pixel_decoder.layers": 1, "model.query_decoder.layers": 2})


def maskformer(encoder_layers: int) -> Experiment:
    """With MaskFormer's pixel decoder, with and without a transformer encoder, and DETR's query decoder."""
    settings: dict[str, object] = {
        "model.pixel_decoder.kind": "pyramid",
        "model.pixel_decoder.strides": [32],
        "model.pixel_decoder.layers": encoder_layers,
        "model.query_decoder.layers": 1,
        "model.query_decoder.memory_strides": [32],
        "model.query_decoder.level_embedding": False,
        "model.query_decoder.visibility": "full",
        "model.query_decoder.order": ["self", "cross", "feedforward"],
        "model.query_decoder.query_features": "zeros",
        "model.query_decoder.predict_before_layers": False,
    }
    return override(_reading(), settings)


def pixels() -> Experiment:
    """A classifier of pixels, which knows one task only."""
    settings = {"model.classification": "pixels", "model.query_decoder.layers": 0}
    return override(maskformer(0), settings)


def _reading() -> Experiment:
    """The `tiny` preset, reading results of random weights; as few layers as there can be make it fast."""
    settings = {"postprocess.object_threshold": 0.05, "postprocess.instance_threshold": 0.01}
    return override(tiny(), settings)


def detr() -> Experiment:
    settings: dict[str, object] = {
        "model.encoder_layers": 1,
        "model.decoder_layers": 1,
        "postprocess.instance_threshold": 0.0,
        "postprocess.object_threshold": 0.0,
    }
    return override(detr_tiny(), settings)


def detr_of_any_size() -> Experiment:
    settings = {"model.backbone.name": "resnet18", "model.backbone.dilated": False, "data.divisor": 1}
    return override(detr(), settings)


def detr_with_masks() -> Experiment:
    settings = {"model.mask_head": True, "model.channels": 128, "model.heads": 8, "data.divisor": 32}
    return override(detr(), settings)


MODELS: dict[str, Callable[[], Experiment]] = {
    "mask2former": mask2former,
    "maskformer_encoder": lambda: maskformer(1),
    "maskformer": lambda: maskformer(0),
    "pixels": pixels,
    "detr": detr_of_any_size,
    "detr_dilated": detr,
    "detr_masks": detr_with_masks,
}


ENDINGS = {"onnx-int8": "int8.onnx"}  # of files; else they end in their format


def save(folder: Path, name: str) -> Path:
    """A model folder with random weights."""
    experiment = MODELS[name]()
    about = ModelFile(
        experiment=experiment, task="panoptic", categories=CATEGORIES, licence="CC0-1.0", provenance="random"
    )
    torch.manual_seed(3)
    save_model(folder, build_model(experiment.model, len(CATEGORIES)), about)
    return folder


class Exports:
    """Model folders and exported files, made when they are first asked for, in a folder of the test run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs: dict[str, ExportedProgram] = {}  # tracing is half of the work

    def model(self, name: str) -> Path:
        """The model folder."""
        path = self.folder / name
        with FileLock(self.folder / f"{name}.lock"):
            if not path.exists():
                save(path, name)
        return path

    def file(self, name: str, form: str) -> Path:
        """The file that `unimask export` makes of it; FILE.json is what the command says."""
        model, path = self.model(name), self.folder / f"{name}.{ENDINGS.get(form, form)}"
        with FileLock(path.with_name(f"{path.name}.lock")):
            if not path.exists():
                (self.folder / "images").mkdir(exist_ok=True)
                picture(71, 107).save(self.folder / "images" / "a.png")  # not the same in height and width
                words = ("--images", self.folder / "images", "--format", form, "--json")
                with (
                    no_shape_checks(),
                    mock.patch.object(run, "trace", self._trace(name)),
                    mock.patch.object(parity, "TIMED", (1, 64, 64)),
                    mock.patch.object(parity, "REPEATS", 1),
                ):
                    outcome = unimask("export", "--weights", model, "--output", path, *words)
                assert outcome.code == 0, outcome.err
                path.with_name(f"{path.name}.json").write_text(outcome.out)
        return path

    def _trace(self, name: str) -> Callable[..., ExportedProgram]:
        def trace(*given: object) -> ExportedProgram:
            if name not in self.programs:
                self.programs[name] = program.trace(*given)
            return self.programs[name]

        return trace
