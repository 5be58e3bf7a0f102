"""A model as a program of torch.export, for every batch, height and width; and as a .pt2 file."""

from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from unimask.export.wrappers import CANVAS_STEP
from unimask.exported import DESCRIPTION_KEY

EXAMPLE = (2, 3, 3 * CANVAS_STEP, 5 * CANVAS_STEP)  # no two dimensions alike, so none is taken for another
LARGEST = {"batch": 1024, "rows": 4096, "columns": 4096}


def trace(wrapped: nn.Module) -> ExportedProgram:
    """The program of a wrapped model (`wrappers.exportable`).

    Height and width are multiples of 32 from 64 on: torch.export treats sizes of 1 apart, and 32 pixels are
    one cell at stride 32.
    """
    batch, rows, columns = (Dim(name, max=most) for name, most in LARGEST.items())
    shapes = ({0: batch, 2: CANVAS_STEP * rows, 3: CANVAS_STEP * columns},)
    return torch.export.export(wrapped, (torch.zeros(EXAMPLE),), dynamic_shapes=shapes, strict=False)


def save_program(program: ExportedProgram, path: Path, description: str) -> None:
    """Write a .pt2 file, which `torch.export.load` reads; `description` lies in it as `unimask.json`."""
    torch.export.save(program, path, extra_files={f"{DESCRIPTION_KEY}.json": description})
