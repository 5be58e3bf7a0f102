"""Image files in, files of results out: what `unimask predict` does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from unimask.config.images import Task
from unimask.data.read import image_files
from unimask.errors import UnimaskError
from unimask.inference.evaluation import Progress
from unimask.inference.segmenter import Segmenter
from unimask.inference.stream import AnyResult, Named, Work, are_large, segment_all, segment_large_images
from unimask.processes import Team, find_team, gather, meeting

Keep = Callable[[Path, str, AnyResult], object]
"""Returns what is to be kept of a result, given the file of the image and the name of its files."""


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What came of predicting many image files, in all processes that shared them."""

    images: int  # that were asked for
    kept: tuple[Any, ...]  # of each image that was segmented, in the order of the images
    failed: tuple[str, ...]  # a message for each image that was not
    errors: tuple[str, ...]  # what kept one of several processes from its share
    first_process: bool  # whether this process is the one that says so


@dataclass(frozen=True, kw_only=True)
class _Share:
    """What a process tells the others: plain data."""

    kept: dict[str, object] = field(default_factory=dict)  # by the name of the results
    failed: tuple[str, ...] = ()
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
) -> Predicted:
    """Segment image files, or find boxes in them, and write the results of each into the folder `output`.

    Images stream: a few batches are in memory, however many there are. An image that cannot be read does not
    stop the others. Where a launcher (`torchrun`) started several processes, each takes its share of the
    images, and all of them return the same.

    Args:
        segmenter: a segmenter; or a function that loads one, called with the device of this process.
        images: files, and folders of images (without subfolders).
        output: the folder for the files of `Result.save`, whose names are the stems of the images, or more
            of their paths where stems are equal.
        task: as `Segmenter.predict`.
        progress: is called in one process, with the images done and those of this process.
        keep: is called with file, name and result of each image after its files are written; what it returns
            comes back in `Predicted.kept`, plain data that processes can exchange. By default the name: all
            results of 10,000 images do not fit into memory.
        threshold: as `Segmenter.predict`.
        batch_size: the largest number of images or tiles that go through the model together.
        device: which device each of the processes takes its own of.

    Raises:
        DataError: nothing is given, or a folder has no image; an image that fails is in `Predicted.failed`.
        ConfigError: the model does not have the task, or the threshold is not from 0 to 1.
    """
    team = find_team()
    named: list[Named] = []
    with meeting(team):
        try:
            files = list(dict.fromkeys(image_files(images)))
            named = list(zip(files, output_names(files), strict=True))
            model = segmenter if isinstance(segmenter, Segmenter) else segmenter(team.device(device))
            share = _predict_share(
                model,
                team,
                named,
                Path(output),
                task or model.task,
                progress,
                keep,
                threshold=threshold,
                batch_size=max(1, batch_size),
            )
        except UnimaskError as error:
            if team.size == 1:
                raise
            share = _Share(error=str(error))
        shares = gather(share)
    by_name = {name: one for share in shares for name, one in share.kept.items()}
    return Predicted(
        images=len(named),
        kept=tuple(by_name[name] for _, name in named if name in by_name),
        failed=tuple(message for share in shares for message in share.failed),
        errors=tuple(dict.fromkeys(share.error for share in shares if share.error)),
        first_process=team.speaks,
    )


def _predict_share(
    segmenter: Segmenter,
    team: Team,
    named: Sequence[Named],
    output: Path,
    task: Task,
    progress: Progress,
    keep: Keep,
    *,
    threshold: float | None,
    batch_size: int,
) -> _Share:
    """Segment and write the images of this process."""
    mine = team.share(named)
    kept: dict[str, object] = {}
    numbers = count(1)  # of images done, in whichever thread

    def done(one: Named, result: AnyResult) -> None:
        kept[one[1]] = keep(*one, result)

    def advance() -> None:
        if team.speaks:
            progress(next(numbers), len(mine))

    if team.speaks:
        progress(0, len(mine))
    work = Work(
        segmenter=segmenter,
        task=task,
        threshold=threshold,
        batch_size=batch_size,
        output=output,
        done=done,
        advance=advance,
    )
    large = [one for one in mine if are_large(segmenter, one[0])]
    segment_all(work, [one for one in mine if one not in large])
    segment_large_images(work, large)
    return _Share(kept=kept, failed=tuple(map(str, work.failed)))


def output_names(files: Sequence[Path]) -> list[str]:
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
            longer(file) if folded.count(one) > 1 else name
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
