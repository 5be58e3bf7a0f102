"""Shapes in annotations are enforced while tests run; the shared reference data is optional.

Tests that share a long set-up run in one process of pytest-xdist, so that it is made once.
"""

import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import install_import_hook

gc.disable()  # until all tests are imported, see `pytest_collection_finish`
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


LONG_SETUPS = (
    "cli/test_detection_commands.py",
    "cli/test_train_command.py",
    "examples/test_examples.py",
    "export/test_onnx_in_numpy.py",
    "golden/test_head.py",
    "inference/test_engine_ray.py",
    "reproduction/test_reproduce.py",
    "serve/test_page_in_browser.py",
    "test_documented_commands.py",
    "training/test_kept_work.py",
    "training/test_shared_training.py",
)
"""Files whose tests share a set-up that takes long."""


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave what was imported out of every search for garbage, which would take 1/6 of the tests' time."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out the files of `LONG_SETUPS` whole, and other tests one by one.

    (pytest-xdist's own groups, `--dist loadgroup`, are not told apart under pytest 9.2.)
    """
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return file if file.endswith(LONG_SETUPS) else nodeid

    return Scheduling(config, log)
