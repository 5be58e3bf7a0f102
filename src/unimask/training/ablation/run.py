"""Train the rows of `presets/ablation.py` on the same data with the same budget, one after another."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count, product
from pathlib import Path
from statistics import median

from unimask.config.images import Experiment, experiment_to_dict
from unimask.config.tasks import Task, check_task
from unimask.config.text import TranslationExperiment
from unimask.config.values import check_count
from unimask.errors import ConfigError, DataError
from unimask.files import write_json
from unimask.inference.measures import MAIN_MEASURES
from unimask.presets.ablation import ROWS, Row, Story, row_experiment, rows_of
from unimask.training.ablation import row as ablation_row
from unimask.training.ablation.report import RowResult, write_report
from unimask.training.checks import check_settings
from unimask.training.image_data import open_task
from unimask.training.run_folder import RunFolder, differences

STANDARD_ERROR = 2  # the number of the stream

EVALUATIONS = 4  # on the way, where the settings do not say otherwise


def with_budget(base: Experiment | TranslationExperiment, budget: int) -> Experiment:
    """Return the experiment with so many steps, evaluated `EVALUATIONS` times on the way.

    Raises:
        ConfigError: the budget is not positive, or the experiment is one of translation.
    """
    if not isinstance(base, Experiment):
        raise ConfigError("preset", "is one of translation; ablate goes from MaskFormer to Mask2Former")
    if budget < 1:
        raise ConfigError("budget", f"steps of each row; must be at least 1, not {budget}")
    every = -(-budget // EVALUATIONS)
    training = replace(base.training, steps=budget, evaluate_every=every, checkpoint_every=every)
    return replace(base, training=training)


def ablate(
    base: Experiment,
    task: Task,
    data: str | Path,
    output: Path,
    *,
    story: Story = "add",
    seeds: int = 1,
    rows: Sequence[str] = (),
    initial: str | None = None,
    device: str = "auto",
    message: Callable[[str], None] = print,
) -> list[RowResult]:
    """Train all rows or some of them, with one seed or several, and write table and plot after each training.

    `base` is the whole model: the last row, or the first one of the story `remove`. Each training has a
    process of its own; all rows have the same data and the same seeds, from `base.training.seed` on. `output`
    gets `ablation.json`, `table.md`, `results.json`, `plot.svg`, and a folder per
    row. Where it holds the same ablation already, rows that are done are kept and others go on. A row that
    fails is named in the results, and the others go on.

    Raises:
        ConfigError: a row does not exist, there is no seed, or the folder holds an ablation with other
            settings.
        DataError: the data or the folder cannot be used.
        KeyboardInterrupt: it was stopped; the row that was under way has a checkpoint.
    """
    known = rows_of(base.model, story)
    wanted = [row for row in known if not rows or row.name in rows]
    for name in rows:
        row_experiment(base, name, story)
    check_count(seeds, "seeds")
    check_task(task)
    check_settings(base.training, processes=1)
    open_task(data, task, base)
    same: dict[str, object] = {"task": task, "data": str(data), "initial": initial, "device": device}
    _begin(output, base, {"story": story, **same})
    for seed, row in product(range(seeds), wanted):
        experiment = row_experiment(base, row.name, story)
        training = replace(experiment.training, seed=base.training.seed + seed)
        which = f", seed {training.seed}" if seeds > 1 else ""
        message(f"row {wanted.index(row) + 1} of {len(wanted)}: {row.title}{which}")
        request = {"experiment": experiment_to_dict(replace(experiment, training=training)), **same}
        _train(output / _folder(row, seed), request, message)
        results = collect(output, task, known)
        paper = {row.name: row.in_paper[task] for row in known if task in row.in_paper}
        beside = paper if story == "remove" else None
        write_report(output, results, MAIN_MEASURES[task][0], base.training, beside)
    return collect(output, task, known)


def _folder(row: Row, seed: int) -> str:
    """Return the name of the folder of a training; `seed` counts from the experiment's."""
    return f"{row.name}_seed{seed}" if seed else row.name


def _begin(output: Path, base: Experiment, same: Mapping[str, object]) -> None:
    """Make the folder, or check that it holds the same ablation."""
    path = output / "ablation.json"
    if output.exists() and not output.is_dir():
        raise DataError(output, "is a file; name a folder for the ablation")
    if output.exists() and any(output.iterdir()) and not path.exists():
        raise DataError(output, "holds other files but no ablation; name another folder")
    description = {**same, "experiment": experiment_to_dict(base)}
    if path.exists():
        old = {"story": "add", **json.loads(path.read_text(encoding="utf-8"))}  # as it was before
        changed = differences(old, description)
        if old["experiment"]["training"]["steps"] != base.training.steps:
            changed.append(f"budget: {old['experiment']['training']['steps']} -> {base.training.steps}")
        if changed:
            reason = "holds an ablation with other settings; name another folder:\n  "
            raise ConfigError(str(output), reason + "\n  ".join(changed))
    output.mkdir(parents=True, exist_ok=True)
    write_json(path, description)


def _train(folder: Path, request: dict[str, object], message: Callable[[str], None]) -> None:
    """Train one row, unless that is done."""
    if _measured(folder).get("completed"):
        message("  done before")
        return
    folder.mkdir(exist_ok=True)
    write_json(folder / "request.json", request)
    code = run_in_process(folder)
    if code != ablation_row.DONE:
        if not (folder / "error.txt").exists():
            reason = (
                "the process was killed; is there not enough memory?" if code < 0 else f"exit code {code}"
            )
            (folder / "error.txt").write_text(f"{reason}\n", encoding="utf-8")
        message(f"  failed: {(folder / 'error.txt').read_text(encoding='utf-8').strip()}")


def run_in_process(folder: Path) -> int:
    """Train the row that a folder asks for, writing to standard error only; return the exit code.

    A Ctrl-C reaches the row as well, which then saves its state and ends.

    Raises:
        KeyboardInterrupt: the row was stopped, and has ended.
    """
    stopped = False
    command = [sys.executable, "-m", ablation_row.__name__, str(folder)]
    with subprocess.Popen(command, stdout=STANDARD_ERROR) as process:
        while process.poll() is None:
            try:
                process.wait()
            except KeyboardInterrupt:
                stopped = True
    asked = (ablation_row.STOPPED, -signal.SIGINT, -signal.SIGTERM)
    if stopped or process.returncode in asked:
        raise KeyboardInterrupt
    return int(process.returncode)


def _measured(folder: Path) -> dict[str, int]:
    path = folder / "measured.json"
    if not path.exists():
        return {}
    measured: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
    return measured


def collect(output: Path, task: Task, rows: Sequence[Row] = ROWS) -> list[RowResult]:
    """Return the results so far of each training that has begun: in the order of `rows`, then of seeds."""
    results = []
    for row in rows:
        for seed in count():
            folder = output / _folder(row, seed)
            if not folder.is_dir():
                break
            results.append(_row_result(row, folder, task))
    return results


def _row_result(row: Row, folder: Path, task: Task) -> RowResult:
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    training = request["experiment"]["training"]
    batch_size = training["batch_size"]
    records = RunFolder(folder / "run").read_metrics()
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    speeds = [r["images_per_second"] for r in records if r["kind"] == "step" and r["images_per_second"]]
    failure = folder / "error.txt"
    measured = _measured(folder)
    return RowResult(
        name=row.name,
        title=row.title,
        seed=training["seed"],
        completed=bool(measured.get("completed")),
        failure=failure.read_text(encoding="utf-8").strip() if failure.exists() else "",
        curve=tuple(
            (record["step"], float(value))
            for record in evaluations
            if (value := record["values"][MAIN_MEASURES[task][0]]) is not None
        ),
        values=evaluations[-1]["values"] if evaluations else {},
        seconds_per_step=batch_size / median(speeds) if speeds else 0.0,
        memory=measured.get("memory_of_training", 0),
        peak_memory=measured.get("peak_memory", 0),
    )
