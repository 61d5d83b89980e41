"""What a person lets go: held rows land after all, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace import quarantine
from headrace.ingest.batch import UNDATED, Batch
from headrace.ingest.errors import NotReleasable, StillRejected
from headrace.ingest.landing import land, landed_already, shape_of
from headrace.lake import Lake, duckdb_connection
from headrace.quarantine import Lot, Superseded
from headrace.sources.errors import MissingColumns, SourceUnreadable
from headrace.sources.files import opened
from headrace.sources.rows import INSTANT, explained
from headrace.sql import literal, quoted
from headrace.validation import load_suite, row_rules, validate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from pathlib import Path

    import duckdb

    from headrace.ledger import Ledger
    from headrace.pipeline import Pipeline, Source


def release(
    spec: Pipeline,
    entry: quarantine.Entry,
    lake: Lake,
    ledger: Ledger,
    *,
    folder: Path,
    as_of: datetime,
    holder: str,
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
    late = entry.late or not entry.whole
    key = entry.release_key if late else str(entry.window)
    with quarantine.deciding(entry, lake, ledger, holder) as decide, duckdb_connection() as con:
        if quarantine.superseded(entry, lake):
            raise Superseded(entry.id)
        file = folder / "released.parquet"
        _write_held(con, source, entry, lake, rows, file)
        ((count,),) = con.sql(f"SELECT count(*) FROM {literal(file)}").fetchall()
        lacking = () if rows else entry.lacking
        lot = Lot(entry.id, entry.pipeline, entry.table, entry.window, file, count, late, lacking)
        raw = lake.table(source.table)
        batch = Batch(lot, key, raw.open().version() if raw.exists() else None)
        shape = shape_of(con, source, batch, lake)
        wrong = [*shape.reasons, *_misplaced(con, source, lot)]
        suite = load_suite(source.suite)
        # What else the suite says was true of the batch these rows come from, and need not be of them alone.
        validation = validate([file], row_rules(suite) if late else suite, columns=shape.shown)
        wrong += validation.failures
        wrong += [outcome.sentence for outcome in validation.outcomes if outcome.success and outcome.breaches]
        if not shape.reasons:
            wrong += sorted({rule for _, rule in landed_already(source, batch, lake)})
        if wrong:
            raise StillRejected(entry.id, wrong, source.suite)
        also = {entry.release_key: count}
        if not land(con, f"FROM {literal(file)}", count, shape, source, batch, lake, as_of, also):
            raise Superseded(entry.id)
        decide("released", rows=count, mended=bool(rows))
    return int(count)


def _misplaced(con: duckdb.DuckDBPyConnection, source: Source, lot: Lot) -> list[str]:
    """Say that mended rows belong to another window: it would bring them, too."""
    time, rows = quoted(source.time), con.read_parquet(str(lot.file))
    if lot.window == UNDATED or str(dict(zip(rows.columns, rows.types, strict=True))[source.time]) != INSTANT:
        return []
    others = len(rows.filter(f"NOT ({lot.window.predicate(time)})"))
    return [f"`{source.time}` must be in {lot.window}, but {others:,} rows are not"] if others else []


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
        raw = lake.table(source.table)
        like = raw.relation(con) if raw.exists() else rows  # a CSV file does not say what its numbers are
        rows = _mended(con, source, mended, dict(zip(like.columns, map(str, like.types), strict=True)))
    with explained(source.name, [str(mended or entry.id)]):
        rows.write_parquet(str(file))


def _mended(
    con: duckdb.DuckDBPyConnection, source: Source, file: Path, types: Mapping[str, str]
) -> duckdb.DuckDBPyRelation:
    """Read rows that a person mended. In CSV an empty field is null, and `""` a text without letters."""
    with explained(source.name, [str(file)]):
        if file.suffix in (".csv", ".parquet"):
            opened(con, source.name, str(file))  # doubled names and other encodings are refused there
        match file.suffix:
            case ".csv":
                how = "header = true, all_varchar = true, nullstr = '', allow_quoted_nulls = false"
                rows = con.sql(f"FROM read_csv({literal(file)}, {how})")
            case ".parquet":
                rows = con.read_parquet(str(file))
            case other:
                reason = f"mended rows are read from .csv or .parquet, not `{other}`"
                raise SourceUnreadable(source.name, [str(file)], reason)
    if source.time not in rows.columns:
        raise MissingColumns(source.name, [source.time], rows.columns)
    casts = {c: f"{quoted(c)}::{types[c]}" if c in types else quoted(c) for c in rows.columns}
    return rows.project(", ".join(f"{cast} AS {quoted(column)}" for column, cast in casts.items()))
