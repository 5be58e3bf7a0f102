"""Exported models against the model they were made from. Tracing runs in a process of its own, without the
checks of shapes, which do not know symbolic sizes."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli.command_line import picture, refused, save_tiny_model, unimask
from timm.layers import Conv2dSame

from unimask.checkpoint import load_model, load_model_file, save_model
from unimask.config import Tiles, override
from unimask.errors import ConfigError, WeightsError
from unimask.export.wrappers import FixedPadding, exportable
from unimask.exported import load_exported
from unimask.models.build import build_model
from unimask.segmenter import Segmenter, load

SHAPES = ((1, 64, 64), (3, 96, 160), (2, 224, 32), (1, 128, 352))


def export(model: Path, output: Path, form: str) -> dict[str, object]:
    code = "from unimask.cli import main; main()"
    words = ["export", "--weights", model, "--output", output, "--format", form, "--json"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert json.loads(output.with_name(f"{output.name}.parity.json").read_text()) == report
    return report


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As few layers as there can be: tracing takes seconds for each."""
    folder = tmp_path_factory.mktemp("export") / "model"
    about = load_model_file(save_tiny_model(folder))
    layers = {"model.pixel_decoder.layers": 1, "model.query_decoder.layers": 2}
    about = dataclasses.replace(about, experiment=override(about.experiment, layers))
    torch.manual_seed(3)
    save_model(folder, build_model(about.experiment.model, len(about.categories)), about)
    return folder


@pytest.fixture(scope="module")
def exported(model: Path) -> Path:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason=f"{name} is not installed (the extra `export`)")
    path = model.parent / "tiny.onnx"
    report = export(model, path, "onnx")
    assert all(one["difference"] < 1e-3 for one in report["differences"])
    assert [one["task"] for one in report["agreement"]] == ["panoptic", "instance", "semantic"]
    assert all(one["pixels"] > 0.999 for one in report["agreement"])
    assert report["latency"]["exported"] > 0
    return path


def outputs(network: torch.nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    with torch.inference_mode():
        found = network(pixels)
    return found.class_logits[-1], found.mask_embeddings[-1], found.mask_features


@pytest.mark.parametrize("shape", SHAPES)
def test_every_batch_height_and_width(model: Path, exported: Path, shape: tuple[int, int, int]) -> None:
    network, _ = load_exported(exported, "cpu")
    pixels = torch.randn((shape[0], 3, *shape[1:]), generator=torch.Generator().manual_seed(0))
    for one, other in zip(outputs(load(model, "cpu").model, pixels), outputs(network, pixels), strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, atol=1e-3)


def test_the_file_is_standard_and_names_its_sizes(exported: Path) -> None:
    import onnx

    file = onnx.load(exported)
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
    assert sizes["mask_features"][2:] == ["height/4", "width/4"]


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_load_predicts_as_the_model_does(model: Path, exported: Path, task: str) -> None:
    one, other = load(model, "cpu"), load(exported)
    assert other.categories == one.categories
    assert other.model_file == load_model_file(model)
    pictures = [picture(), picture(71, 40, seed=1)]
    for view in (one.model_file.experiment.data.view, Tiles(size=48, overlap=16)):
        for mine, theirs in zip(
            one.seeing(view).predict(pictures, task), other.seeing(view).predict(pictures, task), strict=True
        ):
            assert (mine.prediction.layers == theirs.prediction.layers).float().mean() > 0.99
            assert torch.equal(mine.prediction.labels, theirs.prediction.labels)


def test_the_command_line_takes_it(exported: Path, tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    outcome = unimask("predict", tmp_path / "a.png", "--weights", exported, "--output", tmp_path / "out")
    assert outcome.code == 0, outcome
    assert (tmp_path / "out" / "a.segments.png").exists()
    for given, message in (
        (("--precision", "bf16-mixed"), "precision: is 'bf16-mixed'; an exported model has the one"),
        (("--device", "cuda:7"), "device: "),
        (("--device", "mps"), "device: this onnxruntime cannot use 'mps'"),
    ):
        assert message in refused("predict", tmp_path / "a.png", "--weights", exported, *given)


def test_eight_bits(model: Path, exported: Path, tmp_path: Path) -> None:
    from unimask.export.onnx_file import quantise

    quantise(exported, tmp_path / "small.onnx")
    network, about = load_exported(tmp_path / "small.onnx", "cpu")
    assert about == load_model_file(model)
    import onnx

    operators = {node.op_type for node in onnx.load(tmp_path / "small.onnx").graph.node}
    assert "MatMulInteger" in operators
    assert {node.domain for node in onnx.load(tmp_path / "small.onnx").graph.node} == {""}
    pixels = torch.randn((1, 3, 96, 128), generator=torch.Generator().manual_seed(0))
    classes, _, features = outputs(load(model, "cpu").model, pixels)
    close, _, close_features = outputs(network, pixels)
    assert 0 < (classes - close).abs().max() < 1
    assert (features - close_features).abs().max() < 0.2


def test_a_program_of_torch_export(model: Path, tmp_path: Path) -> None:
    report = export(model, tmp_path / "tiny.pt2", "pt2")
    assert all(one["difference"] < 1e-3 for one in report["differences"])
    assert all(one["pixels"] > 0.999 for one in report["agreement"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.pt2", "tiny.pt2.parity.json"]
    description = {"unimask.json": ""}
    program = torch.export.load(tmp_path / "tiny.pt2", extra_files=description).module()
    assert "categories" in description["unimask.json"]
    pixels = torch.randn((3, 3, 96, 64), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = program(pixels)
    for one, other in zip(outputs(load(model, "cpu").model, pixels), found, strict=True):
        assert torch.allclose(one, other, atol=1e-3)


def test_the_model_itself_is_left_alone(model: Path) -> None:
    one, _ = load_model(model)
    assert exportable(one).model is not one
    assert not any(parameter.requires_grad for parameter in exportable(one).parameters())
    assert all(parameter.requires_grad for parameter in one.query_decoder.parameters())


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (5, 2), (3, 1), (7, 4), (1, 2)])
def test_fixed_padding_is_same_padding(kernel: int, stride: int) -> None:
    convolution = Conv2dSame(3, 5, kernel, stride)
    maps = torch.randn(2, 3, 32, 64)
    assert torch.equal(FixedPadding(convolution)(maps), convolution(maps))


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
    assert "data.divisor: is 24; exported models take canvases of multiples of 32" in message
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


def test_without_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(WeightsError, match=r"needs onnxruntime, which is not installed; pip install"):
        load(tmp_path / "a.onnx")
    assert isinstance(load("nuclei", "cpu"), Segmenter)
