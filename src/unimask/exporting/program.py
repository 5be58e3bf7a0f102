"""A model as a program of torch.export, for every batch, height and width; and as a .pt2 file."""

from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from unimask.checkpoints.onnx import DESCRIPTION_KEY, Signature
from unimask.exporting.wrappers import CANVAS_STEP
from unimask.structures import Size

BATCH, EXAMPLE = 2, (103, 167)  # no two dimensions alike, so none is taken for another
SMALLEST, LARGEST, LARGEST_BATCH = 64, 4096 * CANVAS_STEP, 1024


def trace(
    wrapped: nn.Module, signature: Signature, step: int = CANVAS_STEP, only: Size | None = None
) -> ExportedProgram:
    """Return the program of a wrapped model (`wrappers.exportable`), for its `only` size if it has one.

    Height and width are multiples of `step` from 64 on: torch.export treats sizes of 1 apart, and 32 pixels
    are one cell at stride 32.
    """
    least = SMALLEST // step
    batch = Dim("batch", max=LARGEST_BATCH)
    high, wide = (Dim(name, min=least, max=LARGEST // step) for name in ("rows", "columns"))
    rows, columns = (high, wide) if step == 1 else (step * high, step * wide)
    height, width = only or (length // step * step for length in EXAMPLE)
    examples = {
        "pixels": torch.zeros((BATCH, 3, height, width)),
        "valid": torch.ones((BATCH, height, width), dtype=torch.bool),
    }
    sides = {} if only else {0: rows, 1: columns}  # that may differ, by their number
    shapes = {
        "pixels": {0: batch, **{2 + side: length for side, length in sides.items()}},
        "valid": {0: batch, **{1 + side: length for side, length in sides.items()}},
    }
    return torch.export.export(
        wrapped,
        tuple(examples[name] for name in signature.inputs),
        dynamic_shapes=tuple(shapes[name] for name in signature.inputs),
        strict=False,
    )


def save_program(program: ExportedProgram, path: Path, description: str) -> None:
    """Write a .pt2 file, which `torch.export.load` reads; `description` lies in it as `unimask.json`."""
    torch.export.save(program, path, extra_files={f"{DESCRIPTION_KEY}.json": description})
