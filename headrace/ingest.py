"""Source ▶ staged batch ▶ raw table.

A source is read once for all its windows that are not landed yet; each window
with rows becomes one staged Parquet file, the batch, which is validated as it
lies and then landed in one commit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from headrace.errors import BatchRejected, MissingColumns, SourceUnreadable
from headrace.lake import MONDAY, Lake, Window, duckdb_connection, windows

if TYPE_CHECKING:
    from pathlib import Path

    import duckdb

    from headrace.pipeline import Source
    from headrace.validation import Validation

READERS = {
    ".csv": "read_csv('{}', nullstr = ['NA', ''])",
    ".json": "read_json('{}', format = 'newline_delimited')",
    ".jsonl": "read_json('{}', format = 'newline_delimited')",
    ".parquet": "read_parquet('{}')",
}


@dataclass(frozen=True)
class Batch:
    """The rows of one source in one window, staged as a Parquet file."""

    source: str
    table: str
    window: Window
    file: Path
    rows: int

    def __str__(self) -> str:
        return f"{self.source} {self.window.start:%Y-%m-%d}"


def stage(source: Source, start: datetime, as_of: datetime, lake: Lake, directory: Path) -> list[Batch]:
    """Write the rows of every window that ended by ``as_of`` (UTC) and is not landed yet as a batch.

    Windows without rows give no batch. Staging again replaces the files.

    Raises:
        SourceUnreadable: A file is missing or cannot be parsed.
        MissingColumns: The files lack a column that the declaration names.
    """
    due = windows(start, as_of, source.window)
    landed = lake.table(source.table).held([str(window) for window in due])
    folder = directory / source.name
    folder.mkdir(parents=True, exist_ok=True)
    files = {window: folder / f"{window.start:%Y%m%dT%H%M}.parquet" for window in due}
    for window in due:  # left by a run that was killed between landing and tidying up
        if str(window) in landed:
            files[window].unlink(missing_ok=True)
    pending = [window for window in due if str(window) not in landed]
    if not pending:
        return []
    con = _rows(source, Window(pending[0].start, pending[-1].end))
    counts = dict(con.sql(f"SELECT {_slot(source)} AS slot, count(*) FROM batch GROUP BY slot").fetchall())
    batches = []
    for window in pending:
        slot = (window.start - MONDAY) // source.window
        if rows := counts.get(slot):
            # DuckDB writes beside the file and renames, so that a file is always a whole batch.
            rows_of_window = f"FROM batch WHERE {_slot(source)} = {slot} ORDER BY ALL"
            con.execute(f"COPY ({rows_of_window}) TO '{files[window]}' (USE_TMP_FILE)")
            batches.append(Batch(source.name, source.table, window, files[window], rows))
    return batches


def check(batch: Batch, suite: str) -> Validation:
    """Validate a batch as it lies.

    Raises:
        BatchRejected: An expectation of ``suite`` failed; nothing of the batch is landed.
    """
    from headrace.validation import load_suite, validate

    validation = validate([batch.file], load_suite(suite))
    if not validation.success:
        raise BatchRejected(batch.source, str(batch.window), validation.failures, suite, validation)
    return validation


def land(batch: Batch, lake: Lake) -> int:
    """Append the batch to its raw table, once however often it is called; return its rows.

    Two runs may land one batch at once: Delta lets one commit win.
    """
    import pyarrow.parquet as pq

    if batch.file.exists():  # gone only when an earlier call landed it and was killed while tidying up
        lake.table(batch.table).append(pq.read_table(batch.file), key=str(batch.window))
        batch.file.unlink(missing_ok=True)
    return batch.rows


def _slot(source: Source) -> str:
    """Return the SQL for the number of a row's window on the Monday grid."""
    seconds = int(source.window / timedelta(seconds=1))
    return f"((epoch({source.time})::BIGINT - {int(MONDAY.timestamp())}) // {seconds})"


def _rows(source: Source, span: Window) -> duckdb.DuckDBPyConnection:
    import duckdb

    files = source.files()
    names = [str(file) for file in files.values()]
    con = duckdb_connection()
    try:
        for view, file in files.items():
            reader = READERS.get(file.suffix)
            if reader is None:
                raise SourceUnreadable(source.name, [str(file)], f"no reader for `{file.suffix}` files")
            con.execute(f"CREATE VIEW {view} AS FROM {reader.format(file)}")
        con.execute(f"CREATE TABLE batch AS FROM ({source.select}) WHERE {span.predicate(source.time)}")
    except duckdb.BinderException as error:
        missing = re.search(r'column "([^"]+)" not found', str(error))
        if not missing:
            raise
        found = [column for view in files for column in con.view(view).columns]
        raise MissingColumns(source.name, [missing[1]], found) from None
    except (duckdb.IOException, duckdb.InvalidInputException, duckdb.ConversionException) as error:
        raise SourceUnreadable(source.name, names, str(error).split("\n\n")[0]) from None
    return con
