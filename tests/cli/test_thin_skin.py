"""The command line parses options, calls one public function and prints what comes back."""

import ast
from pathlib import Path

import pytest

import unimask.cli

FILES = sorted(Path(str(unimask.cli.__file__)).parent.glob("*.py"))
EVERYWHERE = {"unimask", "unimask.cli", "unimask.errors", "unimask.files", "unimask.presets"}
ENTRY_POINTS = {
    "unimask.benchmark.measure": "unimask bench",
    "unimask.benchmark.tables": "unimask bench: the cells of its table",
    "unimask.checkpoints.images": "unimask convert: what was converted, a model of images or of text",
    "unimask.checkpoints.text": "unimask evaluate: whether a model is one of images or of text",
    "unimask.config.images": "unimask check: a preset of images or of text",
    "unimask.config.values": "unimask presets NAME: every setting",
    "unimask.data.read": "unimask export: arguments become image files",
    "unimask.data.text.pairs": "a file or standard input becomes lines",
    "unimask.exporting.parity": "unimask export: its report is printed by kind",
    "unimask.inference.engine_ray": "unimask predict --engine ray",
    "unimask.inference.job": "unimask predict --engine ray",
    "unimask.inference.measures": "unimask train: the main measures of a task",
    "unimask.inference.text_evaluation": "unimask evaluate, of a translator",
    "unimask.inference.video": "unimask predict: a result is printed by kind",
    "unimask.reproduction": "unimask reproduce",
    "unimask.results.sheets": "unimask check: its picture",
    "unimask.serve": "unimask serve",
    "unimask.processes": "unimask train: the processes that a launcher has started",
    "unimask.training.compare": "unimask compare: its picture",
    "unimask.training.ablation.run": "unimask ablate",
    "unimask.training.progress": "how a duration is written",
    "unimask.training.result": "the exit code where a process of several was lost",
}
"""What the command line imports beside the public names, and what for."""


def imports_of(file: Path) -> set[str]:
    """The modules of the library that a file imports when it runs, not those for types only."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {name for name in names if name.partition(".")[0] == "unimask"}


def known(module: str) -> set[str]:
    """The entries of the lists that allow a module: itself or a package that it lies in."""
    parts = module.split(".")
    whole = {".".join(parts[:end]) for end in range(2, len(parts) + 1)} | {module}
    return whole & (EVERYWHERE | ENTRY_POINTS.keys())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_command_imports_public_names_and_entry_points_only(file: Path) -> None:
    assert {module for module in imports_of(file) if not known(module)} == set()


def test_every_entry_point_is_used() -> None:
    used = {name for file in FILES for module in imports_of(file) for name in known(module)}
    assert ENTRY_POINTS.keys() <= used
