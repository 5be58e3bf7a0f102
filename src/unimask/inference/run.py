"""Image files in, files of results out: what `unimask predict` does."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from unimask.config.images import Task
from unimask.data.decisions import decide_for_run
from unimask.data.read import image_files, left_out_of
from unimask.data.video import is_video
from unimask.errors import ConfigError, DataError, UnimaskError, some_of
from unimask.inference.batches import Progress
from unimask.inference.resuming import (
    left_of,
    made_with,
    made_with_all,
    refuse_foreign,
    settings_digest,
    shared_again,
)
from unimask.inference.segmenter import Segmenter, check_threshold
from unimask.inference.stream import (
    AnyResult,
    Named,
    Work,
    are_large,
    segment_all,
    segment_large_images,
    segment_videos,
)
from unimask.inference.video import VideoResult
from unimask.processes import Team, find_team, gather, meeting
from unimask.results.folder import JOINED, join_parts
from unimask.results.ledger import ledger_of
from unimask.results.writing import check_formats, check_known

Keep = Callable[[Path, str, AnyResult], object]
"""Returns what is to be kept of a result, given the file of the image and the name of its files."""


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What came of predicting many image files, in all processes that shared them."""

    images: int  # that were asked for
    complete: int  # of them had their results before
    kept: tuple[Any, ...]  # of each image that was segmented, in the order of the images
    failed: tuple[str, ...]  # a message for each image that was not
    notes: tuple[str, ...]  # what was not read of them, or guessed, or may be missing: a sentence each
    errors: tuple[str, ...]  # what kept one of several processes from its share
    first_process: bool  # whether this process is the one that says so


@dataclass(kw_only=True)
class _Share:
    """What a process tells the others: plain data."""

    asked: list[str] = field(default_factory=list)  # the names of results that it is to make
    kept: dict[str, object] = field(default_factory=dict)  # by the name of the results
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)  # likewise: names of what is to be joined
    failed: list[str] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)  # sentence -> names of images
    error: str = ""  # what kept it from its share


def predict(
    segmenter: Segmenter | Callable[[str], Segmenter],
    images: Sequence[str | Path],
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
        segmenter: a segmenter; or a function that loads one, called with the device of this process.
        images: files of images and videos (`data.video.VIDEO_SUFFIXES`), and folders of images (without
            subfolders).
        output: the folder for the files, whose names are the stems of the images, or more of their paths
            where stems are equal.
        task: as `Segmenter.predict`.
        progress: is called in one process, with the images done and those of this process.
        keep: is called with file, name and result of each image after its files are written; what it returns
            comes back in `Predicted.kept`, plain data that processes can exchange. By default the name: all
            results of 10,000 images do not fit into memory.
        threshold: as `Segmenter.predict`.
        batch_size: the largest number of images or tiles that go through the model together.
        device: which device each of the processes takes its own of.
        formats: which files are written (`results.writing.FORMATS`); by default those of `Result.save`. What
            is one file for all images (csv, coco, label-studio) is joined at the end, in their order.
        pixel_size: how many micrometres a pixel is wide, for the columns of the table.
        every: of a video every n-th frame is segmented.
        overwrite: replace also files in `output` that are no results, or that somebody changed since.
        resume: leave out images whose results are complete in `output`, made by the same model with the same
            settings.

    Raises:
        DataError: nothing is given, a folder has no image, or `output` has files of the results' names that
            are no results; an image that fails is in `Predicted.failed`.
        ConfigError: the model does not have the task, the threshold is not from 0 to 1, or there is no such
            format, or it has no room for results of the task.
    """
    team, share = find_team(), _Share()
    named: list[Named] = []
    left: list[Named] = []
    work: Work | None = None
    settings, joined_before, numbers = "", False, count(1)
    said: tuple[str, ...] = ()

    def advance() -> None:
        if team.speaks:
            progress(next(numbers), len(left))

    with meeting(team):
        with _told(team, share):
            if every < 1 or (pixel_size is not None and not 0 < pixel_size < math.inf):
                raise ConfigError("every" if every < 1 else "pixel_size", "must be above 0")
            check_known(formats)
            if threshold is not None:
                check_threshold(threshold)
            files = list(dict.fromkeys(image_files(images)))
            if not any(file.exists() for file in files):
                raise DataError(files[0], f"no such file{_nor(files[1:])}")
            named = list(zip(files, output_names(files, reserved(formats)), strict=True))
            model = segmenter if isinstance(segmenter, Segmenter) else segmenter(team.device(device))
            chosen = task or model.task
            written = check_formats(formats, chosen)
            if not overwrite:
                refuse_foreign(Path(output), [name for _, name in named], written)
            reading, said = decide_for_run([one for one in files if not is_video(one)], model.reading)
            more = {"threshold": threshold, "formats": written, "pixel_size": pixel_size, "every": every}
            settings = settings_digest(model, chosen, reading=repr(reading), **more)
            work = Work(
                segmenter=model,
                task=chosen,
                threshold=threshold,
                batch_size=max(1, batch_size),
                output=Path(output),
                formats=tuple(formats),
                pixel_size=pixel_size,
                every=every,
                overwrite=overwrite,
                made_with=partial(made_with, settings),
                reading=reading,
                done=partial(_done, share, keep),
                advance=advance,
            )
            left = team.share(named)
            if resume:
                ledger = ledger_of(Path(output))
                whole = made_with_all(settings, named) if reserved(formats) else ""
                joined_before = ledger.is_complete(whole)
                left = [] if joined_before else left_of(left, ledger, settings)
        if resume:
            left = shared_again(team, named, left)
        share.asked.extend(name for _, name in left)
        if work is not None and not share.error:
            with _told(team, share):
                if team.speaks:
                    progress(0, len(left))
                _segment(work, left)
                share.failed.extend(map(str, work.failed))
                share.notes.update(work.notes)
        shares = gather(share)
    found = _together(named, shares, team.speaks, (*left_out_of(images), *said))
    if team.speaks and not found.errors and not joined_before and reserved(formats):
        parts: dict[str, tuple[str, ...]] = {name: (name,) for _, name in named}
        parts |= {name: () for one in shares for name in one.asked}
        parts |= {name: some for one in shares for name, some in one.parts.items()}
        join_parts(
            Path(output),
            [part for _, name in named for part in parts[name]],
            formats,
            overwrite=overwrite,
            made_with="" if found.failed else made_with_all(settings, named),
            keep=bool(found.failed),
        )
    return found


def _nor(files: Sequence[Path]) -> str:
    return f", nor {some_of(files, 3)}" if files else ""


@contextmanager
def _told(team: Team, share: _Share) -> Iterator[None]:
    """Keep an error inside for the first of several processes to tell; of a single one it is raised."""
    try:
        yield
    except UnimaskError as error:
        if team.size == 1:
            raise
        share.error = str(error)


def _together(
    named: Sequence[Named], shares: Sequence[_Share], speaks: bool, said: tuple[str, ...]
) -> Predicted:
    """Return what all processes have done."""
    kept = {name: one for share in shares for name, one in share.kept.items()}
    asked = {name for share in shares for name in share.asked}
    errors = tuple(dict.fromkeys(share.error for share in shares if share.error))
    return Predicted(
        images=len(named),
        complete=0 if errors else len(named) - len(asked),
        kept=tuple(kept[name] for _, name in named if name in kept),
        failed=tuple(message for share in shares for message in share.failed),
        notes=(*said, *_joined(share.notes for share in shares)),
        errors=errors,
        first_process=speaks,
    )


def _joined(notes: Iterable[Mapping[str, Sequence[str]]]) -> tuple[str, ...]:
    """The sentences of all processes, each with the images that it is about."""
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


def _done(share: _Share, keep: Keep, named: Named, result: AnyResult) -> None:
    """Keep what is to be kept of a result that has been written."""
    share.kept[named[1]] = keep(*named, result)
    share.parts[named[1]] = result.frames if isinstance(result, VideoResult) else (named[1],)


def _segment(work: Work, named: Sequence[Named]) -> None:
    """Segment and write images and videos: the small images first, which need no care."""
    videos = [one for one in named if is_video(one[0])]
    large = [one for one in named if one not in videos and are_large(work.segmenter, one[0])]
    segment_all(work, [one for one in named if one not in videos and one not in large])
    segment_large_images(work, large)
    segment_videos(work, videos)


def reserved(formats: Sequence[str]) -> frozenset[str]:
    """Return the names that files of the whole folder have, in some formats."""
    return frozenset(Path(file).stem for one in formats if one in JOINED for file in JOINED[one].files)


def output_names(files: Sequence[Path], taken_already: Collection[str] = ()) -> list[str]:
    """Return a name for each image's results: its stem, or more of its path where stems collide.

    Names that differ only in upper and lower case collide too: some file systems take them for the same.
    """
    names = [file.stem for file in files]
    for longer in (
        lambda file: f"{file.stem}_{file.suffix[1:]}",
        lambda file: "_".join([file.absolute().parent.name, file.stem, file.suffix[1:]]),
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
