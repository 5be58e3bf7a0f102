"""The suites of `benchmarks/`: what they compare is the same work, and what they write can be read."""

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import eomt, metrics, report, training
from benchmarks.__main__ import main
from benchmarks.postprocessing import KEPT, TASKS, agreement, make_scene, our_work
from benchmarks.settings import Case, Outcome, Settings, case_details, case_table
from benchmarks.suites import run_suite
from benchmarks.targets import CROWDED, SMALL, STEP, TARGETS, target_table
from benchmarks.training import CASES, QUICK_SCALING, SCALING, Work, id_map
from unimask.benchmark.memory import NOT_DONE, Peak, in_fresh_process
from unimask.benchmark.tables import to_plain
from unimask.benchmark.timing import TOTAL, Rounds
from unimask.errors import DataError

QUICK = Settings(device="cpu", threads=1, precision="32-true", quick=True)


@pytest.mark.parametrize("task", TASKS)
def test_both_ways_of_reading_find_the_same(task: str) -> None:
    scene = make_scene(True, torch.device("cpu"))
    words = agreement(scene, task)
    found = our_work(scene, task)()
    assert len(found) >= 15
    if task == "panoptic":
        assert len(found) <= KEPT
        assert words == f"{len(found)} segments, 0 of 32400 pixels differ, labels equal"
    elif task == "instance":
        assert f"{len(found)} instances, 0 masks differ in 0 pixels" in words
    else:
        assert words == f"{len(found)} segments, 0 of 32400 pixels differ"


def test_a_difference_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = make_scene(True, torch.device("cpu"))
    masks = scene.mask_logits()
    masks[:, :4, :4] = -9
    monkeypatch.setattr(type(scene), "mask_logits", lambda _: masks)
    for task in ("panoptic", "instance"):
        assert " 0 of" not in agreement(scene, task)
        assert " 0 masks" not in agreement(scene, task)


@pytest.mark.parametrize("work", [*CASES, *SCALING, *QUICK_SCALING], ids=lambda work: work.name)
def test_every_segment_of_a_training_picture_is_there(work: Work) -> None:
    numbers, areas = id_map(work).unique(return_counts=True)
    assert numbers.tolist() == list(range(work.segments + 1))
    assert areas.min() >= 9


def a_case() -> Case:
    return Case(
        name="one",
        rounds=Rounds(seconds={"theirs": {TOTAL: (0.4, 0.6)}, "ours": {TOTAL: (0.1, 0.2)}}),
        peaks={"theirs": NOT_DONE, "ours": Peak(before=2**20, highest=3 * 2**20)},
        remarks={"ours": "equal"},
    )


def test_tables_of_cases() -> None:
    table = case_table("Title", "About.", "said", [a_case()])
    assert table.columns[-1] == "said"
    first, second = table.rows
    assert first[:3] == ("one", "theirs", "500.0 / 590.0")
    assert math.isnan(first[3])
    assert second == ("one", "ours", "150.0 / 195.0", 2.0, "3.50", "-", "equal")
    details = case_details([a_case()])["one"]
    assert details["theirs"]["peak_bytes_above"] is None
    assert details["ours"] == {
        "seconds": [0.1, 0.2],
        "peak_bytes_above": 2 * 2**20,
        "peak_bytes": 3 * 2**20,
        "remark": "equal",
    }


def test_results_fill_a_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = case_table("Title", "About.", "said", [a_case()])
    outcome = Outcome(tables=(table,), details=case_details([a_case()]))
    record = report.as_record(report.about_the_run(QUICK), {"suite": outcome})
    written, shown = report.write(tmp_path / "new", "a", record)
    stored = json.loads(written.read_text("utf-8"))
    assert stored["suites"]["suite"]["tables"] == [to_plain(table) | {"rows": [*map(list, [
        ("one", "theirs", "500.0 / 590.0", None, "", "", ""), table.rows[1],
    ])]}]  # fmt: skip
    assert stored["machine"]["threads"] == 1
    assert stored["commit"]
    assert "numbers mean nothing" in shown.read_text("utf-8")
    document = tmp_path / "page.md"
    document.write_text(f"before\n{report.BEGIN}\nfilled before\n{report.END}\nafter\n", "utf-8")
    for _ in range(2):  # filling again replaces what was filled
        assert main(["--fill", str(written), str(document)]) == 0
        text = document.read_text("utf-8")
        assert text.startswith(f"before\n{report.BEGIN}\n")
        assert text.endswith(f"\n{report.END}\nafter\n")
        assert text.count("### Title") == 1
        assert "| one | theirs | 500.0 / 590.0 | - |" in text
        assert "filled before" not in text
    document.write_text("no marks", "utf-8")
    with pytest.raises(DataError, match="to put tables between"):
        report.fill(document, record)
    assert main(["--fill", str(tmp_path / "none.json"), str(document)]) == 2
    assert "none.json" in capsys.readouterr().err


def test_the_page_on_performance_can_be_filled() -> None:
    text = (report.ROOT / "docs" / "performance.md").read_text("utf-8")
    assert text.count(report.BEGIN) == text.count(report.END) == 1


def test_targets_are_compared_with_what_was_measured() -> None:
    sides = {
        "transformers": {"seconds": {"forward": [3.0, 5.0]}, "peak_bytes_above": 100},
        "unimask": {"seconds": {"forward": [1.0, 2.0]}, "peak_bytes_above": 45},
    }
    scaling = {"10 segments": 100, "300 segments": 120}
    details = {
        "inference": {"Inference, R50, 640 x 640": sides},
        "training": {"scaling_peak_bytes_above": scaling},
    }
    rows = {row[0]: row[1:] for row in target_table(details).rows}
    assert rows["R50 640 x 640 forward, float32"] == (2.75, "2.4 or more", "3 or more", "yes")
    assert rows["R50 640 x 640 inference, peak memory above the weights"][0] == 0.45
    assert rows["training peak memory: growth from 10 to 300 segments"][3] == "**no**"
    assert rows["Swin-T 640 x 640 forward, float32"][3] == "not measured"
    assert len(rows) == len(TARGETS)


def test_every_target_names_a_case_that_a_suite_runs() -> None:
    names = {work.name for work in CASES}
    assert {STEP.format(10), STEP.format(30), CROWDED} == names
    assert [work.name for work in eomt.STEPS] == [f"{SMALL}, batch 1, 10 segments"]
    assert {target.what.split()[0] for target in TARGETS} >= set(eomt.KINDS)


def test_a_suite_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(settings: Settings) -> Outcome:
        raise ValueError("no memory\nat all")

    monkeypatch.setattr(metrics, "run", fail)
    outcome = run_suite("metrics", QUICK)
    assert outcome.tables[0].about == "failed: ValueError: no memory"


def test_a_suite_runs_apart_from_others() -> None:
    outcome = in_fresh_process(run_suite, "metrics", QUICK)
    assert outcome.tables[0].about.startswith("On 5 pictures of 96 x 128")
    assert len(outcome.tables[0].rows) >= 3


def test_a_side_that_fails_leaves_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path, settings: Settings) -> None:
        raise RuntimeError("too old")

    monkeypatch.setitem(training.TRAINERS, "transformers", broken)
    monkeypatch.setitem(training.TRAINERS, "unimask", lambda folder, settings: lambda work: lambda: 2.5)
    work = Work(size=(32, 32), batch=1, segments=1)
    rounds, said = training._time(work, dict.fromkeys(training.SIDES, Path()), QUICK)
    assert said == {"transformers": "failed: RuntimeError: too old", "unimask": "2.500"}
    table = case_table("T", "A.", "loss", [Case(name="one", rounds=rounds, peaks={}, remarks=said)])
    assert [row[1] for row in table.rows] == ["unimask", "transformers"]
