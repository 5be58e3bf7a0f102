"""What a run leaves: a JSON with everything, the tables in Markdown, and tables inside a document."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.settings import Outcome, Settings
from benchmarks.targets import target_table
from unimask.benchmark.tables import Table, to_markdown, to_plain
from unimask.errors import DataError
from unimask.machine import describe_machine

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def git_commit() -> str:
    """The commit of the working tree, with a mark where files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except OSError:
        return "unknown"
    return (commit or "unknown") + (" with changes" if changed else "")


def about_the_run(settings: Settings) -> dict[str, object]:
    described = describe_machine(settings.torch_device)
    machine, versions = described["machine"], described["versions"]
    assert isinstance(machine, dict)
    assert isinstance(versions, dict)
    return {
        "commit": git_commit(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "quick": settings.quick,
        "machine": {**machine, "threads": settings.threads, "load_before": os.getloadavg()[0]},
        "versions": {**versions, "transformers": version("transformers")},
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
    }


def as_record(about: Mapping[str, object], outcomes: Mapping[str, Outcome]) -> dict[str, object]:
    suites = {
        name: {"tables": [to_plain(table) for table in outcome.tables], "details": outcome.details}
        for name, outcome in outcomes.items()
    }
    return {**about, "suites": suites}


def write(folder: Path, name: str, record: Mapping[str, object]) -> tuple[Path, Path]:
    """NAME.json and NAME.md."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{name}.json", folder / f"{name}.md"
    texts = json.dumps(record, indent=1) + "\n", f"# Benchmark\n\n{markdown(record)}"
    for path, text in zip(paths, texts, strict=True):
        temporary = path.with_name(f".{path.name}.part")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    return paths


def markdown(record: Mapping[str, object]) -> str:
    """What a record says: a sentence on the machine, the targets, then all tables."""
    suites = record["suites"]
    assert isinstance(suites, Mapping)
    targets = target_table({name: suite["details"] for name, suite in suites.items()})
    parts = [_sentence(record), to_markdown(targets)]
    for suite in suites.values():
        parts += [to_markdown(_table(plain)) for plain in suite["tables"]]
    return "\n".join(parts)


def _sentence(record: Mapping[str, object]) -> str:
    machine, versions = record["machine"], record["versions"]
    assert isinstance(machine, Mapping)
    assert isinstance(versions, Mapping)
    device = "" if machine["device"] == "cpu" else f", {machine['device']}"
    warning = "**A quick run, whose numbers mean nothing.** " if record["quick"] else ""
    return (
        f"{warning}Commit {record['commit']}, {machine['processor']}{device}, {machine['threads']} threads "
        f"(load before: {machine['load_before']:.1f}), Python {versions['python']}, "
        f"torch {versions['torch']}, transformers {versions['transformers']}; "
        f"{record['started']}: `{record['command']}`\n"
    )


def _table(plain: Mapping[str, object]) -> Table:
    rows, columns = plain["rows"], plain["columns"]
    assert isinstance(rows, Sequence)
    assert isinstance(columns, Sequence)
    return Table(
        title=str(plain["title"]),
        about=str(plain["about"]),
        columns=tuple(columns),
        rows=tuple(tuple(float("nan") if cell is None else cell for cell in row) for row in rows),
    )


def fill(document: Path, record: Mapping[str, object]) -> None:
    """Puts the tables between the two marks of a document, in place of what stands there.

    Raises:
        DataError: the document has no such marks.
    """
    text = document.read_text(encoding="utf-8")
    found = re.search(f"{re.escape(BEGIN)}.*{re.escape(END)}", text, re.DOTALL)
    if found is None:
        raise DataError(document, f"has no lines {BEGIN} and {END} to put tables between")
    filled = f"{text[: found.start()]}{BEGIN}\n{markdown(record)}\n{END}{text[found.end() :]}"
    document.write_text(filled, encoding="utf-8")
