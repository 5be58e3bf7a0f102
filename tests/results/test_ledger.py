"""Which files of a folder are results, and which are somebody's own."""

import json
from pathlib import Path

import pytest

from unimask.errors import DataError
from unimask.results.found import json_writer, save_result, text_writer
from unimask.results.ledger import LEDGER_NAME, Ledger, ledger_of


def test_results_are_replaced_and_files_of_others_are_not(tmp_path: Path) -> None:
    save_result(tmp_path, "a", {"a.json": json_writer({"old": 1}), "a.segments.png": text_writer("ids")})
    save_result(tmp_path, "a", {"a.json": json_writer({"new": 1})})
    assert not (tmp_path / "a.segments.png").exists()  # of the earlier result, whose ids are others
    assert json.loads((tmp_path / "a.json").read_text()) == {"new": 1}
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(DataError, match=r"b\.json: is there and was not written by unimask.*--overwrite"):
        save_result(tmp_path, "b", {"b.overlay.png": text_writer("b"), "b.json": json_writer({})})
    assert [path.name for path in sorted(tmp_path.iterdir())] == [LEDGER_NAME, "a.json", "b.json"]
    save_result(tmp_path, "b", {"b.json": json_writer({})}, overwrite=True)
    assert (tmp_path / "b.json").read_text() == "{}\n"


def test_whoever_changes_a_result_makes_it_his_own(tmp_path: Path) -> None:
    files = {"a.segments.png": text_writer("12345")}
    save_result(tmp_path, "a", files)
    (tmp_path / "a.segments.png").write_text("12845")  # corrected by hand, of the same size
    with pytest.raises(DataError, match="or was changed since"):
        save_result(tmp_path, "a", files)
    save_result(tmp_path, "a", {"a.json": json_writer({})})
    assert (tmp_path / "a.segments.png").read_text() == "12845"  # nor is it removed with the old result


def test_a_kill_between_note_and_name_leaves_nothing_that_nobody_knows(tmp_path: Path) -> None:
    save_result(tmp_path, "a", {"a.json": json_writer({"old": 1})})
    before = (tmp_path / "a.json").read_bytes()
    save_result(tmp_path, "a", {"a.json": json_writer({"new": 1})})
    (tmp_path / "a.json").write_bytes(before)  # noted already, but its name still has the old content
    save_result(tmp_path, "a", {"a.json": json_writer({"newer": 1})})


def test_lines_that_are_cut_off_say_nothing(tmp_path: Path) -> None:
    save_result(tmp_path, "a", {"a.json": json_writer({})}, made_with="x")
    with (tmp_path / LEDGER_NAME).open("a") as file:
        file.write('{"files": {"b.json": [3, "ab')
    save_result(tmp_path, "c", {"c.json": json_writer({})}, made_with="y")
    for ledger in (ledger_of(tmp_path), Ledger(tmp_path)):
        assert ledger.owns("a.json")
        assert ledger.owns("c.json")
        assert not ledger.knows("b.json")
        assert ledger.is_complete("x")
        assert ledger.is_complete("y")
        assert not ledger.is_complete("z")
        assert not ledger.is_complete("")
    (tmp_path / "a.json").unlink()
    assert not ledger_of(tmp_path).is_complete("x")


def test_a_folder_that_is_made_anew_has_a_ledger_of_its_own(tmp_path: Path) -> None:
    save_result(tmp_path, "a", {"a.json": json_writer({})}, made_with="x")
    assert ledger_of(tmp_path).is_complete("x")
    (tmp_path / LEDGER_NAME).unlink()
    assert not ledger_of(tmp_path).knows("a.json")
