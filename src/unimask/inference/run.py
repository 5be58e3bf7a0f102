"""Image files in, files of results out: what `unimask predict` does."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from unimask.config.tasks import Task
from unimask.data.decisions import decide_for_run
from unimask.data.read import image_files, left_out_of
from unimask.data.video import is_video
from unimask.errors import DataError, UnimaskError, instead_of, some_of
from unimask.inference.batches import Progress
from unimask.inference.job import Options, PredictionJob
from unimask.inference.loading import load
from unimask.inference.resuming import (
    Asked,
    left_of,
    made_with_all,
    refuse_foreign,
    settings_digest,
    shared_again,
)
from unimask.inference.segmenter import Segmenter
from unimask.inference.staging import parts_here, remote_images, segment_located, some_here
from unimask.inference.stream import Keep, Made
from unimask.processes import Team, find_team, gather, meeting
from unimask.remote import Location, Url, location
from unimask.results.folder import JOINED, join_parts
from unimask.results.ledger import ledger_of
from unimask.results.writing import check_formats


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """The outcome of predicting many image files, in all processes that shared them."""

    images: int  # that were asked for
    complete: int  # of them had complete results before
    kept: tuple[Any, ...]  # of each image that was segmented, in the order of the images
    failed: tuple[str, ...]  # a message for each image that was not
    notes: tuple[str, ...]  # sentences about what was not read, was guessed, or may be missing
    errors: tuple[str, ...]  # what kept one of several processes from its share
    first_process: bool  # whether this process is the one to report it


@dataclass(kw_only=True)
class _Share:
    """What a process sends to the others: plain data."""

    asked: list[str] = field(default_factory=list)  # the names of results that it is to make
    made: Made = field(default_factory=Made)
    error: str = ""  # what kept it from its share


def predict(
    segmenter: Segmenter | str | Path | Callable[[str], Segmenter],
    images: str | Path | Sequence[str | Path],
    output: str | Path,
    task: Task | None = None,
    progress: Progress = lambda done, total: None,
    *,
    keep: Keep = lambda file, name, result: name,
    threshold: float | None = None,
    batch_size: int = 4,
    device: str = "auto",
    formats: Sequence[str] = (),
    pixel_size: float | None = None,
    every: int = 1,
    overwrite: bool = False,
    resume: bool = False,
) -> Predicted:
    """Segment image files and videos, or find boxes in them, and write results into the folder `output`.

    Images stream: a few batches are in memory, however many there are. An image that cannot be read does not
    stop the others. Where a launcher (`torchrun`) started several processes, each takes its share of the
    images, and all of them return the same.

    Args:
        segmenter: a segmenter; what `load` takes; or a function that loads one, called with the device of
            this process.
        images: files of images and videos (`data.video.VIDEO_SUFFIXES`), and folders of images (without
            subfolders); paths, or addresses in object stores (`s3://bucket/photos`).
        output: the folder for the files, or its address in a store. Their names are the stems of the images,
            or more of their paths where stems are equal.
        task: as `Segmenter.predict`.
        progress: is called in one process, with the images done and those of this process.
        keep: is called with file, name and result of each image after its files are written; what it returns
            comes back in `Predicted.kept`, plain data that processes can exchange. By default the name: all
            results of 10,000 images do not fit into memory.
        threshold: as `Segmenter.predict`.
        batch_size: the largest number of images or tiles that go through the model together.
        device: the kind of device; each process takes one of its own.
        formats: which files are written (`results.writing.FORMATS`); by default those of `Result.save`. What
            is one file for all images (csv, coco, label-studio) is joined at the end, in their order.
        pixel_size: how many micrometres a pixel is wide, for the columns of the table.
        every: of a video, every n-th frame is segmented.
        overwrite: replace also files in `output` that are no results, or that somebody changed since.
        resume: leave out images whose results are complete in `output`, made by the same model with the same
            settings.

    Raises:
        DataError: nothing is given, a folder has no image, or `output` has files of the results' names that
            are no results; an image that fails is in `Predicted.failed`.
        ConfigError: the model does not have the task, a number is out of its range, or there is no such
            format, or it has no room for results of the task.
    """
    options = Options(
        task=task,
        threshold=threshold,
        batch_size=batch_size,
        formats=tuple(formats),
        pixel_size=pixel_size,
        every=every,
        overwrite=overwrite,
    )
    team, share = find_team(), _Share()
    place = location(output)
    named: list[Asked] = []
    left: list[Asked] = []
    model: Segmenter | None = None
    joined_before, numbers = False, count(1)
    said: tuple[str, ...] = ()

    def advance(name: str) -> None:
        if team.speaks:
            progress(next(numbers), len(left))

    with meeting(team):
        with _told(team, share):
            options.check()
            named, said = name_images([images] if isinstance(images, str | Path) else images, formats)
            model = _loaded(segmenter, team.device(device))
            job, more = plan_job(model, named, place, options)
            said += more
            left = team.share(named)
            if resume:
                ledger = ledger_of(place)
                whole = made_with_all(job.settings, named) if reserved(formats) else ""
                joined_before = ledger.is_complete(whole)
                left = [] if joined_before else left_of(left, ledger, job.settings)
        if resume:
            left = shared_again(team, named, left)
        share.asked.extend(name for _, name in left)
        if model is not None and not share.error:
            with _told(team, share):
                if team.speaks:
                    progress(0, len(left))
                segment_located(model, job, place, left, keep=keep, advance=advance, made=share.made)
        shares = gather(share)
    found = _together(named, shares, team.speaks, said)
    if team.speaks and not found.errors and not joined_before and reserved(formats):
        parts: dict[str, tuple[str, ...]] = {name: () for one in shares for name in one.asked}
        parts |= {name: some for one in shares for name, some in one.made.parts.items()}
        join(place, named, parts, job, failed=bool(found.failed))
    return found


def join(
    output: Location,
    named: Sequence[Asked],
    parts: Mapping[str, Sequence[str]],
    job: PredictionJob,
    *,
    failed: bool,
) -> None:
    """Make one file for all images where a format of the job is such a file, in the order of the images.

    `parts` has the names of what was made of each image that this run segmented; the others were complete
    before. Where some have failed, what was made of the others is kept, to go on.
    """
    with parts_here(output, job) as folder:
        join_parts(
            folder,
            [part for _, name in named for part in parts.get(name, (name,))],
            job.options.formats,
            overwrite=job.options.overwrite,
            made_with="" if failed else made_with_all(job.settings, named),
            keep=failed,
        )


def _loaded(segmenter: Segmenter | str | Path | Callable[[str], Segmenter], device: str) -> Segmenter:
    if isinstance(segmenter, Segmenter):
        return segmenter
    return load(segmenter, device) if isinstance(segmenter, str | Path) else segmenter(device)


def name_images(images: Sequence[str | Path], formats: Sequence[str]) -> tuple[list[Asked], tuple[str, ...]]:
    """Return each image, also of folders, with the name of its results; and sentences about what is left out.

    Raises:
        DataError: nothing is given, a folder has no image, or no image exists.
    """
    if not images:
        image_files(images)
    files: list[Location] = []
    said: list[str] = []
    for place in map(location, images):
        files += image_files([place]) if isinstance(place, Path) else remote_images(place, said)
        said += left_out_of([place]) if isinstance(place, Path) else []
    files = list(dict.fromkeys(files))
    if not any(isinstance(file, Url) or file.exists() for file in files):
        raise DataError(str(files[0]), f"no such file{_nor(files[1:])}{instead_of(str(files[0]))}")
    return list(zip(files, output_names(files, reserved(formats)), strict=True)), tuple(said)


def plan_job(
    segmenter: Segmenter, named: Sequence[Asked], output: Location, options: Options
) -> tuple[PredictionJob, tuple[str, ...]]:
    """Return what is to be done with every image, checked before the work, and sentences for the user.

    Raises:
        DataError, ConfigError: as `predict`.
    """
    task = options.task or segmenter.task
    formats = check_formats(options.formats, task)
    if not options.overwrite:
        refuse_foreign(output, [name for _, name in named], formats)
    with some_here([file for file, _ in named]) as files:
        reading, said = decide_for_run([file for file in files if not is_video(file)], segmenter.reading)
    settings = settings_digest(
        segmenter,
        task,
        reading=repr(reading),
        threshold=options.threshold,
        formats=formats,
        pixel_size=options.pixel_size,
        every=options.every,
    )
    return PredictionJob(options=options, task=task, reading=reading, settings=settings), said


def _nor(files: Sequence[Location]) -> str:
    return f", nor {some_of(files, 3)}" if files else ""


@contextmanager
def _told(team: Team, share: _Share) -> Iterator[None]:
    """Keep an error for the first of several processes to report; a single process raises it."""
    try:
        yield
    except UnimaskError as error:
        if team.size == 1:
            raise
        share.error = str(error)


def _together(
    named: Sequence[Asked], shares: Sequence[_Share], speaks: bool, said: tuple[str, ...]
) -> Predicted:
    """Return the outcome of all processes together."""
    kept = {name: one for share in shares for name, one in share.made.kept.items()}
    asked = {name for share in shares for name in share.asked}
    errors = tuple(dict.fromkeys(share.error for share in shares if share.error))
    return Predicted(
        images=len(named),
        complete=0 if errors else len(named) - len(asked),
        kept=tuple(kept[name] for _, name in named if name in kept),
        failed=tuple(message for share in shares for message in share.made.failed.values()),
        notes=(*said, *joined_notes(share.made.notes for share in shares)),
        errors=errors,
        first_process=speaks,
    )


def joined_notes(notes: Iterable[Mapping[str, Sequence[str]]]) -> tuple[str, ...]:
    """Return the sentences of all processes, each with the images that it is about."""
    about: dict[str, list[str]] = {}
    for one in notes:
        for sentence, names in one.items():
            about.setdefault(sentence, []).extend(names)
    return tuple(
        f"{some_of(dict.fromkeys(names), 3)}: {sentence}"
        if len(names) <= 3
        else f"{len(names)} images ({some_of(dict.fromkeys(names), 3)}): {sentence}"
        for sentence, names in about.items()
    )


def reserved(formats: Sequence[str]) -> frozenset[str]:
    """Return the names that are taken by the files for all images, in some formats."""
    return frozenset(Path(file).stem for one in formats if one in JOINED for file in JOINED[one].files)


def output_names(files: Sequence[Location], taken_already: Collection[str] = ()) -> list[str]:
    """Return a name for each image's results: its stem, or more of its path where stems collide.

    Names that differ only in upper and lower case collide too: some file systems take them for the same.
    """
    names = [file.stem for file in files]
    for longer in (
        lambda file: f"{file.stem}_{file.suffix[1:]}",
        lambda file: "_".join([_folder_name(file), file.stem, file.suffix[1:]]),
    ):
        folded = [name.casefold() for name in names]
        names = [
            longer(file) if folded.count(one) > 1 or one in taken_already else name
            for file, name, one in zip(files, names, folded, strict=True)
        ]
    taken: set[str] = set()
    for index, name in enumerate(names):
        number = 2
        while names[index].casefold() in taken:
            names[index] = f"{name}_{number}"
            number += 1
        taken.add(names[index].casefold())
    return names


def _folder_name(file: Location) -> str:
    return file.folder_name if isinstance(file, Url) else file.absolute().parent.name
