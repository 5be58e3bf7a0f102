"""What several files of tests share."""

from pathlib import Path

import pytest
from cli.command_line import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")
