"""Models can be compiled as a whole, and their forward pass never makes the host wait."""

import os
import subprocess
import sys
from pathlib import Path


def test_tracing() -> None:
    file = Path(__file__).with_name("traced_models.py")
    options = ("-p", "no:cacheprovider", "--noconftest", "-q", "--override-ini", "addopts=")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(file), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-5_000:]
