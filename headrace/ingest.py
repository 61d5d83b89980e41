"""Source ▶ staged batch ▶ gate ▶ raw table, or quarantine.

A source is read once for all its windows that are due. What a window brings
that neither landed nor is held becomes one staged Parquet file, the batch, which
is validated as it lies; what passes lands in one commit.

Raw tables hold two columns of ours beside the source's: ``available_at``, the
instant (UTC) from which a row counts, and ``aside``, columns that nobody has
declared yet, as JSON.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from headrace import quarantine
from headrace.errors import NotReleasable, SourceUnreadable, StillRejected, Superseded
from headrace.lake import AVAILABLE, Lake, Window, duckdb_connection, windows
from headrace.quarantine import Lot
from headrace.sources import Files
from headrace.sources.rows import INSTANT, text
from headrace.validation import declared, load_suite, row_rules, validate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import duckdb

    from headrace.ledger import Ledger
    from headrace.pipeline import Pipeline, Source
    from headrace.sources import Part
    from headrace.validation import Validation

ASIDE = "aside"
UNDATED = Window(datetime(1, 1, 1, tzinfo=UTC), datetime(1, 1, 2, tzinfo=UTC))
"""Stands for the window of rows whose time is null: they belong to none, and must not be lost."""
EVER = Window(UNDATED.start, datetime(9999, 1, 1, tzinfo=UTC))
LANDED = "headrace_landed"
"""The scratch table of rows that landed in the windows that are looked at again."""
MEMORY = "1GB"
"""What DuckDB may take while it cuts a source into windows; beyond it, it spills to disk."""


@dataclass(frozen=True)
class Batch:
    """A lot of one source's rows in one window.

    It lands under ``key``, once: its window's, or one of its own if the lot is
    late. Columns that its files are ``lacking`` are named.
    """

    lot: Lot
    key: str
    lacking: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.lot.id


@dataclass(frozen=True)
class Settled:
    """What became of a batch: each row ``landed`` or is held in ``entry``; columns ``aside`` are kept so."""

    batch: Batch
    landed: int
    entry: quarantine.Entry | None
    aside: tuple[str, ...]
    validation: Validation


@contextmanager
def staging(home: Path) -> Iterator[Path]:
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


def settle(batch: Batch, source: Source, lake: Lake, as_of: datetime) -> Settled:
    """Validate a batch; land what passes, hold the rest. Done twice, or by two at once, it is done once.

    Raises:
        LotChanged: Another run is settling a batch of this name with other rows.
    """
    with duckdb_connection() as con:
        shape = _shape(con, source, batch, lake)
        sifted = quarantine.sift(
            batch.lot,
            source.suite,
            lake,
            as_of,
            columns=shape.shown,
            reasons=shape.reasons,
            barred=_landed_already(source, batch, lake),
        )
        if sifted.passed:
            _land(con, sifted.passing, shape, source, batch, lake, as_of)
    return Settled(batch, sifted.passed, sifted.entry, shape.aside, sifted.validation)


def release(
    spec: Pipeline,
    entry: quarantine.Entry,
    lake: Lake,
    ledger: Ledger,
    *,
    folder: Path,
    as_of: datetime,
    holder: str,
    now: datetime,
    rows: Path | None = None,
) -> int:
    """Validate again what is held and land it, once; return the rows landed.

    Args:
        spec: The pipeline the entry belongs to.
        entry: What to release. Rows held of a batch must break no row rule any
            more; a batch held as a whole must pass its suite.
        lake: Where it is held and will land.
        ledger: Where the decision is claimed and written.
        folder: A place for a temporary file.
        as_of: The instant (UTC), from which rows that are late count.
        holder: Who asks.
        now: Wall-clock time (UTC).
        rows: A file of mended rows, to land instead of the held ones.

    Raises:
        AlreadyDecided: It was released or dropped before.
        StillRejected: It does not pass; it stays where it is.
        Superseded: Its source brought the window anew.
        NotReleasable: Its table is computed, not landed.
    """
    source = next((s for s in spec.sources if s.table == entry.table), None)
    if source is None:
        raise NotReleasable(entry.id, entry.table)
    late = entry.late or not entry.whole or entry.window == UNDATED
    key = f"release of {entry.id}" if late else str(entry.window)
    with quarantine.deciding(entry, ledger, holder, now) as decide, duckdb_connection() as con:
        if quarantine.superseded(entry, lake):
            raise Superseded(entry.id)
        file = folder / "released.parquet"
        _write_held(con, source, entry, lake, rows, file)
        ((count,),) = con.sql(f"SELECT count(*) FROM {text(file)}").fetchall()
        lot = Lot(entry.id, entry.pipeline, entry.table, entry.window, file, count, late)
        batch = Batch(lot, key)
        shape = _shape(con, source, batch, lake)
        suite = load_suite(source.suite)
        # What else the suite says was true of the batch these rows come from, and need not be of them alone.
        asked = row_rules(suite) if late else suite
        barred = _landed_already(source, batch, lake)
        validation = validate([file], asked, columns=shape.shown)
        wrong = [*shape.reasons, *validation.failures, *sorted({rule for _, rule in barred})]
        wrong += [outcome.sentence for outcome in validation.outcomes if outcome.success and outcome.breaches]
        if wrong:
            raise StillRejected(entry.id, wrong, source.suite)
        _land(con, f"FROM {text(file)}", shape, source, batch, lake, as_of)
        decide("released", rows=count, mended=bool(rows))
    return int(count)


@dataclass(frozen=True)
class _Past:
    """What a window brought before.

    ``number`` is the next batch's; ``waiting`` is an undecided entry that holds
    all of a window of which nothing landed; ``held`` are the others.
    """

    number: int
    landed: bool
    waiting: quarantine.Entry | None
    held: tuple[quarantine.Entry, ...]

    @property
    def open(self) -> bool:
        return not self.landed and not any(entry.whole for entry in self.held)


@dataclass(frozen=True)
class _Shape:
    """A batch's columns: those the suite is ``shown`` and that land, those kept ``aside``, what is wrong."""

    shown: tuple[str, ...]
    aside: tuple[str, ...]
    reasons: tuple[str, ...]


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
        held = tuple(e for e in entries[window] if e not in whole)
        past[window] = _Past(number[window], str(window) in landed, waiting, held)
    return past


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


def _shape(con: duckdb.DuckDBPyConnection, source: Source, batch: Batch, lake: Lake) -> _Shape:
    lot = con.read_parquet(str(batch.lot.file))
    found = dict(zip(lot.columns, map(str, lot.types), strict=True))
    landed = lake.table(source.table).columns(con)
    before = {column: kind for column, kind in landed.items() if column not in (AVAILABLE, ASIDE)}
    known = declared(load_suite(source.suite)) or tuple(before) or tuple(found)
    new = tuple(column for column in found if column not in known)
    reasons = [f"`{column}` must be in every file, but this batch's lack it" for column in batch.lacking]
    reasons += [
        f"`{column}` must be there, as in batches before, but is not"
        for column in before
        if column not in {*found, *batch.lacking}
    ]
    reasons += [
        f"`{column}` must be {before[column]}, as in batches before, but is {kind}"
        for column, kind in found.items()
        if before.get(column, kind) != kind
    ]
    if new and source.new_columns == "reject":
        reasons.append(f"the columns must be declared, but {', '.join(f'`{c}`' for c in new)} is not")
    if batch.lot.window == UNDATED:
        reasons.append(f"`{source.time}` must not be null: without it a row belongs to no window")
    aside = () if source.new_columns == "land" else new
    return _Shape(tuple(column for column in found if column not in aside), aside, tuple(reasons))


def _landed_already(source: Source, batch: Batch, lake: Lake) -> list[tuple[int, str]]:
    """Return the positions of a batch's rows whose keys landed before, each with the rule it breaks."""
    if not (source.keys and batch.lot.late):
        return []
    keys = ", ".join(f'"{key}"' for key in source.keys)
    with lake.connect({"landed": source.table}) as con:
        rows = f"read_parquet({text(batch.lot.file)}, file_row_number = true)"
        found = con.sql(
            f"SELECT lot.file_row_number FROM {rows} lot SEMI JOIN landed USING ({keys}) ORDER BY ALL"
        )
        rule = f"{', '.join(f'`{key}`' for key in source.keys)} must not have landed before"
        return [(row, rule) for (row,) in found.fetchall()]


def _land(
    con: duckdb.DuckDBPyConnection,
    rows: str,
    shape: _Shape,
    source: Source,
    batch: Batch,
    lake: Lake,
    as_of: datetime,
) -> None:
    names = ", ".join(f'"{column}"' for column in shape.shown)
    since = f'"{source.time}"'
    if batch.lot.late:
        since = f"greatest({since}, TIMESTAMPTZ '{as_of.isoformat()}')"
    others = ", ".join(f"'{column}': \"{column}\"" for column in shape.aside)
    aside = f"to_json({{{others}}})::VARCHAR" if others else "NULL::VARCHAR"
    landing = con.sql(f"SELECT {names}, {since} AS {AVAILABLE}, {aside} AS {ASIDE} FROM ({rows})")
    lake.table(source.table).append(landing.to_arrow_reader(), batch.key)


def _write_held(
    con: duckdb.DuckDBPyConnection,
    source: Source,
    entry: quarantine.Entry,
    lake: Lake,
    mended: Path | None,
    file: Path,
) -> None:
    """Write what is held, or what a person mended it to, as a lot."""
    held = lake.table(entry.held.table).relation(con, entry.held.version)
    rows = con.sql(f"SELECT * EXCLUDE (broken_rules) FROM ({held.sql_query()})")
    if mended:
        (part, *_) = Files({"mended": mended}).read(con, source.name, source.time, EVER)
        raw = lake.table(source.table)
        like = raw.relation(con) if raw.exists() else rows  # a CSV file does not say what its numbers are
        kinds = dict(zip(like.columns, like.types, strict=True))
        typed = [
            f'"{c}"::{kinds[c]} AS "{c}"' if c in kinds else f'"{c}"'
            for c in con.table(part.relation).columns
        ]
        rows = con.sql(f"SELECT {', '.join(typed)} FROM {part.relation}")
    rows.write_parquet(str(file))


def _refuse_ours(con: duckdb.DuckDBPyConnection, source: Source, parts: Sequence[Part]) -> None:
    for part in parts:
        if ours := {AVAILABLE, ASIDE, "broken_rules"} & set(con.table(part.relation).columns):
            reason = f"it has a column `{min(ours)}`, which is a name of headrace's own; give it another"
            raise SourceUnreadable(source.name, part.found, reason)
