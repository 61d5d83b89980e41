"""What a source brings: each window's new rows as one Parquet file, the batch."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from headrace import quarantine
from headrace.ingest.batch import ASIDE, UNDATED, Batch
from headrace.ingest.errors import WindowsChanged
from headrace.lake import AVAILABLE, Lake, Window, duckdb_connection, windows
from headrace.ledger import EVERY
from headrace.quarantine import Lot
from headrace.sources import Feedback, Files, Predictions, Query
from headrace.sources.errors import MissingColumns, SourceUnreadable
from headrace.sources.rows import INSTANT, carried, described, explained, family, widest
from headrace.sql import literal, quoted
from headrace.validation import load_suite

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import duckdb

    from headrace.ledger import Ledger
    from headrace.ledger import Record as Decision
    from headrace.pipeline import Pipeline, Source
    from headrace.sources import Part

LANDED = "headrace_landed"
"""The scratch table of rows that landed in the windows that are looked at again."""
NTH = "headrace_nth"
"""Which of equal rows one is."""
OURS = {AVAILABLE, ASIDE, NTH, "broken_rules", "file_row_number", "headrace_row"}
"""Columns that no source may have."""
EVER = datetime(1, 1, 1, tzinfo=UTC)
MEMORY = "1GB"
"""What DuckDB may take while it cuts a source into windows; beyond it, it spills to disk."""


@contextmanager
def workspace(home: Path) -> Iterator[Path]:
    """Make a folder for one run's batches; it goes when the block ends, or when a later run finds it dead."""
    import shutil
    from tempfile import mkdtemp

    from filelock import FileLock

    root = home / "staging"
    root.mkdir(parents=True, exist_ok=True)
    unlocked = Path(mkdtemp(prefix=".", dir=root))
    with FileLock(unlocked / "lock"):  # let go by the kernel when this process ends, however it ends
        own = unlocked.rename(root / unlocked.name[1:])
        for left in set(root.glob("[!.]*")) - {own}:
            with suppress(OSError), FileLock(left / "lock", blocking=False):
                shutil.rmtree(left)
        try:
            yield own
        finally:
            shutil.rmtree(own, ignore_errors=True)  # a thread of a run that was told to end may still write


@dataclass(frozen=True)
class Staged:
    """What a source brought: batches to settle, and the windows that were ``empty`` and not closed yet.

    ``earlier`` is how many rows became known before the pipeline's start, and are left out; it is
    counted as long as nothing has landed, where the source is files or a database.
    """

    batches: tuple[Batch, ...] = ()
    empty: tuple[Window, ...] = ()
    earlier: int = 0


def stage(
    spec: Pipeline, source: Source, as_of: datetime, lake: Lake, ledger: Ledger, folder: Path
) -> Staged:
    """Write what each window that ended by ``as_of`` (UTC) brings, and has not brought before, as a batch.

    Looked at are the windows of which nothing landed and, for late rows, those
    that ended less than ``source.late`` ago. One that brings nothing new gives no
    batch; one that never brought anything is open until it is closed (``close``).
    One that is held as a whole and waits for a decision is brought anew, all of it,
    when its source has changed.

    Raises:
        UnknownSuite: Its suite does not exist.
        SourceUnreadable: The source cannot be read, or has a column named as one of ours.
        MissingColumns: It lacks a column that its declaration names.
        WindowsChanged: What landed was cut into other windows.
    """
    _same_windows(spec, source, ledger)
    raw = lake.table(source.table)
    due = windows(spec.start, as_of, source.window)
    look, past = _past(spec, source, due, as_of, lake, ledger)
    if not look:
        return Staged()
    load_suite(source.suite)  # a mistake in it shows now, not in the week that first brings rows
    # A name of its own for each try: an interrupted query keeps its file open, and DuckDB would wait for it.
    scratch = folder / f"{source.name}-{uuid4().hex}.duckdb"
    con = duckdb_connection(scratch, MEMORY)
    con.execute("PRAGMA disable_checkpoint_on_shutdown")  # it is thrown away
    try:
        new, files = not raw.exists(), isinstance(source.origin, Files)
        since = EVER if new and files else look[0].start  # of files, all rows are read in any case
        origin = source.origin
        if isinstance(origin, Predictions | Feedback):
            origin = origin.of(lake)
        parts = origin.read(con, source.name, source.time, Window(since, look[-1].end))
        parts = [_carried(con, source, part) for part in parts]
        landed: dict[str, str] = {}
        done = [window for window in look if past[window].landed]
        if not new:
            landed, version = raw.columns(con), raw.open().version()
            span = Window(done[0].start, done[-1].end).predicate(quoted(source.time)) if done else "false"
            raw.relation(con, version).filter(span).create(LANDED)
        # As a rule nothing is new in any window that landed: one question, not one for each.
        done = [window for window in done if not (past[window].held or past[window].waiting)]
        if done:
            whole = Window(done[0].start, done[-1].end)
            with explained(source.name, [f"the rows of {whole}"]):
                if _new_rows(con, source, whole, past[done[0]], parts, landed, lake)[0] is not None:
                    done = []
        batches = []
        for window in [*(window for window in look if window not in done), UNDATED]:
            with explained(source.name, [f"the rows of {window}"]):
                rows, lacking = _new_rows(con, source, window, past[window], parts, landed, lake)
                if rows is None:
                    continue
                label = "undated" if window == UNDATED else window.label
                file = folder / f"{source.name}-{label}.parquet".replace(":", "")
                ((count,),) = con.execute(
                    f"COPY (FROM ({rows.sql_query()}) ORDER BY ALL) TO {literal(file)}"
                ).fetchall()
            seen = past[window]
            id, late = f"{source.name}/{label}/{seen.number}", seen.landed or window == UNDATED
            lot = Lot(id, spec.name, source.table, window, file, count, late, lacking)
            batches.append(Batch(lot, _key(window, seen.lots), version if landed else None))
        earlier = _earlier(con, source, parts, due[0].start) if new else 0
    finally:
        con.close()
        scratch.unlink()
        scratch.with_suffix(".duckdb.wal").unlink(missing_ok=True)
    brought = {batch.lot.window for batch in batches}
    empty = tuple(window for window in look if window not in brought and past[window].empty)
    return Staged(tuple(batches), empty, earlier)


def _earlier(con: duckdb.DuckDBPyConnection, source: Source, parts: Sequence[Part], start: datetime) -> int:
    """Count the rows from before ``start``; a function is not asked for them."""
    if isinstance(source.origin, Query):
        return source.origin.earlier(source.name, source.time, start)
    before = Window(EVER, start)
    return sum(len(con.table(p.relation).filter(_when(con, source, before, p))) for p in parts)


def _same_windows(spec: Pipeline, source: Source, ledger: Ledger) -> None:
    """Refuse other windows than those by which the source's first rows landed, for whichever pipeline."""
    now = str(source.window)
    own = ledger.entries(spec.name, "windows", source.table)  # written by earlier releases
    landed = own[0].detail["window"] if own else now
    first = ledger.finish(EVERY, "windows", source.table, holder="the first ingest", window=landed).detail
    if first["window"] != now:
        raise WindowsChanged(source.name, first["window"], now)


def _carried(con: duckdb.DuckDBPyConnection, source: Source, part: Part) -> Part:
    """Let a part's columns have the types in which the lake keeps them; refuse names that cannot be."""
    rows = con.table(part.relation)
    if ours := sorted(column for column in rows.columns if column.lower() in OURS):
        reason = f"it has a column `{ours[0]}`, which is a name of headrace's own; give it another"
        raise SourceUnreadable(source.name, part.found, reason)
    if missing := [key for key in source.keys if key not in rows.columns]:
        raise MissingColumns(source.name, missing, part.found)
    casts = [
        f"{quoted(column)}::{carried(kind)} AS {quoted(column)}"
        for column, kind in zip(rows.columns, rows.types, strict=True)
    ]
    view = f"carried_{part.relation}"
    con.execute(f"CREATE VIEW {view} AS SELECT {', '.join(casts)} FROM {part.relation}")
    return replace(part, relation=view)


@dataclass(frozen=True)
class _Past:
    """What a window brought before.

    ``lots`` have landed; ``number`` is the next lot's. ``waiting`` is an undecided
    entry that holds all of a window of which nothing landed; ``held`` are the
    others whose rows are not among those that landed.
    """

    lots: int
    number: int
    waiting: quarantine.Entry | None
    held: tuple[quarantine.Entry, ...]

    @property
    def landed(self) -> bool:
        return bool(self.lots)

    @property
    def empty(self) -> bool:
        return not (self.lots or self.waiting or self.held)


def _key(window: Window, lots: int) -> str:
    """Return the key of a window's next lot: counted by what landed, so that of two runs one lands it."""
    return f"{window}#{lots + 1}" if lots else str(window)


def _past(
    spec: Pipeline, source: Source, due: Sequence[Window], as_of: datetime, lake: Lake, ledger: Ledger
) -> tuple[list[Window], dict[Window, _Past]]:
    """Return the windows to look at, and what they and the undated rows brought before."""
    raw = lake.table(source.table)
    entries: dict[Window, list[quarantine.Entry]] = {window: [] for window in [*due, UNDATED]}
    for entry in (known := quarantine.entries(lake, source.table)):
        entries.setdefault(entry.window, []).append(entry)
    decided = quarantine.decisions(ledger, known)
    undecided = {
        window: [e for e in found if e.whole and not e.late and e.id not in decided]
        for window, found in entries.items()
    }
    landed = raw.held(str(window) for window in due)
    held = {
        window: tuple(
            entry
            for entry in found
            if entry not in undecided[window] and not (str(window) in landed and _as_it_was(entry, decided))
        )
        for window, found in entries.items()
    }
    closed = {w for w in due if str(w) in landed or any(entry.whole for entry in held[w])}
    look = [window for window in due if window not in closed or window.end > as_of - source.late]
    lots = {window: int(str(window) in landed) for window in [*look, UNDATED]}
    counting = [window for window in look if lots[window]]
    while counting:
        taken = raw.held(_key(window, lots[window]) for window in counting)
        counting = [window for window in counting if _key(window, lots[window]) in taken]
        lots |= {window: lots[window] + 1 for window in counting}
    past = {}
    for window in [*look, UNDATED]:
        number = max([lots[window], *(entry.number for entry in entries[window])]) + 1
        last = max(undecided[window], key=lambda entry: entry.number, default=None)
        past[window] = _Past(lots[window], number, None if lots[window] else last, held[window])
    return look, past


def _as_it_was(entry: quarantine.Entry, decided: Mapping[str, Decision]) -> bool:
    """Say whether an entry was released unmended, so that its rows are counted where they landed."""
    made = decided.get(entry.id)
    return bool(made and made.detail["decision"] == "released" and made.detail.get("mended") is False)


def _new_rows(
    con: duckdb.DuckDBPyConnection,
    source: Source,
    window: Window,
    seen: _Past,
    parts: Sequence[Part],
    landed: Mapping[str, str],
    lake: Lake,
) -> tuple[duckdb.DuckDBPyRelation | None, tuple[str, ...]]:
    """Return the window's rows that neither landed nor are held, and what their files lack."""
    within = [(part, con.table(part.relation).filter(_when(con, source, window, part))) for part in parts]
    within = [(part, rows) for part, rows in within if rows.limit(1).fetchone()]
    if not within:
        return None, ()
    lacking = tuple(sorted({column for part, _ in within for column in part.lacking}))
    rows = con.sql(" UNION ALL BY NAME ".join(f"({found.sql_query()})" for _, found in within))
    rows = _fitted(con, rows, landed)
    known = [lake.table(entry.held.table).relation(con, entry.held.version) for entry in seen.held]
    if seen.landed:
        known.append(con.table(LANDED).filter(window.predicate(quoted(source.time))))
    for number, before in enumerate(known):
        rows = _minus(con, rows, before, f"new{number}")
    if seen.waiting:
        before = lake.table(seen.waiting.held.table).relation(con, seen.waiting.held.version)
        same = len(rows) == seen.waiting.held.rows and not len(_minus(con, rows, before, "changed"))
        return (None if same else rows), lacking
    return (rows if rows.limit(1).fetchone() else None), lacking


def _when(con: duckdb.DuckDBPyConnection, source: Source, window: Window, part: Part) -> str:
    """Return the SQL condition for the rows of a part that belong to a window."""
    time = quoted(source.time)
    if described(con, part.relation)[source.time] != INSTANT:
        # In a part with a schema of its own the time may be something else; such rows are held, not lost.
        time = f"TRY_CAST({time}::VARCHAR AS {INSTANT})"
    dated = f"coalesce(isfinite({time}), false)"
    return f"NOT {dated}" if window == UNDATED else f"{dated} AND {window.predicate(time)}"


def _fitted(
    con: duckdb.DuckDBPyConnection, rows: duckdb.DuckDBPyRelation, landed: Mapping[str, str]
) -> duckdb.DuckDBPyRelation:
    """Give columns the type that landed before where it holds all they hold: text files only show numbers."""
    types = dict(zip(rows.columns, map(str, rows.types), strict=True))
    fitting = []
    for column, kind in types.items():
        wanted, name = landed.get(column, kind), quoted(column)
        if wanted == kind:
            continue
        wider = family(kind) == family(wanted) == "number" and widest(con, [kind, wanted]) == wanted
        same = f"bool_and(TRY_CAST(TRY_CAST({name} AS {wanted}) AS {kind}) IS NOT DISTINCT FROM {name})"
        ((filled, lossless),) = rows.aggregate(f"count({name}), {same}").fetchall()
        if not filled or (wider and lossless):
            fitting.append(f"{name}::{wanted} AS {name}")
    return rows.project(f"* REPLACE ({', '.join(fitting)})") if fitting else rows


def _minus(
    con: duckdb.DuckDBPyConnection,
    rows: duckdb.DuckDBPyRelation,
    known: duckdb.DuckDBPyRelation,
    table: str,
) -> duckdb.DuckDBPyRelation:
    """Return, as ``table``, the ``rows`` without those ``known``, each as often as it is known."""
    types = dict(zip(rows.columns, map(str, rows.types), strict=True))
    were = dict(zip(known.columns, map(str, known.types), strict=True))
    shared = [column for column in types if column in were]
    names = ", ".join(map(quoted, shared))
    casts = {column: f"TRY_CAST({quoted(column)} AS {types[column]})" for column in shared}
    # A known value that the new type does not hold is not the new value that it would be cut to.
    kept = [
        f"TRY_CAST({cast} AS {were[column]}) IS NOT DISTINCT FROM {quoted(column)}"
        for column, cast in casts.items()
        if were[column] != types[column]
    ]
    nth = f"row_number() OVER (PARTITION BY {names}) AS {NTH}"
    same = " AND ".join(
        f"new.{column} IS NOT DISTINCT FROM old.{column}" for column in map(quoted, [*shared, NTH])
    )
    known.create_view("known", replace=True)
    cast = ", ".join(f"{cast} AS {quoted(column)}" for column, cast in casts.items())
    con.execute(
        f"CREATE OR REPLACE TEMP VIEW before AS SELECT {cast} FROM known WHERE {' AND '.join(kept) or 'true'}"
    )
    # As a rule nothing is new. Numbering equal rows, to tell which came once more, takes far longer.
    new = con.sql(f"SELECT {names} FROM ({rows.sql_query()}) EXCEPT ALL FROM before")
    if not new.limit(1).fetchone():
        return rows.limit(0)
    con.execute(f"""
        CREATE OR REPLACE TEMP TABLE {table} AS
        SELECT * EXCLUDE ({NTH}) FROM (SELECT *, {nth} FROM ({rows.sql_query()})) new
        ANTI JOIN (SELECT *, {nth} FROM before) old ON {same}
    """)
    return con.table(table)
