"""A model, its average and the optimiser's state, split over processes (FSDP2), and their checkpoints.

Each process keeps an equal part of every tensor. The layers of the model (`units`) are put together one after
the other, when they compute, and taken apart again. Checkpoints hold the parts, and which tensors they
make up; so any number of processes can read them, also one.
"""

import pickle
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from enum import EnumType
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed import checkpoint, is_initialized
from torch.distributed.checkpoint import CheckpointException, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor

from unimask.errors import DataError, first_line, some_of
from unimask.processes import first_alone, first_says, gather
from unimask.training.optimizer import parameters_of

SMALLEST = 100_000  # parameters of a layer that is put together on its own
_WAY_OUT = "remove the folder of this step to go on from an earlier one"


def units(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers that are put together on their own, inner ones first.

    They are the large members of lists and sequences of modules, which are called one after the other. A
    single linear layer or convolution is none: what it returns may be written over, which would take away the
    mark at which its parameters are put together again for the backward pass.
    """
    for stack in reversed(list(model.modules())):
        if isinstance(stack, nn.ModuleList | nn.Sequential):
            for layer in stack:
                count = sum(parameter.numel() for parameter in layer.parameters())
                listed = isinstance(layer, nn.ModuleList | nn.ModuleDict)
                if count >= SMALLEST and not listed and any(True for _ in layer.children()):
                    yield layer


def shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """Split all parameters of a module over the processes of a mesh of one dimension, in place.

    Optimisers must be made afterwards: the parameters are others.
    """
    from torch.distributed.fsdp import fully_shard

    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()  # weights of convolutions may be channels last
    for unit in dict.fromkeys(units(module)):
        fully_shard(unit, mesh=mesh)
    fully_shard(module, mesh=mesh)


def take_apart(module: nn.Module) -> None:
    """Split again the layers that a forward pass put together, where no backward pass followed."""
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole_model(
    sharded: nn.Module, build: Callable[[], nn.Module], device: torch.device, *, needed: bool
) -> nn.Module:
    """Return the model with all its weights in one piece, or as it is in a process where that is not needed.

    All processes must call this.
    """
    model = sharded
    if needed:
        with torch.random.fork_rng(devices=[]):  # building draws random weights
            model = build().to(device)
    own = model.state_dict() if needed else {}
    for name, tensor in sharded.state_dict().items():  # one at a time: all of them would need more room
        complete = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if needed:
            own[name].copy_(complete)
    return model


def learned(
    model: nn.Module, average: nn.Module | None, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Return all tensors that a training changes, by name: the tensors themselves, no copies."""
    found = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    if average is not None:
        found |= {f"average/{name}": tensor for name, tensor in average.state_dict().items()}
    for index, parameter in enumerate(parameters_of(optimizer)):
        state = cast(Mapping[str, Tensor], optimizer.state.get(parameter, {}))
        found |= {f"optimizer/{index}/{name}": tensor for name, tensor in state.items()}
    return found


def save_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write this process's part of the tensors. All processes must call this.

    Raises:
        OSError: a part of some process could not be written; in all processes.
    """
    try:
        checkpoint.save(dict(tensors), storage_writer=FileSystemWriter(folder))
    except CheckpointException as error:
        reasons = {first_line(failure[0]) for failure in error.failures.values()}
        raise OSError("; ".join(sorted(reasons))) from None


def save_in_parts(
    write: Callable[[Callable[[Path], None]], None], tensors: Mapping[str, Tensor], *, first: bool
) -> None:
    """Call `write` in the first process, with a function that writes the parts of all into a folder.

    Where there are no tensors, that does nothing. All processes must call this. Where it fails, its error is
    raised in the first one, and the others exit.
    """
    begun = False

    def save_parts(folder: Path) -> None:
        nonlocal begun
        if tensors:
            begun = True
            save_shards(first_says(folder), tensors)

    def write_first() -> None:
        try:
            write(save_parts)
        finally:
            if tensors and not begun:
                first_says(None)

    if tensors and not first and (folder := first_says(None)) is not None:
        with suppress(OSError):  # raised in the first process as well
            save_shards(folder, tensors)
    first_alone(write_first)


def check_shards(folder: Path) -> None:
    """Check that all parts of a checkpoint are here, in their full length.

    Raises:
        OSError, ValueError: they are not.
    """
    ends: dict[str, int] = {}
    for part in (_metadata(folder).storage_data or {}).values():
        ends[part.relative_path] = max(ends.get(part.relative_path, 0), part.offset + part.length)
    for name, end in ends.items():
        size = (folder / name).stat().st_size
        if size < end:
            raise ValueError(f"{folder / name} has {size:,} of {end:,} bytes")


_DESCRIBED = "torch.distributed.checkpoint.metadata"
_NAMES = frozenset(
    {
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        ("pathlib", "PosixPath"),
        ("pathlib", "WindowsPath"),
        ("pathlib._local", "PosixPath"),
        ("pathlib._local", "WindowsPath"),
    }
)


class _MetadataReader(pickle.Unpickler):
    """Reads PyTorch's metadata of the parts of a checkpoint, and runs no other code of the file."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("builtins", "getattr"):
            return _member
        known = (module, name) in _NAMES
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if known or dtype or (module == _DESCRIBED and "." not in name):
            found: object = super().find_class(module, name)
            if known or dtype or isinstance(found, type):
                return found
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _member(kind: object, name: object) -> object:
    """Return a member of an enumeration: Python 3.11.0 to 3.11.3 pickle it as a call of `getattr`."""
    if not isinstance(kind, EnumType) or name not in kind.__members__:
        raise pickle.UnpicklingError("it names builtins.getattr")
    return kind.__members__[str(name)]


def _metadata(folder: Path) -> Metadata:
    """Return which tensors the parts make.

    Raises:
        OSError, ValueError: that cannot be read, or they make something else than tensors.
    """
    path = folder / ".metadata"
    try:
        with path.open("rb") as file:
            found = _MetadataReader(file).load()
    except (EOFError, pickle.UnpicklingError, AttributeError, IndexError, ImportError) as error:
        raise ValueError(f"{path} cannot be read ({first_line(error)})") from None
    if not isinstance(found, Metadata) or not all(
        isinstance(one, TensorStorageMetadata) for one in found.state_dict_metadata.values()
    ):
        raise ValueError(f"{path} is not about tensors")
    return found


def load_shards(
    folder: Path, model: nn.Module, average: nn.Module | None, optimizer: torch.optim.Optimizer
) -> None:
    """Fill model, average and optimiser from a checkpoint, whole or split as they are now.

    The checkpoint may be of another number of processes. All processes must call this.

    Raises:
        DataError: a part cannot be read, or holds numbers that are not finite; in all processes.
    """
    names = _metadata(folder).state_dict_metadata.keys()
    _make_room(optimizer, names)
    tensors = learned(model, average, optimizer)
    reader = FileSystemReader(folder)
    try:
        # called by `checkpoint.load`, which would warn a single process
        _load_state_dict(tensors, reader, no_dist=not is_initialized())
    except CheckpointException as error:
        reason = first_line(next(iter(error.failures.values()))[0])
        raise DataError(folder, f"cannot be read ({reason}); {_WAY_OUT}") from None
    damaged = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if wrong := sorted({name for names in gather(damaged) for name in names}):
        raise DataError(folder, f"holds numbers that are not finite, in {some_of(wrong)}; {_WAY_OUT}")


def _is_finite(tensor: Tensor) -> bool:
    """Return whether all numbers of this process's part of a tensor are finite."""
    part = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return bool(torch.isfinite(part).all())


def _make_room(optimizer: torch.optim.Optimizer, names: Collection[str]) -> None:
    """Give each parameter the state of Adam that a checkpoint has of it, still to be filled."""
    for index, parameter in enumerate(parameters_of(optimizer)):
        if f"optimizer/{index}/step" in names:
            moments = {moment: torch.zeros_like(parameter) for moment in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.zeros(()), **moments}


def fill_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, object]) -> None:
    """Load an optimiser's whole state, of which each process keeps the part that it has of the parameters."""
    optimizer.load_state_dict(dict(state))
    for parameter in parameters_of(optimizer):
        own = optimizer.state.get(parameter, {})
        for name, tensor in own.items():
            if isinstance(parameter, DTensor) and not isinstance(tensor, DTensor) and tensor.ndim:
                own[name] = distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
