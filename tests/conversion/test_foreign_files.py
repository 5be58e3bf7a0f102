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
    with pytest.raises(WeightsError, match="an unknown encoding"):
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


@pytest.mark.parametrize("content", [[1, 2], {"a": "text", "b": [1.0]}, {}])
def test_a_file_without_weights_is_named(tmp_path: Path, content: object) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(content))
    with (
        warnings.catch_warnings(),
        pytest.raises(WeightsError, match=r"holds no weights|not a table of weights"),
    ):
        read_foreign_tensors(path)


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.function, self.arguments


POINTERS = Call(np.ndarray, (4,), np.dtype("O"), b"A" * 64)
HOSTILE = {
    "an array of objects over bytes of the file": POINTERS,
    "as a shape": Call(np.ndarray, POINTERS),
    "as the items of a table": Call(OrderedDict, POINTERS),
    "as a kind of numbers": Call(np.dtype, POINTERS),
    "objects, the plain way": np.array([{}], dtype=object),
    "structures": np.zeros(2, dtype=[("a", "f4")]),
    "void": np.zeros(2, dtype="V8"),
    "text": np.array(["text"]),
    "times": np.array(["2020-01-01"], dtype="M8[D]"),
}


@pytest.mark.parametrize("name", ["model.pkl", "model.pth"])
@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE.keys())
def test_arrays_of_anything_but_numbers_are_refused(tmp_path: Path, name: str, value: object) -> None:
    path = tmp_path / name
    if name.endswith(".pkl"):
        path.write_bytes(pickle.dumps({"model": {"a": value}}, 2))
    else:
        torch.save({"model": {"a": value}}, path)
    with pytest.raises(WeightsError, match="hold more than weights"):
        read_foreign_tensors(path)


def hostile_pickle(middle: bytes) -> bytes:
    """A table with one entry; `middle` leaves its value on the stack."""
    return b"\x80\x02}X\x01\x00\x00\x00a" + middle + b"s."


STATE_OF_OBJECTS = b"(K\x01(K\x04tcnumpy\ndtype\n(X\x01\x00\x00\x00OtR\x89C\x20" + b"A" * 32 + b"tb"
NEW_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tX\x01\x00\x00\x00btR"
SMALL_STATE = b"(K\x01(K\x04tcnumpy\ndtype\n(X\x02\x00\x00\x00f8tR\x89C\x08" + b"A" * 8 + b"tb"


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (NEW_ARRAY + STATE_OF_OBJECTS, "only floats, integers and booleans"),
        (NEW_ARRAY + SMALL_STATE, r"shape \(4,\) over 8 bytes"),
        (b"cnumpy\nndarray\nN}X\x04\x00\x00\x00codeX\x01\x00\x00\x00Os\x86b", "change how files are read"),
        (b"cnumpy\ndtype\n)\x81", "not weights|no weights|holds"),
    ],
    ids=["objects in the state", "too few bytes", "a class is changed", "a dtype without a kind"],
)
def test_pickles_written_by_hand(tmp_path: Path, middle: bytes, reason: str) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(hostile_pickle(middle))
    with pytest.raises(WeightsError, match=reason):
        read_foreign_tensors(path)


def test_a_memo_of_billions_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")
    with pytest.raises(WeightsError, match="holds no weights"):
        read_foreign_tensors(path)


def test_every_kind_of_number_keeps_its_values(tmp_path: Path) -> None:
    arrays = {
        code: np.array([[0, 1, 2], [3, 4, 5]], dtype=code)
        for code in ("<f4", ">f4", "f2", "f8", "<i8", ">i4", "i2", "u1", "i1", "b1")
    }
    arrays["columns"] = np.asfortranarray(np.arange(6, dtype="f4").reshape(2, 3))
    arrays["scalar"] = np.array(3.5, dtype="f4")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path = tmp_path / "model.pkl"
        path.write_bytes(pickle.dumps(arrays, protocol=protocol))
        found = read_foreign_tensors(path)
        for key, array in arrays.items():
            assert np.array_equal(found[key].numpy(), array), (key, protocol)
            assert found[key].shape == array.shape
