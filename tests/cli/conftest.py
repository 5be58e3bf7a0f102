from pathlib import Path

import pytest
from cli.command_line import save_tiny_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model with random weights."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")
