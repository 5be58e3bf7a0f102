"""Write any data set as shards (`formats/shards.py`): few large files in the place of many small ones."""

import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from unimask.config.tasks import Task
from unimask.data.category_tables import categories_to_json
from unimask.data.formats.shards import (
    SUMMARY_NAME,
    Kind,
    head_to_json,
    index_of,
    truth_to_bytes,
)
from unimask.data.items import Item, ItemDataset
from unimask.data.open import labelled_task, open_splits
from unimask.data.read import read_image
from unimask.data.reading import Reading
from unimask.data.sources import SPLITS, of_other_names
from unimask.errors import DataError
from unimask.files import clean_up, complete_files, is_temporary, json_text, read_bytes, write_json
from unimask.structures import Detections, Sample

MEGABYTES = 256  # of a shard, about


@dataclass(frozen=True, kw_only=True)
class WrittenShards:
    """What was written."""

    output: Path
    task: Task
    images: dict[str, int]  # by split
    shards: dict[str, list[str]]  # names of files, by split
    left_out: tuple[str, ...]  # a sentence for each image that cannot be read


def write_shards(
    data: str | Path,
    output: str | Path,
    task: Task | None = None,
    *,
    megabytes: int = MEGABYTES,
    follow_outside: bool = False,
    progress: Callable[[str, int, int], None] = lambda split, done, total: None,
) -> WrittenShards:
    """Write all splits of a data set as shards into a folder; training gives the same on both.

    Image files are copied unchanged where they can be read on their own, others become PNG. Images that
    cannot be read are left out and reported. After an interruption the same call starts again.

    Args:
        data: what `unimask.train` takes.
        output: a folder that is not there yet, or empty.
        task: whose ground truth is kept; by default the one that the data were labelled for. Masks also serve
            the other tasks that can be learned from them.
        megabytes: of a shard, about; a shard holds at least one image.
        follow_outside: as for `unimask.train`.
        progress: is called with the split, how many of its images are done, and how many there are.

    Raises:
        DataError: the data cannot be used, none of the images of a split can be read, or the folder holds
            other files or cannot be written to.
    """
    folder = Path(output)
    if megabytes < 1:
        raise DataError("megabytes", f"a shard has at least 1; got {megabytes}")
    task = task or labelled_task(data, follow_outside=follow_outside)
    splits = open_splits(data, task, follow_outside=follow_outside)
    left_out = list(of_other_names(splits))
    splits = {name: opener for name, opener in splits.items() if name in (*SPLITS, "all")}
    if not splits:
        raise DataError(data, left_out[0])
    _make_empty(folder)
    written = WrittenShards(output=folder, task=task, images={}, shards={}, left_out=())
    try:
        for split, opener in splits.items():
            writer = _SplitWriter(folder, split, opener(), megabytes * 2**20, left_out)
            written.shards[split] = writer.write(progress)
            written.images[split] = writer.count
            if not writer.count:
                raise DataError(
                    data, f"none of its images of the split {split!r} can be read: {left_out[-1]}"
                )
        write_json(folder / SUMMARY_NAME, {"shards": written.shards, "left_out": left_out})
    except OSError as error:
        raise DataError(folder, f"cannot be written ({error}); make room for it, then start again") from None
    return WrittenShards(
        output=folder, task=task, images=written.images, shards=written.shards, left_out=tuple(left_out)
    )


def _make_empty(folder: Path) -> None:
    """Make the folder, and remove incomplete shards from it."""
    if folder.exists() and not folder.is_dir():
        raise DataError(folder, "is a file; name a folder for the shards")
    clean_up(folder)
    held = [path for path in folder.glob("*") if not is_temporary(path.name)]
    begun = {path for path in held if path.suffix == ".tar" and index_of(path).is_file()}
    begun |= {index_of(path) for path in begun}
    if set(held) - begun:
        raise DataError(folder, "is not empty; name another folder for the shards")
    for path in begun:
        path.unlink()


class _SplitWriter:
    """Writes the samples of a split into shards."""

    def __init__(
        self, folder: Path, split: str, dataset: ItemDataset, most: int, left_out: list[str]
    ) -> None:
        self.folder, self.split, self.dataset, self.most = folder, split, dataset, most
        self.left_out = left_out
        self.count = 0

    def write(self, progress: Callable[[str, int, int], None]) -> list[str]:
        """Write all of them; return the names of the shards."""
        names: list[str] = []
        samples = self._samples(progress)
        first = next(samples, None)
        while first is not None:
            shard = self.folder / f"{self.split}-{len(names):04d}.tar"
            names.append(shard.name)
            with complete_files([shard, index_of(shard)]) as (archive, index):
                first = self._write_shard(archive, index, first, samples)
        return names

    def _samples(self, progress: Callable[[str, int, int], None]) -> Iterator[tuple[Item, Sample]]:
        for done, item in enumerate(self.dataset.items, 1):
            try:
                yield item, item.read(self.dataset.decided.reading)
            except DataError as error:
                self.left_out.append(str(error))
            progress(self.split, done, len(self.dataset))

    def _write_shard(
        self,
        archive: Path,
        index: Path,
        first: tuple[Item, Sample],
        others: Iterable[tuple[Item, Sample]],
    ) -> tuple[Item, Sample] | None:
        """Fill a shard; return the first sample of the next one."""
        reading = self.dataset.decided.reading
        entries: list[tuple[str, int, int]] = []
        kind: Kind = "boxes" if isinstance(first[1].truth, Detections) else "segments"
        following: tuple[Item, Sample] | None = first
        with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as tar:
            while following is not None and (not entries or tar.offset < self.most):
                start = tar.offset
                for ending, content in _contents(*following, reading).items():
                    about = tarfile.TarInfo(f"{self.count:09d}.{ending}")
                    about.size = len(content)
                    tar.addfile(about, io.BytesIO(content))
                entries.append((following[1].image_id, start, tar.offset - start))
                self.count += 1
                following = next(iter(others), None)
        head = head_to_json(kind, categories_to_json(self.dataset.categories), reading)
        write_index = {**head, "samples": entries}
        index.write_text(json_text(write_index, None) + "\n", encoding="utf-8", newline="\n")
        return following


def _contents(item: Item, sample: Sample, reading: Reading) -> dict[str, bytes]:
    """Return the files of a sample by the ending of their names."""
    ending, image = _image(item, sample.image, reading)
    about = json_text({"image_id": sample.image_id}, None).encode()
    return {"json": about, "npz": truth_to_bytes(sample.truth), ending: image}


def _image(item: Item, pixels: Tensor, reading: Reading) -> tuple[str, bytes]:
    """Return the file of an image, if it gives the same pixels when it is read; else a PNG of them."""
    for path in item.files[:1]:
        content = read_bytes(path)
        try:
            if torch.equal(read_image(content, reading), pixels):
                return path.suffix.lower().lstrip(".") or "image", content
        except DataError:  # more than the file is read
            continue
    stream = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(stream, format="PNG")
    return "png", stream.getvalue()
