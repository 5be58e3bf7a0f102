"""Training for users: from an experiment and data to a folder with everything about the run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from unimask.checkpoints.text import VOCABULARY_NAME
from unimask.config.images import Experiment
from unimask.config.tasks import Task, check_task
from unimask.config.text import TranslationExperiment
from unimask.data.check import DataCheck
from unimask.data.reading import with_reading
from unimask.errors import ConfigError
from unimask.structures import Dataset
from unimask.training.checks import check_model, check_view
from unimask.training.engine import Machines
from unimask.training.image_data import open_task
from unimask.training.image_job import MaskJob
from unimask.training.job import AnyJob
from unimask.training.loggers import Logger, check_loggers
from unimask.training.loop import run_job
from unimask.training.progress import Reporter
from unimask.training.result import TrainingResult
from unimask.training.text_data import open_sequences
from unimask.training.text_job import SequenceJob


def train(
    experiment: Experiment | TranslationExperiment,
    data: str | Path | Dataset,
    output: str | Path,
    *,
    validation: Dataset | None = None,
    task: Task = "panoptic",
    resume: bool = False,
    initial: str | Path | None = None,
    renamed: Mapping[str, str] = MappingProxyType({}),
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    reporter: Reporter | None = None,
    licence: str = "not stated",
    loggers: Sequence[str | Logger] = (),
    checked: DataCheck | None = None,
) -> TrainingResult:
    """Train a model and write everything about it into the folder `output` (see `training/run_folder.py`).

    Args:
        experiment: the settings; `unimask.presets` has named ones, `unimask.override` changes some of them.
        data: what `unimask train --data` takes: a folder or file of labelled images, or `shapes`; for a
            `TranslationExperiment` a folder of line pairs, or `glyphs`. Or your own `Dataset`.
        validation: the `Dataset` to measure on, where `data` is one; without it about one sample in ten is
            held out of the training.
        output: a folder for the run, the same one for all processes.
        task: what the model learns to find in images; a translation has no task.
        resume: go on with the run in `output` after a stop or a kill at any moment, exactly as if it had
            never stopped; where there is nothing yet, start. The experiment must be the same but for the
            length (`training.steps`; the schedule then stretches from there on), bookkeeping and
            `training.accumulate`.
        initial: where weights start. None is random, `imagenet` takes the backbone's weights from ImageNet,
            anything else is a model to fine-tune: a folder, a run, a model of the package or an id of the
            Hugging Face hub. It must have the architecture of the experiment, which `unimask.plan` takes from
            it. Rows of the class head are taken over by the name of the category.
        renamed: names of categories of that model -> those of the data that start with their rows.
        device: auto, cpu, cuda, cuda:1 or mps.
        devices: processes on this machine, each with a device of its own. Each process runs the calling
            script (the engine starts those of this machine; `torchrun` or a cluster's scheduler can).
        nodes: machines.
        reporter: receives the progress; by default a progress bar on a terminal, lines elsewhere.
        licence: licence of the weights, which is kept with them.
        checked: what `unimask.plan` or `unimask.check` read of the data; they are not checked again then.
        loggers: where to log besides the folder and TensorBoard: `wandb`, `mlflow`, or your own `Logger`.

    In a translation `training.batch_size` counts tokens: a pass holds so many, of source or target, whichever
    are more. While it trains, BLEU is measured with greedy decoding, which is faster than a beam and a little
    lower.

    A run that fails before its first step leaves no folder behind; an error after that leaves a checkpoint.
    Ctrl-C, or for a single process SIGTERM, ends the run after the step with a checkpoint; twice, at once.

    Raises:
        DataError: the data or the run folder cannot be used as asked.
        ConfigError: a setting is impossible, or differs from that of the run to resume.
        MissingPackageError: the package of a logger is not installed.
        WeightsError: the initial weights do not fit.
        TrainingError: too many steps in a row were not finite.
    """
    check_loggers(loggers)
    if isinstance(experiment, Experiment):
        check_task(task)
        check_model(experiment.model, task)
        check_view(experiment.data.view, task)

    def open_job() -> AnyJob:
        if isinstance(experiment, Experiment):
            opened = open_task(data, task, experiment, validation)
            settled = with_reading(experiment, opened.reading)
            known = checked if checked and checked.is_of(opened.data, task, experiment.data) else None
            return MaskJob(
                experiment=settled,
                task=opened,
                initial=initial,
                renamed=renamed,
                licence=licence,
                read=known,
            )
        if not isinstance(data, str | Path):
            raise ConfigError("data", "a translation is trained on a folder of line pairs, not on a Dataset")
        vocabulary = Path(output) / VOCABULARY_NAME if resume else None
        pairs = open_sequences(data, experiment, vocabulary)
        return SequenceJob(experiment=experiment, data=pairs, initial=initial, licence=licence)

    machines = Machines(device=device, devices=devices, nodes=nodes)
    return run_job(
        open_job, experiment.training, machines, output, resume=resume, reporter=reporter, loggers=loggers
    )
