"""A program of torch.export as an ONNX file of standard operators, and that file in 8-bit integers."""

import sys
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from torch.export import ExportedProgram

from unimask.checkpoints.onnx import DESCRIPTION_KEY, JOINING_KEY, Signature
from unimask.errors import WeightsError
from unimask.files import json_text
from unimask.inference.tiles import SAME, SEEN

OPSET = 20  # the first whose GridSample has the modes of PyTorch
DIMENSIONS = {
    "pixels": ("batch", "", "height", "width"),
    "valid": ("batch", "height", "width"),
    "class_logits": ("batch", "", ""),
    "mask_embeddings": ("batch", "", ""),
    "mask_features": ("batch", "", "height/4", "width/4"),
    "boxes": ("batch", "", ""),
    "mask_logits": ("batch", "", "height/4", "width/4"),
}
"""The names of the sizes that may differ from call to call."""


def save_onnx(program: ExportedProgram, path: Path, description: str, signature: Signature) -> None:
    """Write the program as one ONNX file with `description` in its metadata.

    Raises:
        WeightsError: an operator is not of the ONNX standard.
    """
    exported = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=list(signature.inputs),
        output_names=list(signature.outputs),
        verbose=False,
    )
    assert exported is not None  # it is where no file is given
    model = exported.model_proto
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain})
    if foreign:
        raise WeightsError(path, f"the model needs operators that are not standard: {', '.join(foreign)}")
    _name_dimensions([*model.graph.input, *model.graph.output])
    describe(model, description)
    onnx.save(model, path)
    onnx.checker.check_model(str(path))


def describe(model: onnx.ModelProto, description: str) -> None:
    """Write the description and the numbers for joining tiles into the metadata, and nothing else."""
    del model.metadata_props[:]
    joining = json_text({"same": SAME, "seen": SEEN})
    for key, value in ((DESCRIPTION_KEY, description), (JOINING_KEY, joining)):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value


def _name_dimensions(values: Sequence[onnx.ValueInfoProto]) -> None:
    for value in values:
        sizes = value.type.tensor_type.shape.dim
        for size, name in zip(sizes, DIMENSIONS[value.name], strict=True):
            if name and not size.dim_value:  # some models take one size only
                size.dim_param = name


def quantise(source: Path, target: Path) -> None:
    """Write an ONNX file whose matrix products are computed in 8-bit integers.

    Weights are stored as int8, one scale per output channel; activations are scaled as they come, by their
    own range (dynamic quantisation), so no images are needed. Convolutions stay as they are: onnxruntime's
    integer convolution is slower than the one in float32. Weights use seven of the eight bits: processors
    without VNNI add pairs of products in 16 bits, where two full products overflow without a word.
    """
    path = list(sys.path)
    from onnxruntime.quantization import QuantType, quantize_dynamic

    sys.path[:] = path  # the import adds a folder of onnxruntime's scripts, which hide modules of those names
    description = next(
        entry.value
        for entry in onnx.load(source, load_external_data=False).metadata_props
        if entry.key == DESCRIPTION_KEY
    )
    quantize_dynamic(
        source,
        target,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
    )
    model = onnx.load(target)
    describe(model, description)
    onnx.save(model, target)
