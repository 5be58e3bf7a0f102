"""Shapes in annotations are enforced while tests run; the shared reference data is optional."""

import os
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook("unimask", "beartype.beartype")
torch.set_num_threads(int(os.environ.get("UNIMASK_TEST_THREADS", "1")))

SHARED = Path(os.environ.get("UNIMASK_SHARED", Path(__file__).parents[2] / "shared"))


def _need(folder: Path) -> Path:
    if not folder.exists():
        pytest.skip(f"reference data is not here: {folder} (set UNIMASK_SHARED to where it is)")
    return folder


@pytest.fixture(scope="session")
def golden() -> Path:
    """Inputs and outputs of the original implementations."""
    return _need(SHARED / "golden")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets."""
    return _need(SHARED / "data")
