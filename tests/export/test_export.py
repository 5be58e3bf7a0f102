"""Exported models against the model they were made from."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.command_line import picture, refused, unimask
from export.models import Exports

from unimask.checkpoints.images import load_model, load_model_file, model_file_text
from unimask.checkpoints.onnx import final_tensors, load_exported, signature_of
from unimask.config.models import tasks_of
from unimask.errors import ConfigError, WeightsError
from unimask.exporting.parity import box_agreement
from unimask.exporting.wrappers import exportable, fixed_convolution, fixed_pool, smallest_step
from unimask.inference.loading import load
from unimask.inference.segmenter import Segmenter
from unimask.models.build import build_model
from unimask.nn.same import SameAveragePool, SameConvolution
from unimask.presets import PRESETS
from unimask.presets.detr import DETR_PRESETS
from unimask.structures import Detections

SHAPES = ((1, 64, 64), (3, 96, 160), (2, 224, 32), (1, 128, 352))
ODD_SHAPES = ((1, 64, 67), (3, 97, 151), (2, 223, 65))
ONNX = ("mask2former", "maskformer_encoder", "detr")
PROGRAMS = ("mask2former", "maskformer", "pixels", "detr_masks")


@pytest.fixture
def onnx_file(exports: Exports, request: pytest.FixtureRequest) -> Path:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason=f"{name} is not installed (the extra `export`)")
    name, form = (request.param, "onnx") if isinstance(request.param, str) else request.param
    return exports.file(name, form)


@pytest.fixture
def model(exports: Exports) -> Path:
    return exports.model("mask2former")


def outputs(network: torch.nn.Module, pixels: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, ...]:
    with torch.inference_mode():
        return final_tensors(network(pixels, valid))


def inputs(shape: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, with padding at its right and lower border where there is a batch."""
    pixels = torch.randn((shape[0], 3, *shape[1:]), generator=torch.Generator().manual_seed(0))
    valid = torch.ones((shape[0], *shape[1:]), dtype=torch.bool)
    for index in range(1, shape[0]):
        valid[index, shape[1] - 13 * index :] = False
        valid[index, :, shape[2] - 15 * index :] = False
    return pixels, valid


def check_report(file: Path) -> None:
    """The report that the command shows lies beside the file, and says that the model agrees."""
    report = json.loads(file.with_name(f"{file.name}.parity.json").read_text())
    assert json.loads(file.with_name(f"{file.name}.json").read_text()) == report
    about = load_model_file(file.with_suffix(""))
    assert [one["task"] for one in report["agreement"]] == list(tasks_of(about.experiment.model))
    assert [one["output"] for one in report["differences"]] == list(
        signature_of(about.experiment.model).outputs
    )
    assert all(one["difference"] < 1e-3 < one["largest"] for one in report["differences"])
    for one in report["agreement"]:
        assert one["images"] == 1
        assert one.get("pixels", 1) > 0.999
        assert one.get("boxes", 1) == 1
        assert one.get("corner", 0) < 0.01
    assert report["latency"]["exported"] > 0


@pytest.mark.parametrize("onnx_file", ONNX, indirect=True)
def test_every_batch_height_and_width(exports: Exports, onnx_file: Path) -> None:
    check_report(onnx_file)
    network, about = load_exported(onnx_file, "cpu")
    own = load(exports.model(onnx_file.stem), "cpu").model
    for shape in SHAPES if about.experiment.data.divisor == 32 else ODD_SHAPES:
        for one, other in zip(outputs(own, *inputs(shape)), outputs(network, *inputs(shape)), strict=True):
            assert one.shape == other.shape
            assert torch.allclose(one, other, atol=1e-3)


OPENVINO = """
import sys, numpy, openvino
model, images, found = sys.argv[1:]
network = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
outputs = {}
for number, pixels in numpy.load(images).items():
    for output, value in network({"pixels": pixels}).items():
        outputs.update({f"{number} {name}": value for name in output.names})
numpy.savez(found, **outputs)
"""


@pytest.mark.parametrize("onnx_file", ["mask2former"], indirect=True)
def test_openvino_reads_the_file(onnx_file: Path, tmp_path: Path) -> None:
    """In a process of its own, without the limit of PyTorch's oneDNN: set to AVX2, OpenVINO crashes."""
    if find_spec("openvino") is None:
        pytest.skip("openvino is not installed (group dev, Linux on x86-64)")
    network, _ = load_exported(onnx_file, "cpu")
    given = {str(number): inputs(shape) for number, shape in enumerate(SHAPES[:2])}
    np.savez(tmp_path / "images.npz", **{number: pixels.numpy() for number, (pixels, _) in given.items()})
    places = [onnx_file, tmp_path / "images.npz", tmp_path / "found.npz"]
    free = {name: value for name, value in os.environ.items() if name != "ONEDNN_MAX_CPU_ISA"}
    subprocess.run([sys.executable, "-c", OPENVINO, *map(str, places)], check=True, env=free)
    found = np.load(tmp_path / "found.npz")
    for number, (pixels, valid) in given.items():
        for name, expected in zip(network.signature.outputs, outputs(network, pixels, valid), strict=True):
            assert torch.allclose(torch.from_numpy(found[f"{number} {name}"]), expected, atol=1e-3)


@pytest.mark.parametrize("onnx_file", ONNX, indirect=True)
def test_the_file_is_standard_and_names_its_sizes(onnx_file: Path) -> None:
    import onnx

    file = onnx.load(onnx_file)
    onnx.checker.check_model(file, full_check=True)
    assert {node.domain for node in file.graph.node} == {""}
    assert [one.domain for one in file.opset_import] == [""]
    assert len(file.functions) == 0
    sizes = {
        one.name: [size.dim_param or size.dim_value for size in one.type.tensor_type.shape.dim]
        for one in (*file.graph.input, *file.graph.output)
    }
    assert sizes["pixels"] == ["batch", 3, "height", "width"]
    assert sizes["class_logits"][0] == "batch"
    if onnx_file.stem == "detr":
        assert sizes["valid"] == ["batch", "height", "width"]
        assert sizes["boxes"] == ["batch", 10, 4]
    else:
        assert "valid" not in sizes
        assert sizes["mask_features"][2:] == ["height/4", "width/4"]


@pytest.mark.parametrize("onnx_file", ONNX[:2], indirect=True)
def test_load_predicts_as_the_model_does(exports: Exports, onnx_file: Path) -> None:
    one, other = load(exports.model(onnx_file.stem), "cpu"), load(onnx_file)
    assert other.categories == one.categories
    assert other.model_file == one.model_file
    pictures = [picture(), picture(71, 40, seed=1)]
    for task in ("panoptic", "instance", "semantic"):
        for mine, theirs in ((one, other), (one.with_tiles(48, 16), other.with_tiles(48, 16))):
            results = mine.predict(pictures, task), theirs.predict(pictures, task)
            for mine, theirs in zip(*results, strict=True):
                assert (mine.prediction.layers == theirs.prediction.layers).float().mean() > 0.99
                assert torch.equal(mine.prediction.labels, theirs.prediction.labels)


@pytest.mark.parametrize("onnx_file", ONNX[:1], indirect=True)
def test_a_segmenter_of_a_file_says_its_name_and_goes_to_another_process(
    onnx_file: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.onnx"
    shutil.copy(onnx_file, mine)
    segmenter = load(mine)
    assert repr(segmenter).startswith(f"<Segmenter {mine}: masks, ")
    content = pickle.dumps(segmenter)
    mine.write_bytes(b"another file")
    with pytest.raises(WeightsError, match="was changed since it was loaded; load it again"):
        pickle.dumps(segmenter)
    mine.unlink()  # the other machine does not have it
    arrived = pickle.loads(content)
    assert repr(arrived) == repr(segmenter)
    pickle.dumps(arrived)  # from there it can go on
    expected = segmenter.predict(picture()).prediction
    assert torch.equal(arrived.predict(picture()).prediction.layers, expected.layers)


@pytest.mark.parametrize("onnx_file", ONNX[:1], indirect=True)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_in_a_file_that_are_not_finite_are_refused(
    onnx_file: Path, value: float, tmp_path: Path
) -> None:
    import onnx

    file = onnx.load(onnx_file)
    tensor = next(one for one in file.graph.initializer if len(one.dims) == 4)
    numbers = onnx.numpy_helper.to_array(tensor).copy()
    numbers[0, 0, 0, 0] = value
    tensor.CopyFrom(onnx.numpy_helper.from_array(numbers, tensor.name))
    onnx.save(file, tmp_path / "broken.onnx")
    with pytest.raises(WeightsError, match=rf"not finite \(NaN or infinity\), in {tensor.name}"):
        load(tmp_path / "broken.onnx", "cpu")


@pytest.mark.parametrize("onnx_file", ["detr"], indirect=True)
def test_load_detects_as_the_model_does(exports: Exports, onnx_file: Path, tmp_path: Path) -> None:
    """Pictures of different sizes in one batch too: their padding is hidden."""
    one, other = load(exports.model("detr"), "cpu"), load(onnx_file)
    pictures = [picture(), picture(71, 40, seed=1), picture(47, 61, seed=2)]
    results = one.predict(pictures, task="detection"), other.predict(pictures, task="detection")
    for mine, theirs in zip(*results, strict=True):
        assert len(mine.boxes) == len(theirs.boxes) == 10
        assert torch.allclose(mine.prediction.boxes, theirs.prediction.boxes, atol=0.01)
        assert torch.equal(mine.prediction.labels, theirs.prediction.labels)
    with pytest.raises(ConfigError, match="does not know 'panoptic'; it knows: detection"):
        other.predict(pictures, task="panoptic")
    picture().save(tmp_path / "a.png")
    given = ("--weights", onnx_file, "--task", "detection", "--output", tmp_path / "out")
    outcome = unimask("predict", tmp_path / "a.png", *given)
    assert outcome.code == 0, outcome
    assert len(json.loads((tmp_path / "out" / "a.json").read_text())["boxes"]) == 10


@pytest.mark.parametrize("onnx_file", ["mask2former"], indirect=True)
def test_the_command_line_takes_it(onnx_file: Path, tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    outcome = unimask("predict", tmp_path / "a.png", "--weights", onnx_file, "--output", tmp_path / "out")
    assert outcome.code == 0, outcome
    assert (tmp_path / "out" / "a.segments.png").exists()
    for given, message in (
        (("--precision", "bf16-mixed"), "precision: is 'bf16-mixed'; an exported model has the one"),
        (("--device", "cuda:7"), "device: "),
        (("--device", "mps"), "device: this onnxruntime cannot use 'mps'"),
    ):
        assert message in refused("predict", tmp_path / "a.png", "--weights", onnx_file, *given)


@pytest.mark.parametrize("onnx_file", ["mask2former", "detr"], indirect=True)
def test_eight_bits(exports: Exports, onnx_file: Path, tmp_path: Path) -> None:
    import onnx

    from unimask.exporting.onnx_file import quantise

    quantise(onnx_file, tmp_path / "small.onnx")
    network, about = load_exported(tmp_path / "small.onnx", "cpu")
    assert about == load_model_file(exports.model(onnx_file.stem))
    nodes = onnx.load(tmp_path / "small.onnx").graph.node
    assert "MatMulInteger" in {node.op_type for node in nodes}
    assert {node.domain for node in nodes} == {""}
    whole = outputs(load(exports.model(onnx_file.stem), "cpu").model, *inputs((1, 96, 128)))
    close = outputs(network, *inputs((1, 96, 128)))
    for one, other, most in zip(whole, close, (1, 1, 0.2), strict=False):
        assert 0 < (one - other).abs().max() < most


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_of_torch_export(exports: Exports, name: str) -> None:
    file, own = exports.file(name, "pt2"), load(exports.model(name), "cpu")
    check_report(file)
    description = {"unimask.json": ""}
    program = torch.export.load(file, extra_files=description).module()
    assert description["unimask.json"] == model_file_text(own.model_file)
    signature = signature_of(own.model_file.experiment.model)
    given = dict(zip(("pixels", "valid"), inputs((3, 96, 64))))
    with torch.inference_mode():
        found = program(*(given[each] for each in signature.inputs))
    for one, other in zip(outputs(own.model, *inputs((3, 96, 64))), found, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, atol=1e-3)


def test_the_model_itself_is_left_alone(model: Path) -> None:
    one, _ = load_model(model)
    assert exportable(one).model is not one
    assert not any(parameter.requires_grad for parameter in exportable(one).parameters())
    assert all(parameter.requires_grad for parameter in one.query_decoder.parameters())


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (5, 2), (3, 1), (7, 4), (1, 2)])
def test_fixed_padding_is_same_padding(kernel: int, stride: int) -> None:
    convolution = SameConvolution(3, 5, kernel, stride)
    maps = torch.randn(2, 3, 32, 64)
    assert torch.equal(fixed_convolution(convolution)(maps), convolution(maps))
    pool = SameAveragePool(kernel, stride, ceil_mode=True, count_include_pad=False)
    assert torch.equal(fixed_pool(pool)(maps), pool(maps))


def test_which_sizes_models_take(exports: Exports) -> None:
    names = ("detr", "detr_dilated", "detr_masks", "mask2former")
    steps = [smallest_step(load_model(exports.model(name))[0]) for name in names]
    assert steps == [1, 8, 8, 32]  # the mask head takes finer maps than the encoder, no coarser ones


@pytest.mark.parametrize("name", DETR_PRESETS)
def test_every_preset_of_boxes_can_be_exported(name: str) -> None:
    experiment = DETR_PRESETS[name]()
    with torch.device("meta"):  # no weights
        model = build_model(experiment.model, 3)
    assert experiment.data.divisor % smallest_step(model) == 0


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in DETR_PRESETS])
def test_every_preset_of_masks_can_be_exported(name: str) -> None:
    experiment = PRESETS[name]()
    with torch.device("meta"):  # no weights
        model = build_model(experiment.model, 3)
    assert experiment.data.divisor % smallest_step(model) == 0


@pytest.mark.parametrize("onnx_file", [("detr_dilated", "onnx-int8")], indirect=True, ids=str)
def test_eight_bits_of_a_model_of_boxes_by_the_command(exports: Exports, onnx_file: Path) -> None:
    """A model whose canvases are multiples of 8 pixels, with the accuracy that 8 bits cost."""
    import onnx

    report = json.loads(onnx_file.with_name(f"{onnx_file.name}.parity.json").read_text())
    assert json.loads(onnx_file.with_name(f"{onnx_file.name}.json").read_text()) == report
    assert report["format"] == "onnx-int8"
    assert [one["output"] for one in report["differences"]] == ["class_logits", "boxes"]
    assert all(0 < one["difference"] < 0.2 * one["largest"] for one in report["differences"])
    (found,) = report["agreement"]
    assert found["task"] == "detection"
    assert 0 < found["corner"] < 20  # of a model that knows nothing; exact is what no integer is
    file = onnx.load(onnx_file)
    assert "MatMulInteger" in {node.op_type for node in file.graph.node}
    assert {node.domain for node in file.graph.node} == {""}
    network, _ = load_exported(onnx_file, "cpu")
    own = load(exports.model("detr_dilated"), "cpu").model
    for shape in ((1, 64, 72), (3, 104, 168)):
        for one, other in zip(outputs(own, *inputs(shape)), outputs(network, *inputs(shape)), strict=True):
            assert one.shape == other.shape
            assert 0 < (one - other).abs().max() < 0.2 * one.abs().max()
    detected = load(onnx_file).predict(picture(71, 40, seed=1), task="detection")
    assert len(detected.boxes) == 10


@pytest.mark.parametrize("onnx_file", [("detr_dilated", "onnx-int8")], indirect=True, ids=str)
def test_eight_bits_leave_the_path_of_modules_alone(onnx_file: Path, tmp_path: Path) -> None:
    """A folder of scripts on it would hide modules of the user that have their names, such as `benchmark`."""
    code = (
        "import sys; from pathlib import Path; from unimask.exporting.onnx_file import quantise\n"
        "before = list(sys.path)\n"
        f"quantise(Path({str(onnx_file)!r}), Path({str(tmp_path / 'again.onnx')!r}))\n"
        "assert sys.path == before, set(sys.path) - set(before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_boxes_agree_where_category_and_place_do(exports: Exports) -> None:
    segmenter = load(exports.model("detr_dilated"), "cpu")
    image = torch.randint(0, 256, (3, 47, 61), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert box_agreement(segmenter, segmenter, [image]).boxes == 1

    class Moved(Segmenter):
        def __init__(self) -> None:
            super().__init__(segmenter.model, segmenter.model_file)

        def find(self, images: list[torch.Tensor], task: str, **options: object) -> Iterator[Detections]:
            (found,) = super().find(images, task)
            labels = found.labels.clone()
            labels[0] = (labels[0] + 1) % 3
            yield replace(found, boxes=found.boxes + 0.25, labels=labels)

    agreement = box_agreement(segmenter, Moved(), [image])
    assert agreement.boxes <= 24 / 26
    assert agreement.corner == pytest.approx(0.25, abs=0.05)  # two boxes may be nearer than it and its own


def test_bad_input(model: Path, tmp_path: Path) -> None:
    assert "a file of format pt2 ends in .pt2" in refused(
        "export", "--weights", model, "--output", tmp_path / "a.onnx", "--format", "pt2"
    )
    (tmp_path / "b.pt2").mkdir()
    assert "is a folder; name a file" in refused(
        "export", "--weights", model, "--output", tmp_path / "b.pt2", "--format", "pt2"
    )
    assert "is exported already" in refused(
        "export", "--weights", tmp_path / "c.onnx", "--output", tmp_path / "d.pt2", "--format", "pt2"
    )
    config = json.loads((model / "config.json").read_text())
    config["experiment"]["data"]["divisor"] = 24
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    (odd / "config.json").write_text(json.dumps(config))
    message = refused("export", "--weights", odd, "--output", tmp_path / "e.pt2", "--format", "pt2")
    assert "data.divisor: is 24; exported, this model takes canvases of multiples of 32" in message
    assert "Write 32 into its config.json" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.pt2", "odd"]


def test_broken_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (the extra `export`)")
    onnx = pytest.importorskip("onnx", reason="onnx is not installed (the extra `export`)")
    with pytest.raises(WeightsError, match=r"none\.onnx: there is no such file"):
        load(tmp_path / "none.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(WeightsError, match=r"broken\.onnx: cannot be read"):
        load(tmp_path / "broken.onnx")
    given = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    taken = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Abs", ["x"], ["y"])], "g", [given], [taken])
    foreign = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(WeightsError, match=r"foreign\.onnx: does not say what its model is"):
        load(tmp_path / "foreign.onnx")
    with pytest.raises(ConfigError, match="device: 'gpu' does not exist"):
        load(tmp_path / "foreign.onnx", device="gpu")
