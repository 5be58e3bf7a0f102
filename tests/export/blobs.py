"""An ONNX file made by hand, with the inputs, outputs and metadata of an exported model of masks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.command_line import CATEGORIES

from unimask.checkpoints.images import ModelFile, model_file_text
from unimask.config.overrides import override
from unimask.presets.own_data import tiny

QUERIES, CHANNELS = 14, 6


def network() -> Any:
    """Blobs of the image are its masks."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed (the extra `export`)")
    helper, array = onnx.helper, onnx.numpy_helper.from_array
    numbers = np.random.default_rng(0)
    classes = 2.5 * numbers.standard_normal((1, QUERIES, len(CATEGORIES) + 1))
    embeddings = 3 * numbers.standard_normal((1, QUERIES, CHANNELS))
    constants = {
        "kernel": numbers.standard_normal((CHANNELS, 3, 3, 3)) / 3,
        "bias": numbers.standard_normal(CHANNELS),
        "classes": classes,
        "embeddings": embeddings,
        "zero": np.zeros(1),
    }
    nodes = [
        helper.make_node("AveragePool", ["pixels"], ["small"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Conv", ["small", "kernel", "bias"], ["mask_features"], pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=1),
        helper.make_node("Squeeze", ["mean", "last"], ["of_image"]),
        helper.make_node("Mul", ["of_image", "zero"], ["nothing"]),  # as many as there are images
        helper.make_node("Add", ["nothing", "classes"], ["class_logits"]),
        helper.make_node("Add", ["nothing", "embeddings"], ["mask_embeddings"]),
    ]
    given = [array(value.astype(np.float32), name) for name, value in constants.items()]
    given += [array(np.array([1, 2, 3]), "axes"), array(np.array([3]), "last")]
    shapes = {"class_logits": 3, "mask_embeddings": 3, "mask_features": 4}
    results = [
        helper.make_tensor_value_info(
            name, onnx.TensorProto.FLOAT, [f"{name}_{axis}" for axis in range(count)]
        )
        for name, count in shapes.items()
    ]
    pixels = helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, ["batch", 3, "height", "width"])
    graph = helper.make_graph(nodes, "blobs", [pixels], results, given)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def save_blobs(path: Path, settings: dict[str, object]) -> Path:
    """Write the file, with settings other than those of the preset `tiny`."""
    experiment = override(tiny(), settings)
    about = ModelFile(
        experiment=experiment, task="panoptic", categories=CATEGORIES, licence="CC0-1.0", provenance="random"
    )
    return save_described(path, about)


def save_described(path: Path, about: ModelFile) -> Path:
    """Write the file, with the metadata of a model."""
    model = network()
    import onnx

    from unimask.exporting.onnx_file import describe

    describe(model, model_file_text(about))
    onnx.save(model, path)
    return path
