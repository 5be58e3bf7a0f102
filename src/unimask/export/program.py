"""A model as a program of torch.export, for every batch, height and width; and as a .pt2 file."""

from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from unimask.export.wrappers import CANVAS_STEP
from unimask.exported import DESCRIPTION_KEY, Face

BATCH, ROWS, COLUMNS = 2, 3, 5  # of the example; no two dimensions alike, so none is taken for another
LARGEST = {"batch": 1024, "rows": 4096, "columns": 4096}


def trace(wrapped: nn.Module, face: Face) -> ExportedProgram:
    """The program of a wrapped model (`wrappers.exportable`).

    Height and width are multiples of 32 from 64 on: torch.export treats sizes of 1 apart, and 32 pixels are
    one cell at stride 32.
    """
    batch, rows, columns = (Dim(name, max=most) for name, most in LARGEST.items())
    height, width = CANVAS_STEP * ROWS, CANVAS_STEP * COLUMNS
    examples = {
        "pixels": torch.zeros(BATCH, 3, height, width),
        "valid": torch.ones((BATCH, height, width), dtype=torch.bool),
    }
    shapes = {
        "pixels": {0: batch, 2: CANVAS_STEP * rows, 3: CANVAS_STEP * columns},
        "valid": {0: batch, 1: CANVAS_STEP * rows, 2: CANVAS_STEP * columns},
    }
    return torch.export.export(
        wrapped,
        tuple(examples[name] for name in face.inputs),
        dynamic_shapes=tuple(shapes[name] for name in face.inputs),
        strict=False,
    )


def save_program(program: ExportedProgram, path: Path, description: str) -> None:
    """Write a .pt2 file, which `torch.export.load` reads; `description` lies in it as `unimask.json`."""
    torch.export.save(program, path, extra_files={f"{DESCRIPTION_KEY}.json": description})
