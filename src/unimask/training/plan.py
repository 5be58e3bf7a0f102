"""The plan of a training: a named experiment, that of a model, or one chosen from the data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import cast

import unimask
from unimask.checkpoints.images import load_model_file
from unimask.checkpoints.text import is_sequence_model
from unimask.config.data import Scale, Whole
from unimask.config.images import Experiment, experiment_from_dict
from unimask.config.models import DetrConfig, tasks_of
from unimask.config.overrides import override
from unimask.config.tasks import Task, check_task
from unimask.config.text import TranslationExperiment, translation_from_dict
from unimask.conversion.hub import check_trainable, find_model
from unimask.conversion.imagenet import why_unavailable
from unimask.data.check import DataCheck, Progress, check
from unimask.data.open import labelled_task, open_items
from unimask.errors import ConfigError
from unimask.machine import find_device, free_memory
from unimask.presets import named
from unimask.presets.shared import EFFICIENTNET
from unimask.results.gallery import shrink
from unimask.training.choice import Base, ChosenOptions, Here, Seen, choose, steps_of
from unimask.training.initial import is_model, model_differences
from unimask.training.run_folder import DESCRIPTION_NAME, described

LOOKS = 10.0  # seconds of reading the data before something is chosen
SHOWN_SIDE = 640  # pixels of the samples that are kept until they are drawn


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The arguments of `unimask.train` beside data and folder."""

    experiment: Experiment | TranslationExperiment
    task: Task
    initial: str | None
    lines: tuple[ChosenOptions, ...]  # what was chosen, as options, and why; empty where nothing was
    notes: tuple[str, ...]  # warnings before the training starts
    # what was read of the data, where they chose something; its samples are small
    checked: DataCheck | None = field(default=None, compare=False)


def plan(
    data: str | Path,
    *,
    task: Task | None = None,
    preset: str = "",
    initial: str = "",
    changes: Mapping[str, object] = MappingProxyType({}),
    epochs: int | float = 0,
    device: str = "auto",
    processes: int = 1,
    resumed: str | Path | None = None,
    progress: Progress = lambda split, done, total: None,
) -> Plan:
    """Return what to train on `data`; settings that are not given are chosen from the data and the machine.

    Args:
        data: as `unimask.train` takes it.
        task: by default that of the initial model, or what the data show: panoptic where there are things
            and stuff, instance where there are only things, semantic where there are none, detection where
            there are only boxes.
        preset: the name of an experiment, of which nothing is chosen. Without it, and without an initial
            model, the data choose.
        initial: "none", "imagenet" or a model; of a model the experiment has the architecture, and without a
            preset also its view of images, its losses and its thresholds. "" leaves it to the choice; with a
            preset it is "none".
        changes: settings by dotted paths, which are never chosen otherwise.
        epochs: how often each image is seen, in the place of `training.steps`; 0 leaves it to that.
        device: as for `unimask.train`; its free memory decides in how many passes a step is computed.
        processes: in how many the training will run.
        resumed: the folder of a run that will go on, whose settings are kept where no preset is named.
        progress: is called as the data are read.

    Raises:
        DataError: the data are missing, or cannot be used for a training.
        ConfigError: there is no such preset or setting, or what was asked contradicts itself.
        WeightsError: there is no such model, or it cannot be trained.
    """
    asked = _Asked(
        data=data,
        task=task,
        preset=preset,
        initial=initial,
        changes=changes,
        epochs=epochs,
        device=device,
        processes=processes,
        progress=progress,
    )
    if not 0 <= epochs < math.inf:
        raise ConfigError("epochs", f"must be a number of at least 0; got {epochs:g}")
    if epochs and "training.steps" in changes:
        raise ConfigError("epochs", "and training.steps both say how long to train; give one of them")
    if resumed is not None and not preset and (found := _of_run(Path(resumed), asked)):
        return found
    base = named(preset) if preset else None
    if isinstance(base, TranslationExperiment):
        if epochs:
            raise ConfigError("epochs", "count images; a translation has training.steps")
        return _plain(override(base, changes), "panoptic", asked.weights)
    if asked.weights is not None and is_model(asked.weights):
        return _from_model(asked, base, asked.weights)
    chosen = task or labelled_task(data, follow_outside=_follows(changes))
    if base is None:
        return _chosen(asked, chosen, None)
    return _plain(_lasting(override(base, changes), asked, chosen), chosen, asked.weights)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The arguments of `plan`."""

    data: str | Path
    task: Task | None
    preset: str
    initial: str
    changes: Mapping[str, object]
    epochs: int | float
    device: str
    processes: int
    progress: Progress

    @property
    def weights(self) -> str | None:
        """The initial weights as `unimask.train` takes them."""
        return None if self.initial in ("", "none") else self.initial


def _plain(experiment: Experiment | TranslationExperiment, task: Task, initial: str | None) -> Plan:
    return Plan(experiment=experiment, task=task, initial=initial, lines=(), notes=())


def _of_run(folder: Path, asked: _Asked) -> Plan | None:
    """Return the plan of the run in a folder, with some settings changed; None where there is no run."""
    said = described(folder)
    if not said:
        return None
    path, task = folder / DESCRIPTION_NAME, str(said.get("task"))
    try:
        if task == "sequences":
            found: Experiment | TranslationExperiment = translation_from_dict(said["experiment"])
        else:
            check_task(task)
            found = experiment_from_dict(said["experiment"])
    except ConfigError as error:
        raise ConfigError(
            f"{path}: {error.path}",
            f"{error.reason}; the run is of unimask {said.get('unimask', 'unknown')}, this is "
            f"{unimask.__version__}: resume it with its own version, or name another output folder",
        ) from None
    if isinstance(found, TranslationExperiment):
        return _plain(override(found, asked.changes), "panoptic", asked.weights)
    chosen = asked.task or cast(Task, task)
    return _plain(_lasting(override(found, asked.changes), asked, chosen), chosen, asked.weights)


def _lasting(experiment: Experiment, asked: _Asked, task: Task) -> Experiment:
    """Return the experiment with the steps of so many epochs; 0 leaves it as it is."""
    if not asked.epochs:
        return experiment
    images = len(open_items(asked.data, "train", task, follow_outside=experiment.data.follow_outside))
    return override(experiment, {"training.steps": steps_of(asked.epochs, images, experiment)})


def _from_model(asked: _Asked, base: Experiment | None, initial: str) -> Plan:
    """Return the experiment with the architecture of a model."""
    check_trainable(initial)
    if is_sequence_model(initial):
        raise ConfigError("initial", f"{initial} is a model of text; name its --preset")
    about = load_model_file(find_model(initial))
    task = asked.task or about.task
    known = tasks_of(about.experiment.model)
    if task not in known and not isinstance(about.experiment.model, DetrConfig):  # which can get a mask head
        raise ConfigError(
            "task", f"{initial} can learn {' and '.join(known)}, not {task}; take another model"
        )
    if base is not None:
        experiment = override(replace(base, model=about.experiment.model), asked.changes)
        found = _plain(_lasting(experiment, asked, task), task, initial)
    else:
        given = Base(
            experiment=about.experiment,
            flags=(),
            initial=initial,
            because="as asked" if asked.task else f"what {initial} was trained for",
            keep_data=True,
            weights="its architecture and weights, and of its class head the rows of the same names",
        )
        found = _chosen(asked, task, given)
    assert isinstance(found.experiment, Experiment)
    differing = model_differences(about.experiment.model, found.experiment.model)
    return replace(found, notes=tuple(f"{one}, as asked" for one in differing))


def _chosen(asked: _Asked, task: Task, given: Base | None) -> Plan:
    """Return the plan that is chosen from data and machine."""
    if asked.processes > 1:  # each would choose for itself, by the memory that it finds free
        raise ConfigError(
            "preset",
            "several processes need the same settings; start with one process and copy the lines of what was "
            "chosen, or name --preset",
        )
    said = check(asked.data, task, _as_it_is(asked, given), seconds=LOOKS, progress=asked.progress)
    said.refuse()
    computes = find_device(asked.device)
    here = Here(
        gpu=computes.type != "cpu",
        memory=free_memory(computes),
        no_imagenet="" if given or asked.initial else why_unavailable(EFFICIENTNET.name),
    )
    choice = choose(
        seen_in(said), here, asked.changes, given=given, initial=asked.initial, epochs=asked.epochs
    )
    wanted = None if choice.initial == "none" else choice.initial
    return Plan(
        experiment=choice.experiment,
        task=task,
        initial=wanted,
        lines=choice.lines,
        notes=(),
        checked=replace(said, samples=tuple(shrink(one, SHOWN_SIDE) for one in said.samples)),
    )


def _as_it_is(asked: _Asked, given: Base | None) -> Experiment:
    """Return an experiment that reads images as the training will, and keeps their size."""
    base = given.experiment if given else Experiment()
    changes = {path: value for path, value in asked.changes.items() if path in _OF_READING}
    return Experiment(data=replace(override(base, changes).data, resize=Scale(), view=Whole()))


_OF_READING = tuple(
    f"data.{name}" for name in ("background", "follow_outside", "orientation", "depth", "page", "channel")
)


def _follows(changes: Mapping[str, object]) -> bool:
    return changes.get("data.follow_outside") is True


def seen_in(said: DataCheck) -> Seen:
    """Return the statistics of a check for the choice; the check was made at the size of the files."""
    split = said.splits.get("train") or next(iter(said.splits.values()))
    things = zip(said.categories.names, said.categories.is_thing, strict=True)
    return Seen(
        task=said.task,
        images=split.images,
        size=split.image_size,
        things=tuple(name for name, thing in things if thing),
        side=split.sizes.get("50 %", 0.0) if said.task != "semantic" else 0.0,
        large_side=split.sizes.get("90 %", 0.0),
        most_objects=split.most_objects,
    )
