import os
import pickle
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from unimask.conversion.foreign_files import read_foreign_tensors
from unimask.errors import WeightsError

ARRAYS = {
    "a.weight": np.arange(15, dtype=np.float32).reshape(5, 3),
    "a.bias": np.array([2, 3], dtype=np.int64),
}


class Attack:
    """Runs a command when it is unpickled the plain way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_pickle_protocol(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "model.pkl"
    content = {"model": OrderedDict(ARRAYS), "__author__": "someone", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    found = read_foreign_tensors(path)
    assert found.keys() == ARRAYS.keys()
    for key, array in ARRAYS.items():
        assert torch.equal(found[key], torch.from_numpy(array))


def test_names_of_older_numpy_versions_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    content = pickle.dumps(ARRAYS, protocol=2)
    assert b"numpy._core.multiarray" in content
    path.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_foreign_tensors(path).keys() == ARRAYS.keys()


@pytest.mark.parametrize("name", ["model.pkl", "model.pth"])
def test_a_pickle_that_wants_to_run_something_is_refused(tmp_path: Path, name: str) -> None:
    path, trace = tmp_path / name, tmp_path / "trace"
    if name.endswith(".pkl"):
        path.write_bytes(pickle.dumps({"model": ARRAYS, "more": Attack(trace)}))
    else:
        torch.save({"model": {"a": torch.ones(1)}, "more": Attack(trace)}, path)
    with pytest.raises(WeightsError, match="hold more than weights") as caught:
        read_foreign_tensors(path)
    assert str(path) in str(caught.value)
    assert not trace.exists()


def test_bytes_in_other_encodings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(b"c_codecs\nencode\n(Vabc\nVzlib\ntR.")
    with pytest.raises(WeightsError, match="encoding 'zlib'"):
        read_foreign_tensors(path)


@pytest.mark.parametrize("under", ["model", "state_dict", ""])
def test_torch_files_with_version_metadata(tmp_path: Path, under: str) -> None:
    state = OrderedDict({"a": torch.arange(5.0)})
    state._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    path = tmp_path / "model.pth"
    torch.save({under: state, "iteration": 7} if under else state, path)
    assert torch.equal(read_foreign_tensors(path)["a"], torch.arange(5.0))


def test_training_checkpoints_may_hold_numbers_of_numpy(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model": {"a": torch.ones(3)}, "scheduler": {"rate": np.float64(0.1), "steps": ARRAYS}}, path)
    assert read_foreign_tensors(path).keys() == {"a"}


@pytest.mark.parametrize("name", ["model.pkl", "model.pth", "model.bin", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"not weights at all", None])
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        read_foreign_tensors(path)
    assert str(path) in str(caught.value)
    assert ("no such file" in str(caught.value)) == (content is None)


def test_a_file_that_is_cut_off_is_named(tmp_path: Path) -> None:
    for name in ("model.pkl", "model.pth"):
        path = tmp_path / name
        if name.endswith(".pkl"):
            path.write_bytes(pickle.dumps(ARRAYS))
        else:
            torch.save({"a": torch.ones(1000)}, path)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(WeightsError, match="cut off"):
            read_foreign_tensors(path)


@pytest.mark.parametrize("content", [[1, 2], {"a": "text", "b": np.array(["text"])}, {}])
def test_a_file_without_weights_is_named(tmp_path: Path, content: object) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(content))
    with (
        warnings.catch_warnings(),
        pytest.raises(WeightsError, match=r"holds no weights|not a table of weights"),
    ):
        read_foreign_tensors(path)
