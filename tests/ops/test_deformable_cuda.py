"""Deformable sampling by Triton kernels, as far as it shows without a GPU; benchmarks/gpu.py needs one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unimask.ops.deformable import cuda as deformable_cuda
from unimask.ops.deformable.cuda import HAS_TRITON, kernel_sampling, kernels_serve
from unimask.ops.deformable.plain import deformable_sampling

HERE = Path(__file__).parent
SIZES = ((2, 3), (5, 7))
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")


def make(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    values = torch.randn(1, 41, 2, 3, generator=generator, dtype=dtype)
    locations = torch.rand(1, 5, 2, 2, 1, 2, generator=generator, dtype=dtype)
    return values, locations, torch.rand(1, 5, 2, 2, 1, generator=generator, dtype=dtype)


def run(*arguments: str, **environment: str) -> None:
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, *arguments], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-5_000:]


@needs_triton
@pytest.mark.parametrize(
    ("file", "interpreted"), [("interpreted_kernels.py", "1"), ("compiled_kernels.py", "0")]
)
def test_kernels(file: str, interpreted: str, tmp_path: Path) -> None:
    options = ("-p", "no:cacheprovider", "--noconftest", "-q", "-x", "--override-ini", "addopts=")
    environment = {"TRITON_INTERPRET": interpreted, "TRITON_CACHE_DIR": str(tmp_path)}
    run("-m", "pytest", str(HERE / file), *options, **environment)


def test_the_plain_version_has_the_right_gradients_away_from_cell_centers() -> None:
    """In float64, against differences: no point is nearer than a tenth of a cell to where its slope jumps."""
    values, _, weights = make(torch.float64)
    generator = torch.Generator().manual_seed(2)
    cells = torch.randint(-1, 5, (1, 5, 2, 2, 1, 2), generator=generator)
    between = 0.1 + 0.8 * torch.rand(cells.shape, generator=generator, dtype=torch.float64)
    sides = torch.tensor([(width, height) for height, width in SIZES], dtype=torch.float64)
    locations = (cells + between + 0.5) / sides[:, None]
    inputs = [tensor.requires_grad_() for tensor in (values, locations, weights)]
    assert torch.autograd.gradcheck(lambda v, p, w: deformable_sampling(v, SIZES, p, w), inputs)


def test_the_processor_is_not_served() -> None:
    assert not kernels_serve(*make())
    with pytest.raises(RuntimeError, match=r"need a CUDA device, not cpu|not installed"):
        kernel_sampling(make()[0], SIZES, *make()[1:])


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in which Triton cannot be imported."""
    run(
        "-c",
        "import sys; sys.modules['triton'] = None\n"
        "from unimask.ops.deformable import cuda as deformable_cuda\n"
        "assert not deformable_cuda.HAS_TRITON\n"
        "assert 'unimask.ops.deformable.triton' not in sys.modules",
    )
    monkeypatch.setattr(deformable_cuda, "HAS_TRITON", False)
    assert not kernels_serve(*make())
    with pytest.raises(RuntimeError, match="need Triton, which is not installed"):
        kernel_sampling(make()[0], SIZES, *make()[1:])


def test_what_does_not_fit_is_refused() -> None:
    values, locations, weights = make()
    with pytest.raises(ValueError, match="do not fit together in 35 cells"):
        kernel_sampling(values, ((5, 7),), locations, weights)
    with pytest.raises(ValueError, match="do not fit together in 41 cells"):
        kernel_sampling(values, SIZES, locations[:, :, :, :1], weights[:, :, :, :1])
    with pytest.raises(ValueError, match="float32, bfloat16 or float16"):
        kernel_sampling(values.double(), SIZES, locations, weights)
