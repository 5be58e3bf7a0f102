"""A row per image of a run: its status, as a small table of plain values."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from unimask.errors import DataError, needs_extra
from unimask.inference.job import PredictionJob
from unimask.inference.resuming import Asked
from unimask.inference.staging import folder_for
from unimask.inference.stream import Made
from unimask.remote import Location
from unimask.results.ledger import result_files

if TYPE_CHECKING:
    from pyarrow import Schema, Table

ROWS_NAME = "images.parquet"
"""The file of the output folder with a row per image."""

SEGMENTED, FAILED, COMPLETE, LOST = "segmented", "failed", "complete before", "lost"
"""The status of an image; lost: each actor that worked on it died."""

DIED = (
    "the process that was to segment it died each time, also with this image alone (too large for the "
    "memory?); --resume tries it again"
)
_GROUP = 10_000  # rows that are written at once


def result_schema() -> "Schema":
    """Return the columns of results; `parts` are the names of files that are to be joined."""
    with needs_extra("ray", ROWS_NAME):
        import pyarrow
    return pyarrow.schema(
        {
            "status": pyarrow.string(),
            "segments": pyarrow.int64(),
            "seconds": pyarrow.float64(),
            "error": pyarrow.string(),
            "notes": pyarrow.list_(pyarrow.string()),
            "parts": pyarrow.list_(pyarrow.string()),
        }
    )


def named_table(named: Sequence[Asked]) -> "Table":
    """Return images and the names of their results as a table; bytes that are no Unicode are escaped."""
    import pyarrow

    texts = {"path": [_text(file) for file, _ in named], "name": [_text(name) for _, name in named]}
    return pyarrow.table(texts, schema=pyarrow.schema(dict.fromkeys(texts, pyarrow.string())))


def _text(thing: object) -> str:
    return str(thing).encode("utf-8", "backslashreplace").decode()


def with_status(rows: "Table", status: str, error: str | None = None) -> "Table":
    """Return the rows with a status, and their other columns of results empty."""
    return _with(
        rows, [{"status": status, "error": error, "notes": [], "parts": []} for _ in range(len(rows))]
    )


def with_results(
    rows: "Table", named: Sequence[Asked], made: Made, seconds: Mapping[str, float], unexpected: str
) -> "Table":
    """Return the rows, one for each of the images, with their results.

    An image that was neither segmented nor failed was complete before, unless something `unexpected`
    happened, which is then its error.
    """
    notes: dict[str, list[str]] = {}
    for sentence, about in made.notes.items():
        for image in about:
            notes.setdefault(image, []).append(sentence)
    found = []
    for file, name in named:
        error = made.failed.get(name, "")
        if not error and name not in made.kept and unexpected:
            error = f"{file}: {unexpected}"
        found.append(
            {
                "status": FAILED if error else SEGMENTED if name in made.kept else COMPLETE,
                "segments": made.kept.get(name),
                "seconds": seconds.get(name),
                "error": error or None,
                "notes": notes.get(file.name, []),
                "parts": list(made.parts.get(name, ())),
            }
        )
    return _with(rows, found)


def _with(rows: "Table", found: Sequence[Mapping[str, object]]) -> "Table":
    import pyarrow

    table = pyarrow.Table.from_pylist(list(found), schema=result_schema())
    for column in table.schema.names:
        if column in rows.schema.names:
            rows = rows.drop_columns([column])
        rows = rows.append_column(table.schema.field(column), table.column(column))
    return rows


@dataclass(kw_only=True)
class Tally:
    """What the rows so far add up to."""

    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of each image that has a row
    failed: list[str] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)  # sentence -> names of images

    def add(self, rows: "Table") -> None:
        """Count the rows of some images."""
        for row in rows.select(["path", "name", "error", "notes", "parts"]).to_pylist():
            self.parts[row["name"]] = tuple(row["parts"])
            if row["error"]:
                self.failed.append(row["error"])
            for sentence in row["notes"]:
                self.notes.setdefault(sentence, []).append(Path(row["path"]).name)


@contextmanager
def rows_file(output: Location, job: PredictionJob) -> Iterator[Callable[["Table"], None]]:
    """Yield a function that adds rows to `images.parquet` in a folder, which is complete when it appears.

    Raises:
        DataError: there is such a file that was not written here, and `overwrite` is off; or it cannot be
            written.
    """
    import pyarrow
    from pyarrow import parquet

    waiting: list[Table] = []
    schema = pyarrow.schema(
        [
            pyarrow.field("path", pyarrow.string()),
            pyarrow.field("name", pyarrow.string()),
            *list(result_schema())[:-1],
        ]
    )
    try:
        with (
            folder_for(output, job) as folder,
            result_files(folder, [ROWS_NAME], overwrite=job.options.overwrite) as (temporary,),
            parquet.ParquetWriter(temporary, schema) as file,
        ):

            def write() -> None:
                if waiting:
                    file.write_table(pyarrow.concat_tables(waiting))
                    waiting.clear()

            def add(rows: "Table") -> None:
                waiting.append(rows.select(schema.names).cast(schema))
                if sum(map(len, waiting)) >= _GROUP:
                    write()

            yield add
            write()
    except OSError as error:
        raise DataError(str(output), f"results cannot be written here ({error.strerror or error})") from None
