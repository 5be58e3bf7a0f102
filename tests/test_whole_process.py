"""Settings of the whole process belong to whoever runs it: a library in a server must not touch them."""

import re
from pathlib import Path

import unimask

SOURCE = Path(unimask.__file__).parent
OF_THE_PROCESS = re.compile(
    r"catch_warnings|simplefilter|filterwarnings|resetwarnings|redirect_std(?:out|err)|logging\.disable\("
    r"|logging\.basicConfig|os\.chdir|os\.umask"
)
"""Where two threads change one of them for a while, it may stay changed for good."""


def test_only_the_command_line_changes_what_belongs_to_the_process() -> None:
    found = {
        str(path.relative_to(SOURCE)): names
        for path in SOURCE.rglob("*.py")
        if (names := OF_THE_PROCESS.findall(path.read_text("utf-8")))
    }
    # an actor of Ray has a process of its own
    assert found.keys() == {"cli/__init__.py", "cli/output.py", "inference/ray_actors.py"}
    assert set(found["inference/ray_actors.py"]) == {"os.chdir"}
