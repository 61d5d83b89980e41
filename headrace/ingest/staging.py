"""What a source brings: each window's new rows as one Parquet file, the batch."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headrace import quarantine
from headrace.errors import SourceUnreadable
from headrace.ingest.batch import ASIDE, UNDATED, Batch
from headrace.lake import AVAILABLE, Lake, Window, duckdb_connection, windows
from headrace.quarantine import Lot
from headrace.sources.rows import INSTANT, text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    import duckdb

    from headrace.ledger import Entry as Decision
    from headrace.ledger import Ledger
    from headrace.pipeline import Pipeline, Source
    from headrace.sources import Part

LANDED = "headrace_landed"
"""The scratch table of rows that landed in the windows that are looked at again."""
MEMORY = "1GB"
"""What DuckDB may take while it cuts a source into windows; beyond it, it spills to disk."""


@contextmanager
def workspace(home: Path) -> Iterator[Path]:
    """Make a folder for one run's batches; it goes when the block ends, or when a later run finds it dead."""
    import fcntl
    import shutil
    from tempfile import mkdtemp

    root = home / "staging"
    root.mkdir(parents=True, exist_ok=True)
    unlocked = Path(mkdtemp(prefix=".", dir=root))
    with (unlocked / "lock").open("w") as mine:
        fcntl.flock(mine, fcntl.LOCK_EX)  # let go by the kernel when this process ends, however it ends
        own = unlocked.rename(root / unlocked.name[1:])
        for left in set(root.glob("[!.]*")) - {own}:
            with suppress(OSError), (left / "lock").open() as theirs:
                fcntl.flock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
        try:
            yield own
        finally:
            shutil.rmtree(own)


def stage(
    spec: Pipeline, source: Source, as_of: datetime, lake: Lake, ledger: Ledger, folder: Path
) -> list[Batch]:
    """Write what each window that ended by ``as_of`` (UTC) brings, and has not brought before, as a batch.

    Looked at are the windows of which nothing landed and, for late rows, those
    that ended less than ``source.late`` ago. One that brings nothing new gives no
    batch. One that is held as a whole and waits for a decision is brought anew,
    all of it, when its source has changed.

    Raises:
        SourceUnreadable: The source cannot be read, or has a column named as one of ours.
        MissingColumns: It lacks a column that its declaration names.
    """
    due = windows(spec.start, as_of, source.window)
    past = _past(spec, source, [*due, UNDATED], lake, ledger)
    look = [window for window in due if past[window].open or window.end > as_of - source.late]
    if not look:
        return []
    scratch = folder / f"{source.name}.duckdb"
    con = duckdb_connection(scratch, MEMORY)
    con.execute("PRAGMA disable_checkpoint_on_shutdown")  # it is thrown away
    try:
        parts = source.origin.read(con, source.name, source.time, Window(look[0].start, look[-1].end))
        _refuse_ours(con, source, parts)
        if again := [window for window in look if past[window].landed]:
            span = Window(again[0].start, again[-1].end).predicate(f'"{source.time}"')
            lake.table(source.table).relation(con).filter(span).create(LANDED)
        batches = []
        for window in [*look, UNDATED]:
            seen = past[window]
            rows, lacking = _new_rows(con, source, window, seen, parts, lake)
            if rows is None:
                continue
            label = "undated" if window == UNDATED else window.label
            file = folder / f"{source.name}-{label}.parquet".replace(":", "")
            ((count,),) = con.execute(
                f"COPY (FROM ({rows.sql_query()}) ORDER BY ALL) TO {text(file)}"
            ).fetchall()
            id = f"{source.name}/{label}/{seen.number}"
            lot = Lot(id, spec.name, source.table, window, file, count, seen.landed)
            key = f"{window}#{seen.number}" if seen.landed else str(window)
            batches.append(Batch(lot, key, lacking))
    finally:
        con.close()
        scratch.unlink()
        scratch.with_suffix(".duckdb.wal").unlink(missing_ok=True)
    return batches


@dataclass(frozen=True)
class _Past:
    """What a window brought before.

    ``number`` is the next batch's; ``waiting`` is an undecided entry that holds
    all of a window of which nothing landed; ``held`` are the others, but for those that
    were released and landed as they were.
    """

    number: int
    landed: bool
    waiting: quarantine.Entry | None
    held: tuple[quarantine.Entry, ...]

    @property
    def open(self) -> bool:
        return not self.landed and not any(entry.whole for entry in self.held)


def _past(
    spec: Pipeline, source: Source, due: Sequence[Window], lake: Lake, ledger: Ledger
) -> dict[Window, _Past]:
    """Return what each window brought before, in a few looks at the raw table however many there are."""
    raw = lake.table(source.table)
    entries: dict[Window, list[quarantine.Entry]] = {window: [] for window in due}
    for entry in quarantine.entries(lake, source.table):
        entries.setdefault(entry.window, []).append(entry)
    decided = quarantine.decisions(ledger, spec.name)
    landed = raw.held(str(window) for window in due)
    number = {window: max((e.number for e in entries[window]), default=0) + 1 for window in due}
    counting = [window for window in due if str(window) in landed]
    number |= {window: max(number[window], 2) for window in counting}
    while counting:
        taken = raw.held(f"{window}#{number[window]}" for window in counting)
        counting = [window for window in counting if f"{window}#{number[window]}" in taken]
        number |= {window: number[window] + 1 for window in counting}
    past = {}
    for window in due:
        anew = [e for e in entries[window] if e.whole and not e.late and window != UNDATED]
        whole = [e for e in anew if e.id not in decided]
        waiting = whole[-1] if whole and str(window) not in landed else None
        held = tuple(e for e in entries[window] if e not in whole and not _counted(e, decided))
        past[window] = _Past(number[window], str(window) in landed, waiting, held)
    return past


def _counted(entry: quarantine.Entry, decided: Mapping[str, Decision]) -> bool:
    """Say whether an entry's rows are among those that landed: it was released as it was."""
    made = decided.get(entry.id)
    return bool(made and made.detail["decision"] == "released" and made.detail.get("mended") is False)


def _new_rows(
    con: duckdb.DuckDBPyConnection,
    source: Source,
    window: Window,
    seen: _Past,
    parts: Sequence[Part],
    lake: Lake,
) -> tuple[duckdb.DuckDBPyRelation | None, tuple[str, ...]]:
    """Return the window's rows that neither landed nor are held, and what their files lack."""
    within = [(part, con.table(part.relation).filter(_when(con, source, window, part))) for part in parts]
    within = [(part, rows) for part, rows in within if rows.limit(1).fetchone()]
    if not within:
        return None, ()
    lacking = tuple(sorted({column for part, _ in within for column in part.lacking}))
    rows = con.sql(" UNION ALL BY NAME ".join(f"({found.sql_query()})" for _, found in within))
    known = [lake.table(entry.held.table).relation(con, entry.held.version) for entry in seen.held]
    if seen.landed:
        known.append(con.table(LANDED).filter(window.predicate(f'"{source.time}"')))
    for number, before in enumerate(known):
        rows = _minus(con, rows, before, f"new{number}")
    if seen.waiting:
        before = lake.table(seen.waiting.held.table).relation(con, seen.waiting.held.version)
        same = len(rows) == seen.waiting.held.rows and not len(_minus(con, rows, before, "changed"))
        return (None if same else rows), lacking
    return (rows if rows.limit(1).fetchone() else None), lacking


def _when(con: duckdb.DuckDBPyConnection, source: Source, window: Window, part: Part) -> str:
    """Return the SQL condition for the rows of a part that belong to a window."""
    if window != UNDATED:
        return window.predicate(f'"{source.time}"')
    rows = con.table(part.relation)
    if str(rows.types[rows.columns.index(source.time)]) == INSTANT:
        return f'"{source.time}" IS NULL'
    # In a part with a schema of its own the time may be something else; such rows are held, not lost.
    return f'TRY_CAST("{source.time}"::VARCHAR AS {INSTANT}) IS NULL'


def _minus(
    con: duckdb.DuckDBPyConnection,
    rows: duckdb.DuckDBPyRelation,
    known: duckdb.DuckDBPyRelation,
    table: str,
) -> duckdb.DuckDBPyRelation:
    """Return, as ``table``, the ``rows`` without those ``known``, each as often as it is known."""
    types = dict(zip(rows.columns, rows.types, strict=True))
    shared = [column for column in types if column in known.columns]
    names = ", ".join(f'"{column}"' for column in shared)
    cast = ", ".join(f'TRY_CAST("{column}" AS {types[column]}) AS "{column}"' for column in shared)
    nth = f"row_number() OVER (PARTITION BY {names}) AS __nth"
    same = " AND ".join(
        f'new."{column}" IS NOT DISTINCT FROM old."{column}"' for column in [*shared, "__nth"]
    )
    known.create_view("known", replace=True)
    con.execute(f"CREATE OR REPLACE TEMP VIEW before AS SELECT {cast} FROM known")
    # As a rule nothing is new. Numbering equal rows, to tell which came once more, takes far longer.
    new = con.sql(f"SELECT {names} FROM ({rows.sql_query()}) EXCEPT ALL FROM before")
    if not new.limit(1).fetchone():
        return rows.limit(0)
    con.execute(f"""
        CREATE OR REPLACE TEMP TABLE {table} AS
        SELECT * EXCLUDE (__nth) FROM (SELECT *, {nth} FROM ({rows.sql_query()})) new
        ANTI JOIN (SELECT *, {nth} FROM before) old ON {same}
    """)
    return con.table(table)


def _refuse_ours(con: duckdb.DuckDBPyConnection, source: Source, parts: Sequence[Part]) -> None:
    for part in parts:
        if ours := {AVAILABLE, ASIDE, "broken_rules"} & set(con.table(part.relation).columns):
            reason = f"it has a column `{min(ours)}`, which is a name of headrace's own; give it another"
            raise SourceUnreadable(source.name, part.found, reason)
