"""Images from object stores and results into them: a few at a time, by way of a temporary folder.

Only files of this machine are segmented, so all formats, large images and videos work. While some images are
segmented, the next ones are fetched and the results of the previous ones are copied away.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from unimask.data.decisions import EIGHT_BIT_SUFFIXES, MOST_DECODED, spread
from unimask.data.read import IMAGE_SUFFIXES, RESULT_ENDINGS, left_out_among
from unimask.data.video import is_video
from unimask.errors import DataError, UnimaskError
from unimask.inference.batches import ahead
from unimask.inference.job import PredictionJob
from unimask.inference.resuming import Asked, Named
from unimask.inference.segmenter import Segmenter
from unimask.inference.stream import Keep, Made, Work, segment_files
from unimask.remote import Location, Url, at_once, discard, fetch, files_in, put
from unimask.results.folder import PARTS
from unimask.results.ledger import LEDGER_NAME, REMOTE_NAME, foreign_files, ledger_of
from unimask.threads import side_threads

PART = 32
"""Images that are fetched, and whose results are copied away, together."""


@dataclass(frozen=True, kw_only=True)
class _Fetched:
    """Images on this machine."""

    folder: TemporaryDirectory[str]
    named: list[Named]
    addresses: dict[Path, str]  # where each comes from, as it was given
    failed: dict[str, str]  # the message of each that could not be fetched, by the name of its results


def segment_located(
    segmenter: Segmenter,
    job: PredictionJob,
    output: Location,
    asked: Sequence[Asked],
    *,
    keep: Keep,
    advance: Callable[[str], object],
    made: Made,
) -> None:
    """Segment images and videos of this machine or of stores, and write the results into `output`.

    Their outcome is added to `made` once their files are in place.
    """
    here = [(file, name) for file, name in asked if isinstance(file, Path)]
    if isinstance(output, Path) and len(here) == len(asked):
        work = Work(segmenter=segmenter, job=job, folder=output, keep=keep, advance=advance, made=made)
        segment_files(work, here)
        return
    parts = [asked[start : start + PART] for start in range(0, len(asked), PART)]
    bringing: Future[None] | None = None
    with side_threads(1) as bringer:
        for _, future in ahead(_fetch, parts, 1):
            fetched = future.result()
            work = _work_on(fetched, segmenter, job, output, keep, advance)
            segment_files(work, fetched.named)
            if bringing is not None:
                bringing.result()
            bringing = bringer.submit(_bring, work, fetched, output, made)
        if bringing is not None:
            bringing.result()


def _fetch(asked: Sequence[Asked]) -> _Fetched:
    """Copy what is in stores into a temporary folder, each file under its own name."""
    folder = TemporaryDirectory(prefix="unimask-")
    fetched = _Fetched(folder=folder, named=[], addresses={}, failed={})

    def have(numbered: tuple[int, Asked]) -> tuple[Asked, Path, str]:
        number, (file, name) = numbered
        if isinstance(file, Path):
            return (file, name), file, ""
        path = Path(folder.name) / "images" / str(number) / file.name
        try:
            path.parent.mkdir(parents=True)
            fetch(file, path)
        except UnimaskError as error:
            return (file, name), path, str(error)
        return (file, name), path, ""

    for (file, name), path, error in at_once(have, list(enumerate(asked))):
        if error:
            fetched.failed[name] = error
        else:
            fetched.named.append((path, name))
            fetched.addresses[path] = str(file)
    return fetched


def _work_on(
    fetched: _Fetched,
    segmenter: Segmenter,
    job: PredictionJob,
    output: Location,
    keep: Keep,
    advance: Callable[[str], object],
) -> Work:
    for name in fetched.failed:
        advance(name)
    return Work(
        segmenter=segmenter,
        job=job,
        folder=output if isinstance(output, Path) else Path(fetched.folder.name) / "results",
        keep=keep,
        advance=advance,
        address=lambda path: fetched.addresses.get(path, str(path)),
    )


def _bring(work: Work, fetched: _Fetched, output: Location, made: Made) -> None:
    """Copy results to their place, and add the outcome of their images to `made`."""
    new = work.made
    for name, message in new.failed.items():
        for path, address in fetched.addresses.items():
            message = message.replace(str(path), address)
        new.failed[name] = message
    new.failed.update(fetched.failed)
    try:
        if isinstance(output, Url):
            for name, error in _upload(work.folder, output, [name for _, name in fetched.named], work.job):
                new.kept.pop(name, None)
                new.parts.pop(name, None)
                new.failed[name] = error
    finally:
        fetched.folder.cleanup()
    made.kept.update(new.kept)
    made.parts.update(new.parts)
    made.failed.update(new.failed)
    for sentence, files in new.notes.items():
        made.notes.setdefault(sentence, []).extend(files)


def _upload(folder: Path, output: Url, names: Sequence[str], job: PredictionJob) -> Iterator[tuple[str, str]]:
    """Copy results into a store: the part of the ledger that knows them first, then their files.

    Yield the name and a message for each image whose results may not go there.
    """
    ledger = folder / LEDGER_NAME
    lines = ledger.read_text("ascii").split("\n") if ledger.is_file() else []
    results = {line: list(json.loads(line)["files"]) for line in lines if line}
    known = ledger_of(output)
    for line, files in list(results.items()):
        foreign = [] if job.options.overwrite else [file for file in files if known.is_foreign(file)]
        if foreign:
            del results[line]
            yield _image_of(files, names), str(foreign_files(output, foreign))
    if results:
        ledger.write_text("\n".join([*results, ""]), "ascii")
        put(ledger, output.inside(f"{REMOTE_NAME}/{uuid4().hex}.jsonl"))
        files = list(dict.fromkeys(file for files in results.values() for file in files))
        at_once(lambda file: put(folder / file, output.inside(file)), files)


def _image_of(files: Sequence[str], names: Sequence[str]) -> str:
    """Return the name of the results that files belong to: the longest that they begin with."""
    file = Path(files[0]).name
    return max((name for name in names if file.startswith(name)), key=len, default=file)


@contextmanager
def parts_here(output: Location, job: PredictionJob) -> Iterator[Path]:
    """Yield a folder of this machine with the parts to be joined; new files in it are copied to `output`.

    Where the parts are removed there, they are removed from the store as well.

    Raises:
        DataError: the store has other files of these names.
    """
    if isinstance(output, Path):
        yield output
        return
    with folder_for(output, job) as folder:
        (folder / PARTS).mkdir()
        parts = files_in(output.inside(PARTS)) or []
        at_once(lambda part: fetch(part, folder / PARTS / part.name), parts)
        yield folder
        kept = (folder / PARTS).exists()
    if not kept:
        discard(parts)


@contextmanager
def folder_for(output: Location, job: PredictionJob) -> Iterator[Path]:
    """Yield the folder of the results, or for a store a temporary one whose results are copied there.

    Raises:
        DataError: the store has other files of these names.
    """
    if isinstance(output, Path):
        yield output
        return
    with TemporaryDirectory(prefix="unimask-") as temporary:
        yield Path(temporary)
        for name, message in _upload(Path(temporary), output, [], job):
            raise DataError(str(output.inside(name)), message.partition(": ")[2])


def remote_images(place: Url, said: list[str]) -> list[Url]:
    """Return the images in a folder of a store, or the address of a single file, as `data.read.image_files`.

    Raises:
        DataError: the folder has no image, or the store cannot be reached.
    """
    files = files_in(place)
    if files is None:
        return [place]
    visible = [file for file in files if not file.name.startswith(".")]
    images = [
        file
        for file in visible
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.endswith(RESULT_ENDINGS)
    ]
    if not images:
        raise DataError(
            str(place),
            f"no images in this folder (looked for {' '.join(sorted(IMAGE_SUFFIXES))}, not in subfolders)",
        )
    if others := left_out_among([file.name for file in visible], {file.name for file in images}):
        said.append(f"{place}: {others}")
    return images


@contextmanager
def some_here(files: Sequence[Location]) -> Iterator[list[Path]]:
    """Yield the files that are on this machine, and copies of some of the others, spread over them.

    Of those in stores, only files that may have more than 8 bits are copied. Files that cannot be copied are
    left out here: the error is reported when they are segmented.
    """
    here = [file for file in files if isinstance(file, Path)]
    there = [
        file for file in files if isinstance(file, Url) and file.suffix.lower() not in EIGHT_BIT_SUFFIXES
    ]
    there = [file for file in there if not is_video(Path(file.name))]
    with TemporaryDirectory(prefix="unimask-") as folder:
        chosen = list(enumerate(there[index] for index in spread(len(there), MOST_DECODED)))

        def have(numbered: tuple[int, Url]) -> list[Path]:
            number, file = numbered
            path = Path(folder) / f"{number}{file.suffix}"
            with suppress(UnimaskError):
                fetch(file, path)
                return [path]
            return []

        yield [*here, *(path for one in at_once(have, chosen) for path in one)]
