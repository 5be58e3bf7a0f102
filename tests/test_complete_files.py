"""What a killed process leaves behind, and what is left alone."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unimask import files
from unimask.files import clean_up, complete_file, is_temporary, to_disk, write_text

KILLED = """
import os, signal, sys
from pathlib import Path
from unimask.files import complete_file
with complete_file(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no signal kills there")
def test_the_next_writer_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    (tmp_path / ".mine.part").write_text("a download of somebody")
    (tmp_path / ".a.json.12345678.part").write_text("of an earlier version: not surely ours")
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a.json")], check=False)
    (left,) = (path for path in tmp_path.iterdir() if path.name.startswith(".a.json.") and "-" in path.name)
    assert is_temporary(left.name)
    with complete_file(tmp_path / "running.json") as temporary:
        temporary.write_text("of this process")
        files._clean_up_once.cache_clear()
        write_text(tmp_path / "b.json", "whole")
        assert temporary.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".a.json.12345678.part",
        ".mine.part",
        "b.json",
        "running.json",
    ]


def test_files_of_other_machines_are_left_for_a_day(tmp_path: Path) -> None:
    new, old = tmp_path / ".a.json.ffffff-7-abcdef.part", tmp_path / ".b.json.ffffff-7-abcdef.part"
    for path in (new, old):
        path.touch()
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    clean_up(tmp_path)
    assert list(tmp_path.iterdir()) == [new]
    clean_up(tmp_path, alone=True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_being_replaced_gets_its_name_back(tmp_path: Path) -> None:
    for name in (".step_5.ffffff-7-abcdef.old", ".step_9.ffffff-7-abcdef.old", "step_9"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.pt").write_text(name)
    clean_up(tmp_path, alone=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_5", "step_9"]
    assert (tmp_path / "step_9" / "state.pt").read_text() == "step_9"
    with complete_file(tmp_path / "step_9") as temporary:
        temporary.mkdir()
        (temporary / "state.pt").write_text("new")
    assert (tmp_path / "step_9" / "state.pt").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_5", "step_9"]


def test_contents_reach_the_disk_before_they_get_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    replace = os.replace

    def synced(path: Path) -> None:
        events.append("folder" if path == tmp_path else "content")
        to_disk(path)

    def renamed(source: Path, target: Path) -> None:
        events.append("name")
        replace(source, target)

    monkeypatch.setattr(files, "to_disk", synced)
    monkeypatch.setattr(os, "replace", renamed)
    write_text(tmp_path / "a.json", "whole")
    assert events == ["content", "name", "folder"]


def test_long_names_have_room_for_a_temporary_one(tmp_path: Path) -> None:
    name = "ä" * 120 + ".json"
    write_text(tmp_path / name, "whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]
